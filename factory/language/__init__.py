"""Languages: the table, which one a text is in, translating, and how often answers stray."""
