"""Cards: render a README from a manifest. Every number is the manifest's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from pydantic import BaseModel

from factory import config
from factory.artifacts import citations, licenses
from factory.artifacts.manifest import InputRecord, Manifest
from factory.artifacts.resources import shipped
from factory.errors import InputError
from factory.hub import collection
from factory.language.detect import detectable
from factory.language.languages import hub_code
from factory.reports.benchmarks import BenchmarkResult, index_entry
from factory.reports.cards import figures, markdown
from factory.reports.formatting import language, listed, model_name
from factory.reports.learning import behaviour
from factory.reports.questions import ReadQuestion
from factory.reports.win_rates import (
    Comparison,
    describe_blind,
    describe_length_control,
    model_index,
    read_rates,
)

# Size classes as the Hub writes them in `size_categories`.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))  # fmt: skip
# Tasks of the Hub, by kind of row; what trains or is a chat model is text generation.
_TASKS = {
    "scores": ("text-ranking",), "rankings": ("text-ranking",), "verdicts": ("text-ranking",),
    "preferences": ("text-generation", "text-ranking"),
    "pairs": ("text-generation", "text-ranking"),
}  # fmt: skip
_ANNOTATED = ("score", "pair", "best", "transfer", "judge")  # rows with labels that a model gave
NOTE = 500  # characters the Hub allows in a note
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be
_MODELS = ("adapter", "model")
_TAGS = {
    "dpo": ["lora", "trl", "dpo"], "sft": ["lora", "trl", "sft"], "reward": ["trl", "reward-model"],
    "online": ["lora", "trl", "online-dpo"], "rl": ["lora", "trl", "rl"],
    "merge": ["lora", "merge"],
    "pair": ["dpo", "preference"], "best": ["sft"], "preferences": ["preference"],
}  # fmt: skip


def render(
    manifest: Manifest,
    judged: Sequence[Comparison] = (),
    benchmarked: Sequence[BenchmarkResult] = (),
    answered: Sequence[ReadQuestion] = (),
) -> str:
    """Return the README of an artifact, with its win rates (`judged`), benchmark scores
    (`benchmarked`) and answers beside those of its base model (`answered`). Raises InputError for
    a manifest of another version of the factory."""
    kind = manifest.kind if manifest.kind in _MODELS else "dataset"
    terms = licenses.terms(manifest.license) if manifest.license else None
    changed, default = _settings(manifest)
    metadata = config.dump(header(manifest, judged, benchmarked))
    values = {
        "header": markdown.Safe(metadata),
        "m": manifest,
        "rows": manifest.rows(),
        "models": [record for record in manifest.models if record.source],
        "base": base(manifest),
        "lora_rank": _lora_rank(manifest),
        "configs": _configs(manifest),
        "default_config": default_config(manifest),
        "changed": changed,
        "default": default,
        "ways": _flat(manifest.how),
        "inputs": lineage(manifest),
        "figures": figures.captions_of(manifest),
        "comparisons": judged,
        "scored": benchmarked,
        "answered": answered,
        "terms": terms,
        "notice": markdown.Safe(terms.notice if terms else ""),
        "again": markdown.line(_again(manifest)),
        "page": markdown.line(shlex.join(["factory", "report", manifest.repo])),
        **_places(manifest),
        "papers": [markdown.Safe(line) for line in _papers(manifest)],
        "bibliography": markdown.Safe("\n\n".join(_bibliography(manifest))),
    }
    try:
        text = _environment().get_template(f"{kind}.md.j2").render(values)
    except jinja2.TemplateNotFound as error:
        raise InputError(
            f"{manifest.repo}: no card for a {manifest.stage!r} ({error.name})",
            "a newer factory made it: update this one",
        ) from None
    except jinja2.UndefinedError as error:
        raise InputError(
            f"{manifest.repo}: its manifest lacks what its card shows: {error.message}",
            "another version of the factory made it: use that one",
        ) from None
    top = f"---\n{metadata}---\n"
    return top + re.sub(r"\n{3,}", "\n\n", text.removeprefix(top)).rstrip() + "\n"


def header(
    manifest: Manifest,
    judged: Sequence[Comparison] = (),
    benchmarked: Sequence[BenchmarkResult] = (),
) -> dict[str, Any]:
    """Return the card's metadata block, as the Hub reads it."""
    lines: dict[str, Any] = {}
    if manifest.kind not in _MODELS and manifest.recipe:
        lines["pretty_name"] = f"{manifest.recipe}, {manifest.step}"
    if manifest.languages:
        lines["language"] = list(dict.fromkeys(map(hub_code, manifest.languages)))
        if lines["language"] != manifest.languages:
            lines["language_bcp47"] = list(manifest.languages)
    if manifest.license:
        lines |= licenses.header(manifest.license)
    if manifest.kind in _MODELS:
        lines |= _model_header(manifest)
    else:
        lines["configs"] = [
            {
                "config_name": name,
                **({"default": True} if name == default_config(manifest) else {}),
                "data_files": [{"split": "train", "path": pattern}],
            }
            for name, pattern in _configs(manifest).items()
        ]
        lines["task_categories"] = list(_TASKS.get(manifest.kind, ("text-generation",)))
        if manifest.stage in _ANNOTATED and not manifest.fields.get("from"):
            lines["annotations_creators"] = ["machine-generated"]
        lines["size_categories"] = [_size(manifest.rows().out)]
    tags = [f"croco-{manifest.stage}", *_TAGS.get(manifest.stage, [])]
    lines["tags"] = ["croco-factory", *tags]
    name = manifest.repo.partition("/")[2]
    results = [entry for index in model_index(name, judged) for entry in index["results"]]
    results += [index_entry(row) for row in benchmarked]
    if results:
        lines["model-index"] = [{"name": name, "results": results}]
    return lines


def default_config(manifest: Manifest) -> str:
    """Return the config that is loaded when none is named: English, or the first."""
    configs = _configs(manifest)
    return "en" if "en" in configs else next(iter(configs), "")


def note(manifest: Manifest, tag: str) -> str:
    """Return a line for a collection: step, rows, the main number, and the tag."""
    rows = f"{manifest.step}: {manifest.rows().out} rows"
    return ", ".join(filter(None, [rows, _headline(manifest), tag]))[:NOTE]


@dataclass(frozen=True)
class InputRow:
    """One input of an artifact and the slices that read it: a row of the card's lineage."""

    roles: str
    read: InputRecord
    kind: str
    slices: list[str]

    @property
    def link(self) -> markdown.Safe:
        """The input at its revision, as a link where it is on a hub."""
        if self.read.repo:
            tag = str(self.read.tag)
            return markdown.link(f"{self.read.repo}@{tag}", self.read.repo, self.kind, tag)
        name = str(self.read.source or self.read.step).partition("@")[0]
        if self.read.served:
            return markdown.inline(f"{name}, served, not pinned")
        if self.read.revision is None:
            return markdown.inline(name)
        label = f"{name}@{self.read.revision[:12]}"
        return markdown.link(label, name, self.kind, self.read.revision)


def lineage(manifest: Manifest) -> list[InputRow]:
    """Return all inputs, each artifact and outside source once."""
    models = {record.digest for record in manifest.models}
    rows: dict[tuple[str, ...], InputRow] = {}
    for name, record in manifest.slices.items():
        for read in record.inputs:
            where = read.repo or read.source or str(read.step)
            key = (read.role, where, str(read.tag or read.revision))
            kind = "model" if read.digest in models else "dataset"
            row = rows.setdefault(key, InputRow(read.role, read, kind, []))
            if name not in row.slices:
                row.slices.append(name)
    return list(rows.values())


@cache
def _environment() -> jinja2.Environment:
    """Return the templates' environment. It escapes all values that are not Markdown already."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("cards")),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, int | float) else markdown.inline(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["behaviour"] = lambda manifest: behaviour(manifest.stats)
    environment.filters["blind"] = lambda language, manifest: describe_blind(
        language, manifest.stats.get("judge_blind", {})
    )
    environment.filters["languages"] = lambda codes: listed([language(code) for code in codes])
    environment.filters["language"] = language
    environment.tests["detectable"] = detectable
    environment.filters["model_name"] = model_name
    environment.filters["controlled"] = lambda row: describe_length_control(read_rates(row))
    environment.filters["rate"] = lambda row, name: describe_length_control(read_rates(row), name)
    for name in ("cell", "share", "code", "quoted", "block", "link", "url"):
        environment.filters[name] = getattr(markdown, name)
    return environment


def _model_header(manifest: Manifest) -> dict[str, Any]:
    if manifest.stage == "import":
        relation = {
            "base_model": manifest.fields["base_model"],
            "base_model_relation": manifest.fields["relation"],
        }
        return {
            **{key: value for key, value in relation.items() if value},
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
        }
    adapter = manifest.kind == "adapter"
    data = [
        read.repo or str(read.source).partition("@")[0]
        for record in manifest.slices.values()
        for read in record.inputs
        if read.digest not in {model.digest for model in manifest.models}
        and (read.repo or read.revision)
    ]
    return {
        "base_model": base(manifest)[0],
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation" if adapter else "text-classification",
        **({"datasets": list(dict.fromkeys(data))} if data else {}),
    }


def base(manifest: Manifest) -> tuple[str, str]:
    """Return (repo, revision) of the model that this one was trained from; empty for other
    kinds."""
    base = next((record for record in manifest.models if record.role == "base"), None)
    if base is None:
        return "", ""
    if base.source:
        return base.source.partition("@")[0], str(base.revision)
    return str(base.repo or base.step), str(base.tag or f"fp-{base.fingerprint}")


def _lora_rank(manifest: Manifest) -> int:
    default = (manifest.fields.get("lora") or {}).get("r", _LORA_RANKS[0])
    rank = int(manifest.stats.get("rank", default))
    return next((allowed for allowed in _LORA_RANKS if allowed >= rank), _LORA_RANKS[-1])


def _configs(manifest: Manifest) -> dict[str, str]:
    """Return config name to file pattern: one config a language, for all its models. A language
    without rows has none, unless all are empty: datasets cannot load it."""
    if manifest.kind in _MODELS:
        return {}
    filled = [name for name, record in manifest.slices.items() if record.rows.out]
    return {
        name.partition("/")[0]: f"data/{name.partition('/')[0]}/**/*.parquet"
        if "/" in name
        else f"data/{name}/*.parquet"
        for name in filled or manifest.slices
    }


def _size(rows: int) -> str:
    return next((label for limit, label in _SIZES if rows < limit), "100M<n<1B")


def _settings(manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a step, those that differ from their default first; without its stage
    here, all count as defaults."""
    from factory.planning.stages import STAGES

    fields = _flat(manifest.fields)
    stage = next((stage for stage in STAGES if stage.name == manifest.stage), None)
    if stage is None:
        return {}, fields
    usual: dict[str, Any] = {}
    for name, field in stage.model_fields.items():
        value = field.get_default(call_default_factory=True)
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        usual |= _flat({field.alias or name: list(plain) if isinstance(plain, tuple) else plain})
    changed = {k: v for k, v in fields.items() if k not in usual or usual[k] != v}
    return changed, {k: v for k, v in fields.items() if k not in changed}


def _again(manifest: Manifest) -> str:
    """Return the command that makes the collection of an artifact again from this step on. Rows of
    a file that was not published cannot be read again: then from the first step after them."""
    command = ["factory", "reproduce", manifest.repo]
    records = [read for record in manifest.slices.values() for read in record.inputs]
    if not any(r.source and r.revision is None and not r.served for r in records):
        command += ["--from", manifest.step]
    return shlex.join(command)


def _places(manifest: Manifest) -> dict[str, markdown.Safe]:
    """Return links to the collection of an artifact and to the Space with its results page. The
    Hub numbers collections by itself: the link is to all those of the namespace."""
    title, namespace = collection.title_for(manifest.recipe), manifest.repo.partition("/")[0]
    return {
        "collection": markdown.path_link(title, f"{namespace}/collections", namespace),
        "results": markdown.path_link(
            "results page", f"spaces/{namespace}/{collection.space_name(title)}", namespace
        ),
    }


def _papers(manifest: Manifest) -> list[str]:
    """Return the cited papers that are on arXiv as links, of which the Hub makes their pages."""
    papers = (citations.paper(text) for text in _bibliography(manifest))
    return [f"[{title}](https://arxiv.org/abs/{number})" for title, number in filter(None, papers)]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = ", ".join(map(str, value)) if _words(value) else value
    return flat


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)


@cache
def _references() -> dict[str, str]:
    return citations.entries(shipped("cards/references.bib").read_text(encoding="utf-8"))


def _bibliography(manifest: Manifest) -> list[str]:
    """Return the cited entries; an unknown key is left out."""
    return [text for key, text in _references().items() if key in manifest.references]


def _headline(manifest: Manifest) -> str:
    stats = manifest.stats
    if not stats:  # rows that somebody else made
        return ""
    match manifest.stage:
        case "generate":
            cut = sum(s["cut_off"] for s in stats["by_language"].values())
            samples = sum(s["samples"] for s in stats["by_language"].values())
            return f"{cut / samples:.0%} cut off" if samples else ""
        case "score":
            means = [s["mean"] for s in stats["by_language"].values() if "mean" in s]
            return f"mean reward {sum(means) / len(means):.3g}" if means else ""
        case "pair":
            margins = [s["mean_margin"] for s in stats["by_slice"].values() if "mean_margin" in s]
            return f"mean margin {sum(margins) / len(margins):.3g}" if margins else ""
        case "euroeval":
            significant = [d for d in stats["deltas"] if d["significant"]]
            better = sum(d["delta"] > 0 for d in significant)
            text = f"{len(stats['scores'])} scores"
            return text + (
                f", {better} better and {len(significant) - better} worse" if significant else ""
            )
        case "judge":
            overall = {row["model"]: row for row in reversed(stats["comparisons"])}
            rates = [f"{name} {row['shown']}" for name, row in overall.items() if "shown" in row]
            return "; ".join(reversed(rates))
    final = stats.get("final") or {}
    accuracy = final.get("eval_rewards/accuracies", final.get("eval_accuracy"))
    return "" if accuracy is None else f"held-out accuracy {accuracy:.0%}"
