"""Pages of the local hub for people: what was made, as a browser shows it."""
