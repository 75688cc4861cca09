"""Asking a language model which of two answers is better: the wording, what is cut so that it
fits, and how what comes back is read."""
