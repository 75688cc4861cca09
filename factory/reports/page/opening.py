"""The page's first sentences: what was done to which model, and how it was compared. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from factory.artifacts.manifest import InputRecord, Manifest
from factory.reports.formatting import count, language, listed, model_name, plural
from factory.reports.win_rates import JudgedModel

_METHODS = {
    "dpo": "DPO", "online": "online DPO", "rl": "reinforcement learning",
    "sft": "supervised fine-tuning",
}  # fmt: skip


def sentences(manifests: Sequence[Manifest], judged: Sequence[JudgedModel]) -> str:
    """Return what was done to what in one or two sentences; empty if no adapter was trained."""
    trained = [m for m in manifests if m.stage in _METHODS and m.kind == "adapter"]
    bases = _names(read for m in trained for read in m.models if read.role == "base")
    if not trained or not bases:
        return ""
    methods = listed(list(dict.fromkeys(_METHODS[m.stage] for m in trained)))
    codes = list(dict.fromkeys(code for m in trained for code in m.languages))
    text = f"{listed(bases)} {'was' if len(bases) == 1 else 'were'} tuned with {methods}"
    pairs = [m for m in manifests if m.kind in ("pairs", "sft") and not m.fields.get("from")]
    if rows := sum(m.rows().out for m in pairs if m.kind == "pairs"):
        whose = "its" if len(bases) == 1 else "their"
        text += f" on {plural(rows, 'preference pair')} of {whose} own answers"
    text += f" in {listed([language(code) for code in codes])}" if codes else ""
    rewards = _names(r for m in manifests if m.kind == "scores" for r in m.models)
    text += f", chosen by the rewards of {listed(rewards)}" if rewards and pairs else ""
    return f"{text}. {_comparison(judged)}".strip()


def _comparison(judged: Sequence[JudgedModel]) -> str:
    """Return how the tuned models were compared, from the last step that did."""
    if not judged:
        return ""
    last = [table for table in judged if table.step == judged[-1].step]
    models = list(dict.fromkeys(table.model for table in last))
    against = listed([f"the {model_name(n)}" for n in dict.fromkeys(o.reference for o in last)])
    questions = max(row.n_questions for table in last for row in table.rows)
    who = models[0] if len(models) == 1 else f"{count(len(models))} tuned models"
    return (
        f"{last[0].judge.name} compared the answers of {who} with those of {against}, "
        f"to {plural(questions, 'held-out question')}."
    )


def _names(reads: Iterable[InputRecord]) -> list[str]:
    """Return the names of models without their owners, each once."""
    names: dict[str, None] = {}
    for read in reads:
        name = str(read.source or read.repo or read.step).partition("@")[0]
        names[name.rpartition("/")[2]] = None
    return list(names)
