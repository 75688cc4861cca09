"""Recipes on a SLURM cluster: sites, scripts, what is submitted, and what became of it."""
