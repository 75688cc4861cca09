"""EuroEval: which benchmarks there are, its own environment, what a run of it reads, and what it
leaves. EuroEval itself is never imported: it runs in a Python of its own."""
