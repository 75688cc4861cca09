"""Settings of a language model that is asked for verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from factory.artifacts.hashing import fingerprint
from factory.config import Knobs
from factory.evaluation.judging import prompts
from factory.evaluation.judging.prompts import JudgePrompt
from factory.evaluation.judging.verdicts import APART, MODEL_FIRST, REFERENCE_FIRST


class Ask(Knobs):
    """Settings of a language model as judge. `template`: a file of
    factory/evaluation/judging/templates, or `text`, a wording of one's own (see
    judging.prompts.parse); `fluency`, `naturalness` and `harm` are rubrics, by which each answer is
    rated apart. `orders`: each question twice, with the answers changing places, or once in an
    order drawn by its id. `context`: tokens of question and verdict together, beyond which both
    answers are cut evenly (32,768: the published judge's); of a served judge, whose tokenizer is
    not here, each character of what it reads counts as one. `request`: of a served judge, words
    that go into every request as they are; null takes one out that is there
    otherwise.

    `seed`: of order and drawing, the recipe's where it says none.

    `as-published` (arXiv 2605.26293): the template of that name, which has the criteria and marks
    of the published one in words of our own, one random order, temperature 0.7, 4096 tokens, seed
    1337.
    """

    template: str = "ties"
    text: str | None = None
    orders: Literal["both", "random"] = "both"
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=1)
    seed: int | None = Field(None, ge=0)
    context: int = Field(32768, ge=64)
    request: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _published(cls, value: Any) -> Any:
        if value == "as-published":
            drawn = {"orders": "random", "temperature": 0.7, "max_tokens": 4096, "seed": 1337}
            return {"template": "as-published", **drawn}
        return value

    @field_validator("request")
    @classmethod
    def _words_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "n"):
            if name in value:
                raise ValueError(f"{name} is not for a recipe to say")
        return value

    @model_validator(mode="after")
    def _readable(self) -> Ask:
        if self.text is not None and self.template != type(self).model_fields["template"].default:
            raise ValueError("has both a template and a text: leave one out")
        if self.wording().span and self.orders != type(self).model_fields["orders"].default:
            raise ValueError(
                "has orders, and a rubric reads one answer at a time: leave orders out"
            )
        if self.seed is not None and not self.drawn:
            raise ValueError("seed: nothing is drawn at temperature 0 in both orders; leave it out")
        return self

    @property
    def drawn(self) -> bool:
        """Whether a seed changes the verdicts."""
        return self.temperature > 0 or self.orders == "random"

    def wording(self) -> JudgePrompt:
        """Return the template of the question."""
        if self.text is not None:
            return prompts.parse("own", self.text)
        return prompts.wording(self.template)

    def in_orders(self, question: Mapping[str, Any], seed: int) -> tuple[str, ...]:
        """Return the orders in which a question is asked. They depend on no other language."""
        if self.wording().span:
            return (APART,)
        if self.orders == "both":
            return MODEL_FIRST, REFERENCE_FIRST
        draw = [] if question.get("draw") is None else [question["draw"]]
        drawn = int(fingerprint([seed, question["language"], question["question_id"], *draw]), 16)
        return (MODEL_FIRST if drawn % 2 else REFERENCE_FIRST,)
