"""A recipe of prompts alone, read from p.jsonl beside it: a run of it takes a second."""

RECIPE = """
name: tiny
org: local
description: Prompts alone.
languages: [en]
license: apache-2.0
models: {}
stages:
  prompts: {source: p.jsonl}
"""
