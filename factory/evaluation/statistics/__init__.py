"""Figures about comparisons: win rates, length control, intervals. Pure: nothing is read or
written. docs/evaluation.md has the formulas, and what was measured to choose them."""
