"""Cards: a manifest in, a README out. Sees no live object; every number is the manifest's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml

from factory.artifact import Manifest

TEMPLATES = Path(__file__).parent.parent / "cards"
INSTALLED = Path(__file__).parent / "_data" / "cards"  # where the wheel puts them

# Size classes as the Hub writes them in `size_categories`.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def render(manifest: Manifest) -> str:
    """The README of the artifact that `manifest` describes."""
    directory = INSTALLED if INSTALLED.is_dir() else TEMPLATES
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directory),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["cell"] = _cell
    kind = manifest.kind if manifest.kind in ("adapter", "model") else "dataset"
    text = environment.get_template(f"{kind}.md.j2").render(
        header=yaml.safe_dump(header(manifest), sort_keys=False),
        m=manifest,
        rows=manifest.rows(),
        models=[record for record in manifest.models if record.source],
        configs=_configs(manifest),
    )
    return text.rstrip() + "\n"


def header(manifest: Manifest) -> dict[str, Any]:
    """The card's metadata block, as the Hub reads it."""
    found: dict[str, Any] = {}
    if manifest.languages:
        found["language"] = list(manifest.languages)
    if manifest.license:
        found["license"] = manifest.license
    if manifest.kind in ("adapter", "model"):
        found |= _model_header(manifest)
    else:
        found["configs"] = [
            {"config_name": name, "data_files": [{"split": "train", "path": pattern}]}
            for name, pattern in _configs(manifest).items()
        ]
        found["size_categories"] = [_size(manifest.rows().out)]
    found["tags"] = ["croco-factory", f"croco-{manifest.stage}"]
    return found


def _model_header(manifest: Manifest) -> dict[str, Any]:
    if manifest.stage == "import":
        lineage = {
            "base_model": manifest.fields["base_model"],
            "base_model_relation": manifest.fields["relation"],
        }
        return {
            **{key: value for key, value in lineage.items() if value},
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
        }
    base = next(record for record in manifest.models if record.role == "base")
    name = str(base.source).partition("@")[0]
    if manifest.kind == "adapter":
        return {
            "base_model": name,
            "base_model_relation": "adapter",
            "library_name": "peft",
            "pipeline_tag": "text-generation",
        }
    return {
        "base_model": name,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
    }


def _configs(manifest: Manifest) -> dict[str, str]:
    """Config name to file pattern: one config a language, whatever models are below it."""
    if manifest.kind in ("adapter", "model"):
        return {}
    return {
        name.partition("/")[0]: f"data/{name.partition('/')[0]}/**/*.parquet"
        if "/" in name
        else f"data/{name}/*.parquet"
        for name in manifest.slices
    }


def _size(rows: int) -> str:
    return next((label for limit, label in _SIZES if rows < limit), "n>1M")


def _cell(value: Any) -> str:
    """A value in one cell of a Markdown table, whatever it holds."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).splitlines()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;").replace("`", "'")
