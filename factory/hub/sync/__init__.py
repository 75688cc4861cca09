"""Push and pull: what one hub has and another lacks, carried over by the public API."""
