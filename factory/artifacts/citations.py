"""Citations: the papers and tools behind an artifact, as keys of cards/references.bib."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Stages whose work is a method or a tool of somebody's.
_STAGES: Mapping[str, tuple[str, ...]] = {
    "translate": ("transformers", "langid"),
    "generate": ("croco", "transformers", "langid"),
    "pair": ("croco",),
    "best": ("croco",),
    "reward": ("lora", "trl", "peft"),
    "sft": ("lora", "trl", "peft"),
    "dpo": ("croco", "dpo", "lora", "trl", "peft"),
    "online": ("croco", "dpo", "lora", "trl", "peft"),
    "rl": ("grpo", "rloo", "lora", "trl", "peft"),
    "merge": ("lora", "peft"),
    "euroeval": ("euroeval",),
    "arena": ("transformers", "langid"),
}
# Outside names that a paper stands behind, wherever they are hosted.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"skywork-reward-v2", "skywork"),
    (r"m-arenahard", "arenahard"),
    (r"ultrafeedback", "ultrafeedback"),
    (r"eurollm-9b", "eurollm"),
    (r"(^|/)qwen3-", "qwen3"),
    (r"smollm2", "smollm2"),
)


def citation_keys(
    stage: str,
    fields: Mapping[str, Any],
    how: Mapping[str, Any],
    sources: Iterable[str],
    upstream: Iterable[str],
) -> list[str]:
    """Return the citation keys of one artifact: of its stage, its fields, its engine, the outside
    `sources` it read, and of everything `upstream`."""
    keys = [*_STAGES.get(stage, ())]
    if stage in ("pair", "best"):
        if fields.get("length_control"):
            keys.append("icr")
        if fields.get("vote"):
            keys.append("calm")
        if fields.get("rule") == "dcrm":
            keys.append("dcrm")
        elif any("sigma" in str(fields.get(side)) for side in ("chosen", "rejected")):
            keys.append("sweetspot")
    if fields.get("kind") == "implicit":
        keys.append("icr")
    if how.get("engine") == "vllm":
        keys.append("vllm")
    keys += [
        key
        for source in sources
        for pattern, key in _NAMES
        if re.search(pattern, source, re.IGNORECASE)
    ]
    return list(dict.fromkeys([*keys, *upstream]))


def entries(bib: str) -> dict[str, str]:
    """Parse the entries of a BibTeX file: key to text, in order."""
    matches = re.finditer(r"^@\w+\{([\w-]+),\n.*?^\}$", bib, re.DOTALL | re.MULTILINE)
    return {entry[1]: entry[0] for entry in matches}


def paper(entry: str) -> tuple[str, str] | None:
    """Return title and arXiv number of a BibTeX entry; None for a work that is not on arXiv."""
    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", entry) or re.search(
        r"eprint = \{(\d{4}\.\d{4,5})\}", entry
    )
    title = re.search(r"title = \{(.*)\},$", entry, re.MULTILINE)
    if number is None or title is None:
        return None
    return re.sub(r"[{}]", "", title[1]).replace("--", "\u2013"), number[1]
