"""The results page of a collection: manifests in, one HTML page out that needs nothing else."""
