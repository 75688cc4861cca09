"""The line in a world where the truth is known."""
