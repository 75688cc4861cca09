"""Languages: the table, language identification, and language confusion."""
