"""A Hugging Face Hub on your own disk, in its own process; the rest imports only `launcher`."""
