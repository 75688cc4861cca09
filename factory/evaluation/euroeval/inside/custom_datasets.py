"""Benchmarks of a recipe's own, from own.json beside this file. EuroEval reads it in a run."""

import json
from pathlib import Path

from euroeval.data_models import DatasetConfig
from euroeval.languages import get_all_languages
from euroeval.tasks import get_all_tasks


def _config(own):
    """Return EuroEval's config of a benchmark, with the prompts of the language that it names."""
    task, languages = get_all_tasks()[own["task"]], get_all_languages()
    prompts = task.template_dict[languages[own["prompts"]]]
    return DatasetConfig(
        task=task,
        languages=[languages[own["language"]]],
        name=own["name"],
        pretty_name=own["name"],
        source=f"own/{own['name']}",
        labels=own["labels"] or None,
        prompt_prefix=prompts.default_prompt_prefix,
        prompt_template=prompts.default_prompt_template,
        instruction_prompt=prompts.default_instruction_prompt,
        prompt_label_mapping=prompts.default_prompt_label_mapping,
        train_split="train" if "train" in own["rows"] else None,
        val_split="val" if "val" in own["rows"] else None,
    )


_OWN = json.loads(Path(__file__).with_name("own.json").read_text(encoding="utf-8"))
globals().update({f"OWN_{number}": _config(own) for number, own in enumerate(_OWN)})
