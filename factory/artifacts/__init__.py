"""Artifacts on disk: identity, manifests, tables, shards and work directories."""
