"""Models as recipes name them: a Hub repo, an adapter on it, a step that trains it, or a server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from factory.config import Knobs


class ModelRef(Knobs):
    """A model: a Hub repo by `name` (with `revision`), or `step`, a stage that trains it here.
    `served`: what its server calls a model whose weights are not here; a judge alone can be that.
    `adapter`: a Hub repo `org/name[@revision]` with a LoRA adapter that is put on it.

    `kind` says what is made of it. All but `causal` are rewards: of a `classifier`; `implicit`,
    in which a tuned model is compared with the one it was tuned from, `reference`, which is
    another model of the recipe; `generative`, in which a chat model is asked yes or no."""

    name: str | None = None
    revision: str = "main"
    adapter: str | None = None
    step: str | None = None
    served: str | None = Field(None, min_length=1)
    kind: Literal["causal", "classifier", "implicit", "generative"] = "causal"
    reference: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> ModelRef:
        if sum(source is not None for source in (self.name, self.step, self.served)) != 1:
            raise ValueError("needs one of name, step and served")
        if self.served is not None and (
            self.kind != "causal" or self.adapter is not None or self.revision != "main"
        ):
            raise ValueError(
                "a served model is told by its name alone: it has no kind, adapter or revision here"
            )
        if self.name is not None and self.name.count("/") != 1:
            raise ValueError(f"{self.name!r} is not of the form org/name")
        if self.kind == "implicit" and self.reference is None:
            raise ValueError("an implicit reward needs reference: the model that it was tuned from")
        if self.kind != "implicit" and self.reference is not None:
            raise ValueError(f"reference is for kind: implicit, not for {self.kind}")
        if self.adapter is not None and (
            self.adapter.partition("@")[0].count("/") != 1 or self.adapter.endswith("@")
        ):
            raise ValueError(f"{self.adapter!r} is not of the form org/name[@revision]")
        return self
