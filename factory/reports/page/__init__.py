"""Results page of a collection: one self-contained HTML file from its manifests."""
