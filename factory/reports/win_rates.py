"""Win rates, read from the manifests of verdicts: for cards, page and table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import InputRecord, Manifest
from factory.reports import values
from factory.reports.formatting import model_name

# Roles of what a judge compares, and of what a reward model scores: the rest are its models.
COMPARED = ("answers", "reference", "training")
_SCORED = ("samples", "prompts", "english", "preferences")


@dataclass(frozen=True)
class Rate:
    """A win rate with its 95 % interval, in percent; None where no verdict could be read.

    `flag` is a warning about it and `phi` the slope of length control; most rates have neither."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    flag: str = ""
    phi: float | None = None


@dataclass(frozen=True)
class WinRateRow:
    """A model against its reference in one language (`all`: over all of them), in questions won,
    tied, lost and without a readable verdict. `rates` are its win rates by name.

    `worst` and `best` are the win rate with all unread verdicts lost or won. `consistency` is the
    share of equal verdicts in both orders. All three are percent, None where not measured.
    `n_seen` counts questions that are among the prompts of training. `blind` are the reasons for
    which the audit of the judge's reward suspects it in this language."""

    model: str
    reference: str
    language: str
    won: int
    tied: int
    lost: int
    unparseable: int
    shown: str
    rates: Mapping[str, Rate]
    worst: float | None = None
    best: float | None = None
    consistency: float | None = None
    n_seen: int = 0
    blind: tuple[str, ...] = ()

    @property
    def overall(self) -> Rate:
        """The plain win rate, ties worth half."""
        return self.rates.get("win_rate", Rate())

    @property
    def in_language(self) -> float | None:
        """The win rate with answers in another language than their question counted as lost."""
        return self.rates.get("in_language", Rate()).rate

    @property
    def equal_length(self) -> Rate:
        """The length-controlled win rate, by characters."""
        return self.rates.get("lc_minimal_chars", Rate())

    @property
    def controlled(self) -> str:
        """The length-controlled win rate in words; empty where it was not computed."""
        return describe_length_control(self.rates)

    @property
    def n_questions(self) -> int:
        """Number of questions, those without a verdict included."""
        return self.won + self.tied + self.lost + self.unparseable

    @property
    def has_checks(self) -> bool:
        """Whether anything is known beside the win rate."""
        checks = (self.in_language, self.equal_length.rate, self.worst, self.consistency)
        return any(check is not None for check in checks)


@dataclass(frozen=True)
class JudgeRef:
    """The judge of one artifact of verdicts, which is `repo` at `tag`. `template` is the name of
    the prompt template that it was asked with."""

    name: str
    notes: tuple[str, ...]
    revision: str | None
    template: str | None
    served: bool
    repo: str
    tag: str

    @property
    def described(self) -> str:
        """The judge at its revision, and its prompt template."""
        version = f" at {self.revision[:15]}" if self.revision else ""
        version = ", served, not pinned" if self.served else version
        prompt = f", asked with the template {self.template}" if self.template else ""
        return f"{self.name}{version}{prompt}"


@dataclass(frozen=True)
class JudgedModel:
    """One model against its reference under one judge. `rows` are languages, `all` first.
    `n_seen` counts questions among the prompts of training; None where that was not checked."""

    step: str
    model: str
    reference: str
    judge: JudgeRef
    n_seen: int | None
    rows: tuple[WinRateRow, ...]

    def at(self, language: str) -> WinRateRow | None:
        """Return the row of a language; None where this model was not compared in it."""
        return next((row for row in self.rows if row.language == language), None)


@dataclass(frozen=True)
class Comparison:
    """A win rate of one published model. `questions` is the repo, at its tag, of the questions."""

    row: WinRateRow
    judge: JudgeRef
    questions: tuple[str, str]

    @property
    def contest(self) -> tuple[str, str, str]:
        """What the rows of one table share: the reference and the artifact of verdicts."""
        return self.row.reference, self.judge.repo, self.judge.tag


def win_rates(manifest: Manifest) -> list[WinRateRow]:
    """Read the win rates of one artifact of verdicts, in their order."""
    blind = {
        str(code): values.texts(reasons)
        for code, reasons in values.mapping(manifest.stats.get("judge_blind")).items()
    }
    return [_win_rate(row, blind) for row in values.mappings(manifest.stats.get("comparisons"))]


def judge_blind(
    judge: Iterable[InputRecord], manifests: Iterable[Manifest]
) -> dict[str, list[str]]:
    """Return the languages in which an audit among these manifests suspects the reward that judges,
    with the reasons. `judge`: all that a slice of verdicts reads. A reward is known by the content
    of its models."""
    models = {read.digest for read in judge if read.role not in COMPARED}
    suspects: dict[str, list[str]] = {}
    for manifest in manifests:
        if manifest.kind != "scores" or not any(
            {read.digest for read in record.inputs if read.role not in _SCORED} == models
            for record in manifest.slices.values()
        ):
            continue
        audited = values.mapping(values.mapping(manifest.stats.get("audit")).get("by_language"))
        for code, figures in audited.items():
            if reasons := values.texts(values.mapping(figures).get("blind")):
                suspects[code] = list(reasons)
    return suspects


def judge_of(manifest: Manifest) -> JudgeRef:
    """Read who judged in an artifact of verdicts."""
    stats = manifest.stats
    revision, template = stats.get("judge_revision"), values.mapping(stats.get("template"))
    return JudgeRef(
        name=str(stats.get("judge", manifest.repo)),
        notes=values.texts(stats.get("notes")),
        revision=str(revision) if revision else None,
        template=str(template["name"]) if template.get("name") else None,
        served="served" in stats,
        repo=manifest.repo,
        tag=manifest.tag,
    )


def judged_models(manifests: Iterable[Manifest]) -> list[JudgedModel]:
    """Read every model that a judge compared, in the order of the manifests."""
    models = []
    for manifest in manifests:
        if manifest.kind != "verdicts":
            continue
        by_model: dict[tuple[str, str], list[WinRateRow]] = {}
        for row in win_rates(manifest):
            by_model.setdefault((row.model, row.reference), []).append(row)
        models += [
            JudgedModel(
                step=manifest.step,
                model=model,
                reference=reference,
                judge=judge_of(manifest),
                n_seen=_n_seen(manifest, model),
                rows=tuple(sorted(rows, key=lambda row: row.language != "all")),
            )
            for (model, reference), rows in by_model.items()
        ]
    return models


def comparisons(model: Manifest, collection: Iterable[Manifest]) -> list[Comparison]:
    """Return the win rates of `model` in the verdicts of its collection.

    Models are matched by the digests of the weights that answered: verdicts on another draw of
    the same recipe do not count."""
    manifests = list(collection)
    digests = {record.digest for record in model.slices.values()}
    answers: dict[str, tuple[str, InputRecord | None]] = {}  # by content: label, questions
    for arena in manifests:
        for name, record in arena.slices.items():
            if any(read.role == "adapter" and read.digest in digests for read in record.inputs):
                question_set = next(
                    (read for read in record.inputs if read.role == "questions"), None
                )
                answers[record.digest] = (name.partition("/")[2], question_set)
    rows: list[Comparison] = []
    for verdicts in manifests:
        read = [source for record in verdicts.slices.values() for source in record.inputs]
        labels = dict(answers[source.digest] for source in read if source.digest in answers)
        judge = judge_of(verdicts)
        for row in win_rates(verdicts):
            if row.model in labels:
                repo, tag = judge.repo, judge.tag
                if (question_set := labels[row.model]) and question_set.repo:
                    repo, tag = question_set.repo, question_set.tag or "main"
                rows.append(Comparison(row, judge, (repo, tag)))
    return rows


def model_index(name: str, rows: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return the Hub's `model-index`: one result for each question set and language."""
    results = []
    for entry in rows:
        row, judge, rate = entry.row, entry.judge, entry.row.overall
        against = model_name(row.reference)
        if rate.rate is None:
            continue
        repo, tag = entry.questions
        dataset = {"name": repo, "type": repo, "split": "train", "revision": tag}
        if row.language != "all":
            dataset["config"] = row.language
        metric = {
            "type": "win_rate",
            "name": f"win rate against {against}, judged by {judge.name}, in percent",
            "value": round(rate.rate, 2),
            "args": {
                "low": round(rate.low or 0.0, 2),
                "high": round(rate.high or 0.0, 2),
                "won": row.won,
                "tied": row.tied,
                "lost": row.lost,
            },
        }
        result = {
            "task": {"type": "text-generation", "name": "Answers compared by a judge"},
            "dataset": dataset,
            "metrics": [metric],
        }
        if not judge.repo.startswith("local/"):  # which no public hub has
            url = f"https://huggingface.co/datasets/{judge.repo}/tree/{judge.tag}"
            result["source"] = {"name": "verdicts", "url": url}
        results.append(result)
    return [{"name": name, "results": results}] if results else []


def read_rates(row: Mapping[str, Any]) -> dict[str, Rate]:
    """Read every win rate in a row of `comparisons`, by its name there."""
    return {
        str(key): Rate(
            rate=values.number(raw["rate"]),
            low=values.number(raw.get("low")),
            high=values.number(raw.get("high")),
            flag=str(raw.get("flag") or ""),
            phi=values.number(raw.get("phi")),
        )
        for key, raw in row.items()
        if isinstance(raw, Mapping) and "rate" in raw
    }


def describe_length_control(rates: Mapping[str, Rate], name: str = "lc_minimal_chars") -> str:
    """Describe the length-controlled win rate, or the one of this name: interval, phi and warning.
    Empty if none."""
    controlled = rates.get(name)
    if controlled is None:
        return ""
    if controlled.rate is None:
        return f"none: {controlled.flag}"
    text = f"{controlled.rate:.1f} %"
    if controlled.low is not None and controlled.high is not None:
        text += f" [{controlled.low:.1f}, {controlled.high:.1f}]"
    if controlled.phi is not None:
        text += f", phi {controlled.phi:+.2f}"
    return f"{text}, {controlled.flag}" if controlled.flag else text


def describe_blind(language: str, blind: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return what to say beside a win rate in this language (`all`: of all of them)."""
    if language == "all":
        return (f"the judge is suspect in {', '.join(blind)}",) if blind else ()
    return tuple(f"the judge is suspect here: {reason}" for reason in blind.get(language, ()))


def _win_rate(row: Mapping[str, Any], blind: Mapping[str, tuple[str, ...]]) -> WinRateRow:
    bounds = values.mapping(row.get("bounds"))
    language = str(row.get("language", "all"))
    return WinRateRow(
        model=str(row.get("model")),
        reference=str(row.get("reference")),
        language=language,
        won=values.integer(row.get("won")),
        tied=values.integer(row.get("tied")),
        lost=values.integer(row.get("lost")),
        unparseable=values.integer(row.get("unparseable")),
        shown=str(row.get("shown", "no verdict could be read")),
        rates=read_rates(row),
        worst=values.number(bounds.get("worst")),
        best=values.number(bounds.get("best")),
        consistency=values.number(values.mapping(row.get("consistency")).get("same_share")),
        n_seen=values.integer(row.get("seen_in_training")),
        blind=describe_blind(language, blind),
    )


def _n_seen(manifest: Manifest, model: str) -> int | None:
    """Count the questions to a model that are among the prompts of training."""
    by_slice = values.mapping(manifest.stats.get("seen_in_training"))
    counts = [values.mapping(raw) for name, raw in by_slice.items() if name.endswith(f"/{model}")]
    checked = [count for count in counts if values.integer(count.get("prompts"))]
    return sum(values.integer(count.get("seen")) for count in checked) if checked else None
