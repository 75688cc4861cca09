"""Card of an artifact: README, figures, checks and updates."""
