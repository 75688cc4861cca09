"""Run a plan: resolve inputs, check, execute, seal, publish."""
