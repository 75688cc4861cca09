"""Hub client, collections, sessions, push and pull."""
