"""Stages that read rows from outside: prompts, evaluation questions, preferences.

Each stage turns a Hub dataset or a local file into canonical rows, so that the collection holds
everything it was made from and a stranger can start from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from factory.artifacts import schemas, tables
from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Rows
from factory.artifacts.tables import slice_directory
from factory.config import EXTENT, REFERENCE
from factory.errors import RecipeError
from factory.language.languages import language as known_language
from factory.sampling import presets
from factory.stage.inputs import ExternalInput, SliceSpec
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.preference_pairs import SIDES, read_pair
from factory.stage.readers import DistinctIds, Row, View, address, conversation, given_id, messages
from factory.stage.row_files import BadRow
from factory.stage.stage import Stage, StageContext, filled


class _Source(Stage, View):
    """A stage that reads one outside dataset, a slice a language. `source:` with `columns:` and
    `where:` may be said as `from:`, as for any other stage. `preset:` stands for what
    factory/sampling/presets.py says of a well-known dataset; what is written beside it goes over
    that."""

    row_wise: ClassVar[bool] = True

    # org/name[@revision], or a file; {language}, {Language} and {iso3} are filled in
    source: Annotated[str, REFERENCE]
    first: Annotated[int | None, EXTENT, Field(ge=1)] = None  # rows to take of each, from the top

    @model_validator(mode="before")
    @classmethod
    def _from(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "from" not in data:
            return data
        fields = data["from"] if isinstance(data["from"], dict) else {"source": data["from"]}
        if "source" in data:
            raise ValueError("has both source and from, which are the same")
        return {**{key: value for key, value in data.items() if key != "from"}, **fields}

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "preset" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "preset"}
        return {**presets.fields(data["preset"], cls.name), **rest}

    @field_validator("source")
    @classmethod
    def _fills_in(cls, value: str) -> str:
        return filled(value, {"language": "en"}) and value

    def _spec(self, language: str) -> SliceSpec:
        source = filled(self.source, {"language": language})
        need = ExternalInput("source", source, "dataset", extent=True)
        return SliceSpec(self.name, language, language, (need,))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        return [self._spec(language) for language in self._languages(context)]

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        return context.languages

    def run(self, job: Job) -> Outcome:
        rows: dict[str, Rows] = {}
        alarms: list[str] = []
        languages: dict[Place, list[str]] = {}  # that are read from one source
        for spec in job.slices:
            languages.setdefault(job.place(spec, "source"), []).append(str(spec.language))
        for number, spec in enumerate(job.slices):
            place, language = job.place(spec, "source"), str(spec.language)
            name = place.name or place.path.name
            dropped: Counter[str] = Counter()
            ids, unread = DistinctIds(), Counter[str]()
            table_rows = list(
                self.converted_rows(
                    place.path,
                    language,
                    self.converter(name, language, ids, unread),
                    dropped,
                    name=name,
                    languages=languages[place],
                    first=self.first,
                )
            )
            table = schemas.from_rows(table_rows, self.kind)
            tables.write_slice(slice_directory(job.out, spec.name), table)
            out = len(table_rows)
            alarms += ids.alarms(name)
            rows[spec.name] = Rows(into=out + dropped.total(), out=out, dropped=dict(dropped))
            alarms += [
                f"{n} of {out} rows of {spec.name} have {what}" for what, n in unread.items()
            ]
            job.progress(number + 1, len(job.slices), "languages")
        return Outcome(rows, determinism="exact", stats={"alarms": alarms} if alarms else {})

    def converter(
        self,
        source: str,
        language: str,
        ids: DistinctIds,
        unread: Counter[str] | None = None,
    ) -> Callable[[Row, str], Row | str]:
        """Return a function that returns a row in canonical form under an id of its own, or the
        reason to leave it out; what is left out of a row is counted in `unread`. It raises
        InputError for a row that cannot be read."""
        hashes: dict[str, str | None] = {}  # ids to hashes

        def convert(row: Row, where: str) -> Row | str:
            canonical = self.row(row, where, source, language)
            if isinstance(canonical, str):
                return canonical
            if self.repeated(canonical, hashes):
                return "repeated"
            canonical["prompt_id"] = ids(canonical["prompt_id"])
            hashes[canonical["prompt_id"]] = canonical.get("prompt_hash")
            if unread is not None:
                unread.update(self.unread(row, where))
            return canonical

        return convert

    def unread(self, row: Mapping[str, Any], where: str) -> Iterator[str]:
        """Yield what a row has that looks like a part of it and is not read."""
        yield from ()

    def repeated(self, row: Mapping[str, Any], hashes: Mapping[str, str | None]) -> bool:
        """Return whether a row repeats an earlier one and is to be dropped."""
        return False

    def row(self, row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
        """Return a row of the source in canonical form, or the reason why it is dropped. Raises
        InputError for a row that cannot be read."""
        raise NotImplementedError


# columns that hold the rest of a prompt, as Alpaca's and Dolly's
_BESIDE = ("input", "context", "passage")


class Prompts(_Source):
    """Prompts to sample answers to, in each language; the same id in every language."""

    name: ClassVar[str] = "prompts"
    kind: ClassVar[str] = "prompts"
    repo: ClassVar[str] = "prompts"

    # the first user turn alone, as CroCo, or the conversation up to the last one
    turns: Literal["first", "all"] = "first"
    # A file of samples says a prompt once for each of them: `drop` keeps the first.
    repeats: Literal["keep", "drop"] = "keep"

    def repeated(self, row: Mapping[str, Any], hashes: Mapping[str, str | None]) -> bool:
        return self.repeats == "drop" and hashes.get(row["prompt_id"]) == row["prompt_hash"]

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        return context.native()

    def unread(self, row: Mapping[str, Any], where: str) -> Iterator[str]:
        if self.turns == "first" and "system" in (role for role, _ in conversation(row, where)):
            yield "a system prompt, which is left out: turns: all keeps it"
        column = self.columns.get("prompt")
        for name in _BESIDE if isinstance(column, str) else ():
            if name != column and isinstance(row.get(name), str) and row[name].strip():
                both = f"{{prompt: [{column}, {name}]}}"
                yield f"text in {name!r}, which is left out: columns: {both} joins them"

    def row(self, row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
        turns = conversation(row, where)
        users = [i for i, (role, _) in enumerate(turns) if role == "user"]
        if not turns:
            return "empty"
        if not users:
            fix = "a prompt needs a message of role 'user'"
            raise BadRow(where, "no user turn", fix, "no_user_turn")
        turns = turns[users[0] : users[0] + 1] if self.turns == "first" else turns[: users[-1] + 1]
        asked = [{"role": role, "content": text()} for role, text in turns]
        if not asked[-1]["content"].strip():
            return "empty"
        domain = row.get("domain")
        return {
            **address(row, asked, source),
            "language": language,
            "messages": asked,
            "source_dataset": source,
            "domain": None if domain is None else str(domain),
            "gold": self._gold(row, where),
        }

    def _gold(self, row: Mapping[str, Any], where: str) -> str | None:
        """Return the answer that a person wrote, where columns: names one, and it has text."""
        if "gold" not in self.columns or not (gold := row.get("gold")):
            return None
        [*_, last] = messages({"messages": gold}, f"{where}: gold")
        return last["content"].strip() or None


class Questions(Prompts):
    """Held-out prompts that the models are compared on."""

    name: ClassVar[str] = "questions"
    repo: ClassVar[str] = "questions"

    @classmethod
    def output(cls) -> str:
        return "questions"  # no stage that reads prompts may read these

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        return context.languages

    def row(self, row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
        """m-ArenaHard's columns are understood as they are: question_id, category, subcategory."""
        columns = dict(row)
        for ours, theirs in (("id", "question_id"), ("domain", "category")):
            if columns.get(ours) is None and columns.get(theirs) is not None:
                columns[ours] = columns[theirs]
        question = super().row(columns, where, source, language)
        sub = row.get("subcategory")
        if isinstance(question, str):
            return question
        return question | {"subcategory": None if sub is None else str(sub)}


class Preferences(_Source):
    """Preference pairs that the reward stage learns from: English ones, or those of `languages`, of
    which one reward model each is made."""

    name: ClassVar[str] = "preferences"
    kind: ClassVar[str] = "preferences"
    repo: ClassVar[str] = "preferences"

    languages: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("en",)

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            try:
                known_language(code)
            except RecipeError as error:
                raise ValueError(f"{error.what}; {error.fix}") from None
        return value

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        return self.languages

    def row(self, row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
        pair = read_pair(row, where)
        if isinstance(pair, str):
            return pair
        alone = len(pair.prompt) == 1
        text_id = text_hash(source + (pair.prompt[0]["content"] if alone else repr(pair.prompt)))
        texts = zip(SIDES, (pair.chosen, pair.rejected), strict=True)
        return {
            "prompt_id": given_id(row) or text_id,
            "language": language,
            "prompt": pair.prompt,
            **{side: [{"role": "assistant", "content": text}] for side, text in texts},
            "margin": pair.margin,
        }
