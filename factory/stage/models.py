"""Models as recipes name them: a Hub repo, an adapter on it, a step that trains it, or a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from factory.config import REFERENCE, Knobs

if TYPE_CHECKING:
    from factory.stage.inputs import Need
    from factory.stage.stage import StageContext


_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/|models/)?"
    r"([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/([^/?#]+))?"
)


# a step that trains adapters, of whatever round: dpo, dpo-2[all]
_TRAINED = re.compile(r"(sft|dpo)(-[2-9]|-[1-9]\d)?(\[[\w.-]+\])?")


def check_repo_name(name: str) -> None:
    """Raise ValueError, with what is wrong and how to write it, for an address or a directory in
    the place of a repo's name."""
    if found := _ADDRESS.match(name):
        at = f"@{found[2]}" if found[2] not in (None, "main") else ""
        raise ValueError(f"{name!r} is an address, not a name", f"write {found[1]}{at}")
    if "://" in name:
        raise ValueError(
            f"{name!r} is an address, not a name", "write org/name, and name its hub with --hub"
        )
    directory = name.count("/") != 1 and Path(name).is_dir()
    if directory or name.startswith((".", "/", "~")):
        last = name.rstrip("/").rpartition("/")[2].lstrip(".~") or "NAME"
        raise ValueError(
            f"{name!r} is a directory, and this is the name of a repo",
            f"bring it in with factory hub exec -- hf upload local/{last} {name}, then write "
            f"local/{last}",
        )


class ModelRef(Knobs):
    """A model: a Hub repo by `name` (with `revision`), or `step`, a stage that trains it here.
    `served`: what its server calls a model whose weights are not here; a judge and a generative
    reward alone can be that.
    `adapter`: a Hub repo `org/name[@revision]` with a LoRA adapter that is put on it, or a step of
    the recipe that trains one (`dpo[all]`). `base`: the same as `name`, to say that what the
    adapter calls its base (a path, another repo) is this one.

    `kind`: `causal` for a model that answers, or the kind of a reward; each kind of reward has a
    table below, with the keys that it adds."""

    name: str | None = None
    revision: str = "main"
    adapter: str | None = None
    base: str | None = None
    step: str | None = None
    served: str | None = Field(None, min_length=1)
    kind: str = "causal"

    may_be_served: ClassVar[bool] = True  # a kind of reward says so itself

    @model_validator(mode="after")
    def _names_one(self) -> ModelRef:
        if sum(source is not None for source in (self.name, self.step, self.served)) != 1:
            raise ValueError("needs one of name, step and served")
        if self.served is not None and (
            not self.may_be_served or self.adapter is not None or self.revision != "main"
        ):
            raise ValueError(
                "a served model is told by its name alone: it has no adapter or revision here, and "
                "is of kind causal or generative"
            )
        here = self.adapter is not None and _TRAINED.fullmatch(self.adapter)
        for name in (self.name, None if here else self.adapter):
            if name is not None:
                check_repo_name(name)
        if self.name is not None and self.name.count("/") != 1:
            raise ValueError(
                f"{self.name!r} is not of the form org/name",
                "write org/name; a directory of yours becomes local/NAME with "
                "factory hub exec -- hf upload local/NAME DIRECTORY",
            )
        if (
            self.adapter is not None
            and not here
            and (self.adapter.partition("@")[0].count("/") != 1 or self.adapter.endswith("@"))
        ):
            raise ValueError(f"{self.adapter!r} is not of the form org/name[@revision]")
        if self.base is not None and (self.adapter is None or self.base != self.name):
            raise ValueError("base is that of an adapter, and the same as name")
        return self


class RewardModel(ModelRef):
    """A model that gives rewards, as stages see it when they plan.

    The fields that a subclass adds are its knobs: hashed, as a stage's are, where they are not at
    their default. A subclass that can score is a `Backend` of factory/rewards/backends/."""

    may_be_served: ClassVar[bool] = False
    # A subclass sets its kind as `kind: Literal["…"]`, without a default.
    version: ClassVar[int] = 1  # raise it when the meaning of the rewards changes
    # Whether the roles of its models tell its kind, so that the kind itself is not hashed.
    identified_by_roles: ClassVar[bool] = False
    # Roles whose tokenizer prints whole conversations and never the opening of an answer.
    conversation_roles: ClassVar[frozenset[str]] = frozenset()
    # Whether its reward is the logit of one sequence classifier, read as `reward`, and no more.
    is_plain_classifier: ClassVar[bool] = False

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the models that it reads, by role; `name` is its own under models:.
        Raises RecipeError for a model that it cannot use."""
        raise NotImplementedError

    def knobs(self) -> dict[str, Any]:
        """Return the knobs of this kind that are not at their default, as plain values."""
        names = {
            name
            for name, info in type(self).model_fields.items()
            if name not in ModelRef.model_fields and REFERENCE not in info.metadata
        }
        return self.model_dump(mode="json", include=names, exclude_defaults=True)

    def identity_fields(self) -> dict[str, Any]:
        """Return all that is hashed of it beside the content of its models."""
        fields = {} if self.identified_by_roles else {"kind": self.kind}
        if self.version > 1:
            fields["version"] = str(self.version)
        return {**fields, **self.knobs()}
