"""Cards, results page and tables, made from manifests."""
