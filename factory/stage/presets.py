"""Well-known datasets of prompts, questions and preferences: one row each says how it is read.

`preset: ultrafeedback` in a source stage, or where preference pairs are read, stands for such a
row. Pure: nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.errors import nearest


@dataclass(frozen=True)
class Preset:
    """One dataset: its `source`, how it is read (as in readers.View), what its card said its
    `license` is when this was written (None: nothing that we know of), the `stages` it is for, and
    what it is `about`. One that is for preferences is for pairs too. The card at the revision that
    is read decides what may be done with it. A comment says where its columns were read."""

    source: str
    license: str | None
    stages: tuple[str, ...]
    about: str
    read: Mapping[str, Any] = field(default_factory=dict)


_PROMPTS = ("prompts", "questions")
_ALL = (*_PROMPTS, "preferences")
_LETTERS = "abcd"

PRESETS: Mapping[str, Preset] = {
    "ultrafeedback": Preset(  # columns: its viewer, and the cards of copies of it
        "HuggingFaceH4/ultrafeedback_binarized",
        "mit",
        _ALL,
        "61,135 English instructions, each with a better and a worse answer",
        {"split": "train_prefs"},
    ),
    "ultrafeedback-cleaned": Preset(  # columns: its card, dataset_info
        "argilla/ultrafeedback-binarized-preferences-cleaned",
        "mit",
        _ALL,
        "60,917 of those, without TruthfulQA's, by the mean of the ratings of each aspect",
        {"columns": {"domain": "source"}},
    ),
    "tulu-3": Preset(  # columns: its card, dataset_info
        "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        "odc-by",
        _ALL,
        "271,409 pairs of several sets, some answers of the 8B model itself; `source:` names the "
        "mixture of another size, whose columns are the same. Parts are not for commerce",
        {"columns": {"domain": "source"}},
    ),
    "tulu-2.5": Preset(  # splits: its card; columns: code that reads it
        "allenai/tulu-2.5-preference-data",
        "odc-by",
        _ALL,
        "English sets of preferences in one form, a split each: `split:` names one (hh_rlhf, "
        "nectar, …). Licences differ by split",
        {"split": "ultrafeedback_mean_aspects", "columns": {"messages": "chosen"}},
    ),
    "nectar": Preset(  # columns: its card, and the dataset_info of a copy
        "berkeley-nest/Nectar",
        "apache-2.0",
        _ALL,
        "183,000 English conversations, each with seven answers that GPT-4 ranked: the best and "
        "the worst are the pair. Not for models that compete with OpenAI",
    ),
    "hh-rlhf": Preset(  # columns: its card
        "Anthropic/hh-rlhf",
        "mit",
        _ALL,
        "160,800 English conversations with a better and a worse last answer, helpful and "
        "harmless. Its prompts may upset",
        {"columns": {"messages": "chosen"}},
    ),
    "helpsteer3": Preset(  # columns: the dataset_info of a copy
        "nvidia/HelpSteer3",
        "cc-by-4.0",
        _ALL,
        "38,459 conversations that people compared answers to, some in other languages than "
        "English. Code says a programming language for its language, and so is left out",
        {"config": "preference", "columns": {"messages": "context"}},
    ),
    "coig-p": Preset(  # columns: the training configuration of its authors' repository
        "m-a-p/COIG-P",
        None,
        _ALL,
        "some 1,000,000 Chinese pairs in six domains, answered and scored by models",
        {"config": {"zh": "default"}, "columns": {"prompt": "conversations"}},
    ),
    "wildfeedback": Preset(  # configs: its card; columns: code that reads it
        "microsoft/WildFeedback",
        "odc-by",
        _ALL,
        "20,281 English pairs, from users who were not content with an answer of ChatGPT",
        {"config": "wildfeedback", "columns": {"prompt": "conversations"}},
    ),
    "community-alignment": Preset(  # columns: code that reads it
        "facebook/community-alignment-dataset",
        "cc-by-4.0",
        _ALL,
        "conversations in en fr it pt hi: of four answers people chose one. The first turn is "
        "read; the worse answer is one of the three others, by the hash of its text",
        {
            "columns": {
                "prompt": "first_turn_prompt",
                "id": "conversation_id",
                "language": "assigned_lang",
                "preferred": "first_turn_preferred_response",
                **{f"response_{letter}": f"first_turn_response_{letter}" for letter in _LETTERS},
            }
        },
    ),
    "menlo": Preset(  # columns: its card, dataset_info
        "facebook/menlo",
        None,
        _ALL,
        "4,657 pairs in 47 varieties of languages, both answers rated by people from 1 to 5 for "
        "how native they are",
        {
            "columns": {
                "prompt": "raw_prompt",
                "language": "lang_code",
                "domain": "dimension",
                "score_a": "label_a",
                "score_b": "label_b",
            }
        },
    ),
    "care": Preset(  # columns: its card, dataset_info
        "geyang627/CARE",
        "mit",
        _ALL,
        "3,490 questions about Chinese, Arab and Japanese culture, with answers that natives rated "
        "from 1 to 10: the best and the worst are the pair. No column says the language of a row, "
        "so that is detected",
        {
            "group": "question",
            "detect": True,
            "columns": {
                "prompt": "question",
                "answer": "response",
                "score": "human_rating",
                "domain": "cul_type",
            },
        },
    ),
    "m-rewardbench": Preset(  # configs and columns: its card
        "CohereLabsCommunity/multilingual-reward-bench",
        "odc-by",
        _ALL,
        "2,870 pairs in each of 23 languages, translated from RewardBench: to evaluate reward "
        "models on, not to train them",
        {"split": "test", "columns": {"domain": "subset"}},
    ),
    "aya-redteaming": Preset(  # splits: its card; columns: the dataset_info of a copy
        "CohereLabs/aya_redteaming",
        "apache-2.0",
        _PROMPTS,
        "harmful prompts in ar en tl fr hi ru sr es, written by people: `where: {global_or_local: "
        "local}` reads those that one culture alone understands",
        {
            "split": "arabic+english+filipino+french+hindi+russian+serbian+spanish",
            "columns": {"domain": "harm_category"},
        },
    ),
    "tagengo": Preset(
        "lightblue/tagengo-gpt4",
        "other",
        _PROMPTS,
        "some 78,000 first messages of real users in 74 languages, under the terms of "
        "lmsys-chat-1m: native prompts, so nothing is translated",
        {"columns": {"messages": "conversations", "id": "conversation_id"}},
    ),
    "alpaca-eval": Preset(
        "tatsu-lab/alpaca_eval",
        "cc-by-nc-4.0",
        _PROMPTS,
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
        _PROMPTS,
        "those 805 in 13 languages: the files of data/x-alpacaeval/data in the repository of "
        "arXiv 2503.04647, laid into a folder of that name beside the recipe",
        {"columns": {"prompt": "instruction", "domain": "dataset"}},
    ),
    "m-arenahard-v2": Preset(
        "CohereLabs/m-ArenaHard-v2.0",
        None,
        _PROMPTS,
        "498 hard or creative questions in each of 23 languages, none of them da gl ga mt cy",
        {"split": "test", "columns": {"id": "question_id", "domain": "category"}},
    ),
    "m-arenahard-v2.1": Preset(
        "CohereLabs/m-ArenaHard-v2.1",
        None,
        _PROMPTS,
        "the same in more languages, those that CroCo was judged in among them",
        {"split": "test", "columns": {"id": "question_id", "domain": "category"}},
    ),
}


def fields(name: Any, stage: str) -> dict[str, Any]:
    """Return a preset as fields of a source stage, or of what reads `pairs`. Raises ValueError with
    the closest name."""
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise ValueError(
            f"no preset {name!r}{nearest(str(name), PRESETS)}; there are {', '.join(PRESETS)}"
        )
    if ("preferences" if stage == "pairs" else stage) not in preset.stages:
        raise ValueError(f"the preset {name} is for {', '.join(preset.stages)}")
    return {"source": preset.source, "split": "train", **preset.read}


def expanded(data: Any, stage: str) -> Any:
    """Return what a recipe says of a source with its `preset:` replaced by what that stands for;
    what stands beside it goes over that. Raises ValueError."""
    if not isinstance(data, dict) or "preset" not in data:
        return data
    rest = {key: value for key, value in data.items() if key != "preset"}
    return {**fields(data["preset"], stage), **rest}
