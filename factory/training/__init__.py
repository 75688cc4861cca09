"""Training: recipes put into TRL's and PEFT's words, watched, resumed, probed and merged."""
