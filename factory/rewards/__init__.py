"""Reward backends, scores of answers, audits of a reward model."""
