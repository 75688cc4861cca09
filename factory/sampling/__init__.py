"""Prompts and questions, their translations, and answers sampled from a policy."""
