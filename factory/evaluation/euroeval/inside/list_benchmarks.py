"""Prints, as JSON, the benchmarks that the installed EuroEval has. Run by its own Python.

registry.json and registry-<version>.json in the folder above are what this printed for the versions
in requirements/.
"""

import importlib.metadata
import json
import sys

from euroeval import dataset_configs
from euroeval.data_models import DatasetConfig


def listed() -> dict:
    """Return every benchmark by name: task, languages, where its data comes from, metrics with the
    script each needs (null for one that is built in), whether it is in the official suites and
    whether its rows are drawn anew for each iteration."""
    benchmarks = {}
    for config in vars(dataset_configs).values():
        if isinstance(config, DatasetConfig):
            benchmarks[config.name] = {
                "task": config.task.name,
                "languages": sorted({language.code for language in config.languages}),
                "source": config.source if isinstance(config.source, str) else None,
                "metrics": {
                    metric.name: getattr(metric, "huggingface_id", None)
                    for metric in config.task.metrics
                },
                "official": not config.unofficial,
                "drawn_anew": bool(config.bootstrap_samples),
            }
    return dict(sorted(benchmarks.items()))


if __name__ == "__main__":
    listing = {"version": importlib.metadata.version("EuroEval"), "benchmarks": listed()}
    sys.stdout.write(json.dumps(listing) + "\n")
