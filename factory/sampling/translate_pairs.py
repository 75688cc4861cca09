"""translate_pairs: a model carries preference pairs over into other languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from factory.artifacts.hashing import text_hash
from factory.errors import RecipeError
from factory.language.detect import detect
from factory.sampling.translate import Made, Translate
from factory.sampling.translator import Translation
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job
from factory.stage.stage import StageContext


class TranslatePairs(Translate):
    """Preference pairs translated, greedy: prompt, better and worse answer of each pair of
    `preferences`, as `translate` does prompts. dpo and sft read them as pairs. A pair is dropped
    if one of its texts is, or if its answers come out the same."""

    name: ClassVar[str] = "translate_pairs"
    kind: ClassVar[str] = "pairs"
    repo: ClassVar[str] = "translate-pairs"
    instead_of_from: ClassVar[str] = "let pair take in what is translated already"
    row_wise: ClassVar[bool] = False  # a pair has no column for what it was translated from

    turns: Literal["first", "all"] = "all"  # an answer is one to the whole prompt

    @model_validator(mode="after")
    def _whole_pairs(self) -> TranslatePairs:
        if self.from_ is not None:
            raise ValueError(f"cannot be taken in: {self.instead_of_from}")
        if self.turns != "all":
            raise ValueError("turns: all, since an answer is one to the whole prompt")
        if self.compare:
            raise ValueError("compare is for prompts: nobody wrote these pairs a second time")
        return self

    def native(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        return languages

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        preferences = context.rows("preferences", self.name)
        targets = self.targets(context.languages)
        if self.source_language in targets or not targets:
            raise RecipeError(
                f"stages.{self.name} has nothing to translate from {self.source_language} into",
                "give languages: at least one other than source_language",
            )
        if self.source_language not in preferences:
            raise RecipeError(
                f"stages.{self.name} translates from {self.source_language}, and preferences are "
                f"in {', '.join(preferences)}",
                f"set source_language, or preferences.languages: [{self.source_language}]",
            )
        source = preferences[self.source_language].as_input("preferences")
        model = context.policy(self.model, "model", self.name)
        return [SliceSpec(self.name, code, code, (source, *model)) for code in targets]

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return min(rows["preferences"], self.first or rows["preferences"])

    def _source_rows(self, job: Job, spec: SliceSpec) -> list[dict[str, Any]]:
        """Return the pairs to translate, with all their texts as `messages`."""
        table = job.table(spec, "preferences", "preferences")
        pairs = table.slice(0, self.first).to_pylist()
        texts = [[*pair["prompt"], pair["chosen"][-1], pair["rejected"][-1]] for pair in pairs]
        return [
            {
                "prompt_id": pair["prompt_id"],
                "prompt_hash": text_hash(repr(messages)),
                "messages": messages,
                "source_dataset": None,
                "domain": None,
            }
            for pair, messages in zip(pairs, texts, strict=True)
        ]

    def _todo(self, job: Job, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [] if job.reused(name, self.kind).whole else rows

    def _row(self, prompt: dict[str, Any], translations: Sequence[Translation], code: str) -> Made:
        row, lost = super()._row(prompt, translations, code)
        *asked, chosen, rejected = row["messages"]
        pair = {
            "prompt_id": row["prompt_id"],
            "id": row["prompt_id"],
            "prompt": asked,
            "chosen": [chosen],
            "rejected": [rejected],
            "prompt_language": code,
            "chosen_language": detect(chosen["content"]) or "und",
            "rejected_language": detect(rejected["content"]) or "und",
        }
        if lost is None and chosen["content"].strip() == rejected["content"].strip():
            lost = self._record(row, "same_text", chosen["content"])
        return pair, lost

    def _messages(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return [*row["prompt"], *row["chosen"], *row["rejected"]]
