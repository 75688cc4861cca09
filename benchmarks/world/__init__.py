"""A small world in which the quality of every answer is known. Imports nothing of the factory."""
