"""Stages that read rows from outside: prompts, evaluation questions, preferences.

Each stage turns a Hub dataset or a local file into canonical rows, so that the collection holds
everything it was made from and a stranger can start from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from factory.artifacts import schemas, tables
from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Rows
from factory.artifacts.tables import slice_directory
from factory.config import EXTENT, REFERENCE
from factory.engines import chat_template
from factory.errors import RecipeError
from factory.language.languages import language as known_language
from factory.sampling.cleaning import QUESTIONS, Cleaner, Drop, asked, cleaner_of
from factory.sampling.preference_set import PreferenceSet
from factory.stage import presets
from factory.stage.inputs import ExternalInput, Need, SliceSpec
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.preference_pairs import SIDES, read_pair
from factory.stage.readers import DistinctIds, Row, View, address, conversation, given_id, messages
from factory.stage.row_files import BadRow
from factory.stage.stage import From, Stage, StageContext, filled

# columns that hold the rest of a prompt, as Alpaca's, Dolly's and Orca's
_TALKS = ("messages", "prompt", *SIDES)
_SYSTEM = ("system", "system_prompt")
_BESIDE = ("input", "context", "passage", *_SYSTEM)


class _Source(Stage, View):
    """A stage that reads one outside dataset, a slice a language. `source:` with `columns:` and
    `where:` may be said as `from:`, as for any other stage. `preset:` stands for what
    factory/stage/presets.py says of a well-known dataset; what is written beside it goes over
    that."""

    row_wise: ClassVar[bool] = True

    # org/name[@revision], or a file; {language}, {Language} and {iso3} are filled in
    source: Annotated[str, REFERENCE]
    first: Annotated[int | None, EXTENT, Field(ge=1)] = None  # rows to take of each, from the top
    # rows to leave out: {seen_in: questions, ngrams: 8, near: 0.8}
    drop: Annotated[Drop | None, EXTENT] = Field(None, exclude_if=lambda value: value is None)

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
        return presets.expanded(data, cls.name)

    @field_validator("source")
    @classmethod
    def _fills_in(cls, value: str) -> str:
        return filled(value, {"language": "en"}) and value

    def _spec(self, language: str, seen_in: tuple[Need, ...] = ()) -> SliceSpec:
        source = filled(self.source, {"language": language})
        need = ExternalInput("source", source, "dataset", extent=True)
        return SliceSpec(self.name, language, language, (need, *seen_in))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        seen_in = None if self.drop is None else self.drop.seen_in
        if seen_in != QUESTIONS:
            return [
                self._spec(
                    code,
                    (
                        ExternalInput(
                            "seen_in",
                            filled(seen_in.source, {"language": code}),
                            "dataset",
                            extent=True,
                        ),
                    )
                    if isinstance(seen_in, From)
                    else (),
                )
                for code in self._languages(context)
            ]
        questions = {spec.name: spec for spec in context.slices(QUESTIONS, self.name)}
        unasked = [code for code in self._languages(context) if code not in questions]
        if unasked:
            raise RecipeError(
                f"stages.{self.name}.drop.seen_in: there are no questions in {', '.join(unasked)} "
                "to compare its rows with",
                "name a dataset that has some, as seen_in: {preset: m-arenahard-v2.1}",
            )
        return [
            self._spec(code, (questions[code].as_input("seen_in"),))
            for code in self._languages(context)
        ]

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        return context.languages

    def run(self, job: Job) -> Outcome:
        rows: dict[str, Rows] = {}
        alarms: list[str] = []
        sets: dict[str, list[dict[str, Any]]] = {}
        languages: dict[Place, list[str]] = {}  # that are read from one source
        for spec in job.slices:  # two sets may be one source, read in two ways
            for place in {job.place(spec, role) for role, *_ in self._sets()}:
                languages.setdefault(place, []).append(str(spec.language))
        for number, spec in enumerate(job.slices):
            language = str(spec.language)
            dropped: Counter[str] = Counter()
            ids, unread, cleaner = DistinctIds(), Counter[str](), cleaner_of(self.drop, job, spec)
            table_rows: list[Row] = []
            for role, view, first, marks in self._sets():
                place, before = job.place(spec, role), dropped.total()
                name = place.name or place.path.name
                own = view.converted_rows(
                    place.path,
                    language,
                    self.converter(name, language, ids, unread, cleaner),
                    dropped,
                    name=name,
                    languages=languages[place],
                    first=first,
                )
                of_set = [{**row, "source": name, **marks} if marks else row for row in own]
                table_rows += of_set
                lost = dropped.total() - before
                if marks:
                    figures = {"source": name, **marks, "rows": len(of_set), "dropped": lost}
                    sets.setdefault(spec.name, []).append(figures)
            alarms += ids.alarms(name)
            table = schemas.from_rows(table_rows, self.kind)
            tables.write_slice(slice_directory(job.out, spec.name), table)
            out = len(table_rows)
            rows[spec.name] = Rows(into=out + dropped.total(), out=out, dropped=dict(dropped))
            alarms += [
                f"{n} of {out} rows of {spec.name} have {what}" for what, n in unread.items()
            ]
            job.progress(number + 1, len(job.slices), "languages")
        stats = {"alarms": alarms} if alarms else {}
        return Outcome(rows, determinism="exact", stats=stats | ({"sets": sets} if sets else {}))

    def _sets(self) -> list[tuple[str, View, int | None, dict[str, Any]]]:
        """Return what rows are read from: the role of each source, how it is read, the rows to take
        at most, and columns that mark its rows, where there are several."""
        return [("source", self, self.first, {})]

    def converter(
        self,
        source: str,
        language: str,
        ids: DistinctIds,
        unread: Counter[str] | None = None,
        cleaner: Cleaner | None = None,
    ) -> Callable[[Row, str], Row | str]:
        """Return a function that returns a row in canonical form under an id of its own, or the
        reason to leave it out; what is left out of a row is counted in `unread`, and `cleaner` says
        which rows are dropped for what they ask. It raises InputError for a row that cannot be
        read."""
        hashes: dict[str, str | None] = {}  # ids to hashes

        def convert(row: Row, where: str) -> Row | str:
            canonical = self.row(row, where, source, language)
            if isinstance(canonical, str):
                return canonical
            if self.repeated(canonical, hashes):
                return "repeated"
            question = asked(canonical["messages" if "messages" in canonical else "prompt"])
            if cleaner is not None and (reason := cleaner.reason(question)):
                return reason
            canonical["prompt_id"] = ids(canonical["prompt_id"])
            hashes[canonical["prompt_id"]] = canonical.get("prompt_hash")
            if unread is not None:
                unread.update(self.unread(row, where))
                texts = (turn for name in _TALKS for turn in canonical.get(name, ()))
                if chat_template.control_tokens(None, list(texts)):
                    unread["control tokens of chat templates in their text: text they stay"] += 1
            return canonical

        return convert

    def unread(self, row: Mapping[str, Any], where: str) -> Iterator[str]:
        """Yield what a row has that looks like a part of it and is not read."""
        column = self.columns.get("prompt", "prompt")
        columns = column if isinstance(column, tuple) else (column,)
        text = isinstance(row.get("prompt"), str)
        unread = [
            name
            for name in (_BESIDE if text else _SYSTEM)
            if name not in columns and isinstance(row.get(name), str) and row[name].strip()
        ]
        if unread and not text:
            talk = row.get("messages") or row.get("prompt") or row.get("chosen")
            if "system" in (role for role, _ in conversation({"messages": talk}, where)):
                return  # the same, as a message
        for name in unread:
            joined = ", ".join((name, *columns) if name in _SYSTEM else (*columns, name))
            fix = (
                f"columns: {{prompt: [{joined}]}} joins them"
                if text
                else "it belongs into the messages of a row, as the first"
            )
            yield f"text in {name!r}, which is left out: {fix}"

    def repeated(self, row: Mapping[str, Any], hashes: Mapping[str, str | None]) -> bool:
        """Return whether a row repeats an earlier one and is to be dropped."""
        return False

    def row(self, row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
        """Return a row of the source in canonical form, or the reason why it is dropped. Raises
        InputError for a row that cannot be read."""
        raise NotImplementedError


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
        yield from super().unread(row, where)

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

    name: ClassVar[str] = QUESTIONS
    repo: ClassVar[str] = "questions"

    @classmethod
    def output(cls) -> str:
        return QUESTIONS  # no stage that reads prompts may read these

    @field_validator("drop")
    @classmethod
    def _not_of_itself(cls, value: Drop | None) -> Drop | None:
        if value is not None and value.seen_in == QUESTIONS:
            raise ValueError("seen_in: questions are these; name another set, or give near alone")
        return value

    def _languages(self, context: StageContext) -> tuple[str, ...]:
        named = (code for s in context.stages.values() for code in s.question_languages())
        return tuple(dict.fromkeys((*context.languages, *named)))

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
    which one reward model each is made. With further sets (`also`) a column `source` says which a
    pair is of, and `weight` how often it is learned from: 2 is twice, 0.25 is one in four, drawn
    with the recipe's seed."""

    name: ClassVar[str] = "preferences"
    kind: ClassVar[str] = "preferences"
    repo: ClassVar[str] = "preferences"

    languages: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("en",)
    weight: float = Field(1.0, gt=0)  # of this set, where there are several
    # further sets: [{preset: hh-rlhf, weight: 0.5}, more.jsonl]
    also: Annotated[tuple[PreferenceSet, ...], REFERENCE] = ()

    @model_validator(mode="after")
    def _weighs_several(self) -> Preferences:
        if self.weight != 1.0 and not self.also:
            raise ValueError("weight is for one of several sets, and there is one")
        return self

    def _spec(self, language: str, seen_in: tuple[Need, ...] = ()) -> SliceSpec:
        spec = super()._spec(language, seen_in)
        more = (one.need(f"source-{n}", language) for n, one in enumerate(self.also, 2))
        return replace(spec, needs=(spec.needs[0], *more, *spec.needs[1:]))

    def _sets(self) -> list[tuple[str, View, int | None, dict[str, Any]]]:
        [(role, view, first, _)] = super()._sets()
        if not self.also:
            return [(role, view, first, {})]
        return [(role, view, first, {"weight": self.weight})] + [
            (f"source-{number}", one, one.first, {"weight": one.weight})
            for number, one in enumerate(self.also, 2)
        ]

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        also = [one.how_read() for one in self.also]
        return super().identity_fields(spec) | ({"also": also} if also else {})

    def outside_rows(self, spec: SliceSpec) -> tuple[ExternalInput, View] | None:
        return None if self.also else super().outside_rows(spec)

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
