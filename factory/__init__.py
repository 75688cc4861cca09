"""The factory: one recipe becomes a collection of datasets and adapters on a Hugging Face Hub."""

__version__ = "0.1.0"
