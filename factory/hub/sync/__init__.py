"""Push and pull: copy repos and collections from one hub to another by the public API."""
