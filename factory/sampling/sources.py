"""Stages that read rows from outside: prompts, evaluation questions, preferences.

Each stage turns a Hub dataset or a local file into canonical rows, so that the collection holds
everything it was made from and a stranger can start from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from factory.artifacts import schemas, tables
from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Rows
from factory.artifacts.tables import slice_directory
from factory.config import EXTENT, REFERENCE, Knobs
from factory.engines import chat_template
from factory.errors import RecipeError
from factory.language.languages import language as known_language
from factory.sampling.cleaning import Cleaner
from factory.stage import presets
from factory.stage.inputs import ExternalInput, Need, SliceSpec
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.preference_pairs import SIDES, read_pair
from factory.stage.readers import DistinctIds, Row, View, address, conversation, given_id, messages
from factory.stage.row_files import BadRow
from factory.stage.stage import From, Stage, StageContext, filled

QUESTIONS = "questions"
# columns that hold the rest of a prompt, as Alpaca's, Dolly's and Orca's
_TALKS = ("messages", "prompt", *SIDES)
_BESIDE = ("input", "context", "passage", "system", "system_prompt")


class Drop(Knobs):
    """Rows to leave out before anything is spent on them, by what they ask: those seen in
    evaluation prompts, and those that nearly repeat an earlier row. See cleaning.Cleaner."""

    # `questions`, the stage, or a source or preset of evaluation prompts, read as any other
    seen_in: Literal["questions"] | From | None = None
    ngrams: int = Field(8, ge=1)  # words in a row that a prompt seen there shares with one of them
    near: float | None = Field(None, gt=0, le=1)  # similarity of a repetition; null: keep them

    @field_validator("seen_in", mode="before")
    @classmethod
    def _source(cls, value: Any) -> Any:
        if isinstance(value, str) and value != QUESTIONS:
            return {"source": value}
        return presets.expanded(value, QUESTIONS)

    @model_validator(mode="after")
    def _drops(self) -> Drop:
        if self.seen_in is None and self.near is None:
            raise ValueError("drops nothing: give seen_in: questions, near: 0.8 or both")
        if isinstance(self.seen_in, From) and self.seen_in.base is not None:
            raise ValueError("base is for adapters: questions have no base")
        return self


def _asked(messages: Sequence[Mapping[str, str]]) -> str:
    """Return what the user says in a prompt."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] == "user")


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

    def _cleaner(self, job: Job, spec: SliceSpec) -> Cleaner | None:
        """Return what tells the rows of a slice that are left out, None without `drop`."""
        if self.drop is None:
            return None
        evaluation: list[str] = []
        if self.drop.seen_in == QUESTIONS:
            table = job.table(spec, "seen_in", "prompts")
            evaluation = [_asked(messages) for messages in table["messages"].to_pylist()]
        elif isinstance(self.drop.seen_in, From):
            place = job.place(spec, "seen_in")
            rows = self.drop.seen_in.converted_rows(
                place.path,
                str(spec.language),
                lambda row, where: {"asked": _asked(messages(row, where))},
                Counter(),
                name=place.name or place.path.name,
            )
            evaluation = [row["asked"] for row in rows]
        return Cleaner(evaluation, self.drop.ngrams, self.drop.near)

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
            convert = self.converter(name, language, ids, unread, self._cleaner(job, spec))
            table_rows = list(
                self.converted_rows(
                    place.path,
                    language,
                    convert,
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
            question = _asked(canonical["messages" if "messages" in canonical else "prompt"])
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
        for name in (
            _BESIDE if isinstance(column, str) and isinstance(row.get("prompt"), str) else ()
        ):
            if name != column and isinstance(row.get(name), str) and row[name].strip():
                both = f"{name}, {column}" if name.startswith("system") else f"{column}, {name}"
                yield (
                    f"text in {name!r}, which is left out: columns: {{prompt: [{both}]}} joins them"
                )

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
