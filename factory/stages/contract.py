"""What a stage is: its knobs, the slices it lays out, and what each of them reads.

A stage is a pydantic model whose fields are its knobs (see factory/knobs.py); what lies under
`how` says how it is run and is never hashed. Its work is a method that is handed a job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from factory.errors import FactoryError
from factory.knobs import EXTENT, REFERENCE, Knobs, Mark
from factory.reading import View
from factory.stages.needs import Need, Outside, SliceSpec

if TYPE_CHECKING:
    from factory.stages.job import Job, Outcome
    from factory.stages.scope import Scope


class From(View):
    """Somebody else's artifact in the place of a step: `org/name@revision`, or a file beside the
    recipe. `{language}` is filled in, and `{group}` for what is trained. See reading.View."""

    source: Annotated[str, REFERENCE]

    @field_validator("source")
    @classmethod
    def _fills_in(cls, value: str) -> str:
        return filled(value, {"language": "en", "group": "all"}) and value


def filled(source: str, values: Mapping[str, str]) -> str:
    """A source with its placeholders filled in. Raises ValueError for one that is not known."""
    found = source
    for name, value in values.items():
        found = found.replace(f"{{{name}}}", value)
    if set("{}") & set(found):
        known = " or ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"{source!r} has a placeholder other than {known}")
    return found


class How(Knobs):
    """How a stage is run; never part of its identity."""


# What can be taken in from outside, and what to do about the rest.
TAKEN_IN = frozenset({"samples", "scores", "pairs", "sft", "adapter"})
_INSTEAD = {
    "translate": "let prompts read what is translated already",
    "reward": "name the model under models: instead",
    "arena": "its answers must all be decoded alike; run it",
}


class Stage(Knobs):
    """Base of all stages. Subclasses set `name`, `kind`, `repo` and, when the meaning of their
    output changes, raise `version`."""

    name: ClassVar[str]
    kind: ClassVar[str]  # a kind of row in schemas.py, or "adapter" or "model"
    repo: ClassVar[str]  # `{org}/{recipe}-{repo}`
    version: ClassVar[int] = 1
    seeded: ClassVar[bool] = False  # whether the recipe's seed changes the output
    # Whether a row depends on nothing but the input rows at its own address. Of such a stage,
    # rows made earlier by the same rules stand in a larger artifact.
    row_wise: ClassVar[bool] = False

    from_: From | None = Field(None, alias="from", exclude_if=lambda value: value is None)
    how: How = How()

    @field_validator("from_", mode="before")
    @classmethod
    def _short_from(cls, value: Any) -> Any:
        """`from: org/name@revision` for `from: {source: org/name@revision}`."""
        if value is not None and cls.kind not in TAKEN_IN:
            raise ValueError(f"{cls.name} cannot be taken in: {_INSTEAD.get(cls.name, 'run it')}")
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_beside_from(self) -> Stage:
        if self.from_ is not None and (beside := self._fields(lambda marks: not marks)):
            raise ValueError(
                f"with from:, {next(iter(beside))} has no meaning: these rows are made already"
            )
        return self

    def laid_out(self, scope: Scope) -> list[SliceSpec]:
        """Every slice of every step of this stage, in order: those it makes, or those it takes
        in. Raises RecipeError."""
        if self.from_ is None:
            return self.slices(scope)
        if self.kind != "adapter":
            return [self._taken_in(language, language, ()) for language in scope.languages]
        base = scope.model(getattr(self, "base", "policy"), "base", self.name)
        each = getattr(self, "each", "all")
        groups = scope.languages if each == "language" else each
        groups = (groups,) if isinstance(groups, str) else groups
        return [
            self._taken_in(group, None if group == "all" else group, (base,)) for group in groups
        ]

    def _taken_in(self, name: str, language: str | None, needs: tuple[Need, ...]) -> SliceSpec:
        assert self.from_ is not None
        adapter = self.kind == "adapter"
        source = filled(self.from_.source, {"language": language or "", "group": name})
        step = f"{self.name}[{name}]" if adapter else self.name
        outside = Outside("source", source, "model" if adapter else "dataset")
        return SliceSpec(step, name, language, (*needs, outside))

    def slices(self, scope: Scope) -> list[SliceSpec]:
        """Every slice that this stage makes, in order. Raises RecipeError."""
        raise NotImplementedError

    def native(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        """The languages whose prompts still have to come from outside with this stage there."""
        return languages

    def run(self, job: Job) -> Outcome:
        """Do the work of one step. Raises FactoryError."""
        raise NotImplementedError

    def least(self) -> dict[str, int]:
        """By role, the fewest rows this stage can do anything with."""
        return {}

    def lacks(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        """What these slices need of the machine beside what they read, and is not there: looked
        at before a line begins, and told, not raised."""
        return []

    def length(self, spec: SliceSpec) -> int | None:
        """How many rows a slice is asked to make, where that hangs on nothing it reads."""
        return None

    def asks(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        """How many rows a slice is asked to make, given how many it reads by role: as many as
        under the role it names first."""
        return next(iter(rows.values()), 0)

    def shards(self, rows: int, spec: SliceSpec) -> int:
        """How many shards that many rows of a slice are made in; 0 where there are none."""
        return 0

    def semantic(self, spec: SliceSpec) -> dict[str, Any]:
        """The fields that give the rows of a slice their meaning and are not at their default."""
        if self.from_ is not None:
            return {"from": self.from_.model_dump(exclude={"source"}, exclude_defaults=True)}
        return self._fields(lambda marks: not marks)

    def draws(self, spec: SliceSpec) -> bool:
        """Whether the recipe's seed changes the rows of a slice."""
        return self.seeded and self.from_ is None

    def extent(self) -> dict[str, Any]:
        """The fields that say how much."""
        if self.from_ is not None:
            return {}
        return self._fields(lambda marks: EXTENT in marks)

    def _fields(self, wanted: Any) -> dict[str, Any]:
        names = {
            name
            for name, info in type(self).model_fields.items()
            if name not in ("how", "from_")
            and wanted([m for m in info.metadata if isinstance(m, Mark)])
        }
        return self.model_dump(mode="json", include=names, exclude_defaults=True)
