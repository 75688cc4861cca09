"""Why a slice has few pairs, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.artifacts.manifest import Rows
from factory.pairs.config import DropPairRules

# Why a prompt has no pair, and why an answer may not be chosen, in words.
_SHORT = {
    "none_to_choose": "no answer may be chosen",
    "no_lower_answer": "no answer is rated lower than the best",
    "pool_incomplete": "too few of the answers have a reward",
    "no_samples": "no answers",
}
_UNFIT = {
    "unfinished": "cut off",
    "wrong_language": "in another language",
    "no_language": "in a language that could not be told",
    "empty": "empty",
    "other_source": "of another source",
}


def shortage(name: str, rows: Rows, figures: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a slice of the stage `name` has few rows, and the knobs that change that."""
    keep = f"{name}.keep" + (".chosen" if name == "pair" else "")
    knobs = {
        "unfinished": f"raise generate.max_tokens or set {keep}.finished: false",
        "wrong_language": f"set {keep}.language: any",
        "no_language": f"set {keep}.language: any",
        "other_source": f"set {keep}.source: any",
        "no_lower_answer": "raise generate.n or generate.temperature",
        "over_budget": f"raise {name}.budget.tokens",
    }
    whys, fixes = [], []
    for reason, n in sorted(rows.dropped.items(), key=lambda item: -item[1]):
        why = _SHORT.get(reason, reason.replace("_", " "))
        causes = [reason]
        if reason == "none_to_choose":
            unfit = (figures.get("passed_over") or {}).get("chosen") or {}
            causes = [name for name, count in unfit.items() if count]
            counts = [f"{unfit[name]} of {figures['answers']} {_UNFIT[name]}" for name in causes]
            why += f" ({', '.join(counts)})" if counts else ""
        whys.append(f"{n} prompts: {why}")
        drop = f"change {name}.drop.{reason}"
        fixes += [
            knobs.get(cause, drop if cause in DropPairRules.model_fields else "")
            for cause in causes
        ]
    return "; ".join(whys), "; ".join(dict.fromkeys(filter(None, fixes)))
