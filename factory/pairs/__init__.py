"""Pairing: the rules, what they compare, what pairs are made of, strategies side by side."""
