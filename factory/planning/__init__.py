"""Recipe, lock, plan and estimate: from YAML to steps with a state."""
