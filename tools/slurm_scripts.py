"""Render the scripts in tests/slurm/golden/: python -m tools.slurm_scripts writes them anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import factory.slurm.script as rendering
from factory.slurm import site
from factory.slurm.script import ScriptJob, render

GOLDEN = Path(__file__).parents[1] / "tests" / "slurm" / "golden"
VARIABLES = {
    "LUMI_PROJECT": "project_465000000",
    "FACTORY_ACCOUNT": "lab",
    "FACTORY_PARTITION": "gpu",
    "FACTORY_CPU_PARTITION": "cpu",
    "FACTORY_CONTAINERS": "/images",
}
HOME = Path("/scratch/lab/.factory")
RECORD = HOME / "slurm" / "lab-croco" / "1"

_TWO_NODES = """
extends: lumi
train: {nodes: 2}
network: job
secrets: /home/lab/.config/factory/token
"""


def works() -> Iterator[tuple[str, str, ScriptJob]]:
    """(name of the golden file, site, work)."""

    def work(kind, step, family, **more) -> ScriptJob:
        return ScriptJob(
            kind, step, f"{step}.abc123def456.0f0f0f.{kind}", family, RECORD, HOME, **more
        )

    array = work("array", "generate", "generate", tasks=32, engines=8, gpus=1)
    yield "lumi-array", "lumi", array
    yield "lumi-pairs-of-gpus", "lumi", work("array", "judge", "generate", engines=4, gpus=2)
    yield "lumi-seal", "lumi", work("seal", "generate", "generate", tasks=32, engines=8)
    yield "rocm-train", "generic-rocm", work("whole", "dpo[es]", "train", gpus=8)
    yield (
        "cuda-array",
        "generic-cuda",
        work("array", "score", "generate", tasks=4, engines=4, gpus=1),
    )
    yield "workstation-whole", "workstation", work("whole", "pair", "cpu")
    yield "two-nodes-train", "two-nodes", work("whole", "dpo[all]", "train", gpus=8)
    yield "two-nodes-fetch", "two-nodes", work("fetch", "fetch", "cpu")


def rendered(directory: Path) -> dict[str, str]:
    """Every script, by the name of its file; `directory` is for a site that is written for this."""
    before = dict(os.environ)
    os.environ.update(VARIABLES)
    (directory / "sites").mkdir(exist_ok=True)
    (directory / "sites" / "two-nodes.yaml").write_text(_TWO_NODES)
    version, rendering.__version__ = rendering.__version__, "X"
    try:
        return {name: render(w, site.load(of, directory)) for name, of, w in works()}
    finally:
        rendering.__version__ = version
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in rendered(Path(temporary)).items():
            (GOLDEN / f"{name}.sh").write_text(text)
