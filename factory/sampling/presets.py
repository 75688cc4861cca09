"""Well-known datasets of prompts, questions and preferences: one row each says how it is read.

`preset: ultrafeedback` in a source stage stands for such a row. Pure: nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.errors import nearest


@dataclass(frozen=True)
class Preset:
    """One dataset: its `source`, how it is read (as in reading.View), what its card said its
    `license` is when this was written (None: nothing that we know of), the `stages` it is for, and
    what it is `about`. The card at the revision that is read decides what may be done with it."""

    source: str
    license: str | None
    stages: tuple[str, ...]
    about: str
    read: Mapping[str, Any] = field(default_factory=dict)


_PROMPT_STAGES = ("prompts", "questions")

PRESETS: Mapping[str, Preset] = {
    "ultrafeedback": Preset(
        "HuggingFaceH4/ultrafeedback_binarized",
        "mit",
        ("prompts", "questions", "preferences"),
        "61,135 English instructions, each with a better and a worse answer",
        {"split": "train_prefs"},
    ),
    "helpsteer3": Preset(
        "nvidia/HelpSteer3",
        "cc-by-4.0",
        (*_PROMPT_STAGES, "preferences"),
        "38,459 conversations that people compared answers to, some in other languages than "
        "English. Code says a programming language for its language, and so is left out",
        {"config": "preference", "columns": {"messages": "context"}},
    ),
    "tagengo": Preset(
        "lightblue/tagengo-gpt4",
        "other",
        _PROMPT_STAGES,
        "some 78,000 first messages of real users in 74 languages, under the terms of "
        "lmsys-chat-1m: native prompts, so nothing is translated",
        {"columns": {"messages": "conversations", "id": "conversation_id"}},
    ),
    "alpaca-eval": Preset(
        "tatsu-lab/alpaca_eval",
        "cc-by-nc-4.0",
        _PROMPT_STAGES,
        "805 English instructions with answers of a reference model, which are not read. Its "
        "loader is a script, so its file is read",
        {
            "file": "alpaca_eval.json",
            "columns": {"prompt": "instruction", "domain": "dataset"},
        },
    ),
    "x-alpaca-eval": Preset(
        "x-alpacaeval/{language}.json",
        "cc-by-nc-4.0",
        _PROMPT_STAGES,
        "those 805 in 13 languages: the files of data/x-alpacaeval/data in the repository of "
        "arXiv 2503.04647, laid into a folder of that name beside the recipe",
        {"columns": {"prompt": "instruction", "domain": "dataset"}},
    ),
    "m-arenahard-v2": Preset(
        "CohereLabs/m-ArenaHard-v2.0",
        None,
        _PROMPT_STAGES,
        "498 hard or creative questions in each of 23 languages, none of them da gl ga mt cy",
        {"split": "test", "columns": {"id": "question_id", "domain": "category"}},
    ),
    "m-arenahard-v2.1": Preset(
        "CohereLabs/m-ArenaHard-v2.1",
        None,
        _PROMPT_STAGES,
        "the same in more languages, those that CroCo was judged in among them",
        {"split": "test", "columns": {"id": "question_id", "domain": "category"}},
    ),
}


def fields(name: Any, stage: str) -> dict[str, Any]:
    """Return a preset as fields of a source stage. Raises ValueError with the closest name."""
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise ValueError(
            f"no preset {name!r}{nearest(str(name), PRESETS)}; there are {', '.join(PRESETS)}"
        )
    if stage not in preset.stages:
        raise ValueError(f"the preset {name} is for {', '.join(preset.stages)}")
    return {"source": preset.source, **preset.read}
