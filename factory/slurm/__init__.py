"""Recipes on a SLURM cluster: sites, job scripts, submissions and their status."""
