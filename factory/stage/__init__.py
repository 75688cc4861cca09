"""The page for contributors: what a stage is, what it reads and what it is given."""
