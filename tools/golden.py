"""Take golden manifests from a home in which recipes/smoke.yaml ran; render cards and schema anew.

python -m tools.golden HOME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from factory.artifacts.manifest import Manifest, read_manifest
from factory.reports.cards import card

HERE = Path(__file__).parents[1] / "tests" / "golden"
SCHEMA = HERE.parents[1] / "docs" / "manifest.schema.json"


def manifests() -> dict[str, Manifest]:
    """The manifests in tests/golden, by the name of their files."""
    return {
        path.stem: Manifest.model_validate_json(path.read_bytes())
        for path in sorted(HERE.glob("*.json"))
    }


def take(home: Path) -> None:
    """Keep the manifests of the recipe `smoke` that are at rest in a home, and of a transfer."""
    for file in home.glob("work/local/*/artifact/factory.json"):
        manifest = read_manifest(file.parent)
        ours = manifest.recipe == "smoke" or manifest.stage == "transfer"
        if ours and "~" not in file.parent.parent.name:
            name = manifest.step.replace("[", "-").rstrip("]")
            (HERE / f"{name}.json").write_text(manifest.dump(), encoding="utf-8")


def schema() -> str:
    """The JSON schema of `factory.json`."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(found | Manifest.model_json_schema(), indent=1) + "\n"


def render() -> None:
    """Write the card of every manifest in tests/golden, and the schema."""
    SCHEMA.write_text(schema(), encoding="utf-8")
    for name, manifest in manifests().items():
        (HERE / f"{name}.md").write_text(card.render(manifest), encoding="utf-8")


if __name__ == "__main__":
    for home in sys.argv[1:]:
        take(Path(home))
    render()
