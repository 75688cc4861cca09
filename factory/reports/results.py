"""One tidy table over all evaluations of a collection: a row for each number. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from factory.artifacts.hashing import fingerprint
from factory.artifacts.manifest import Manifest
from factory.errors import InputError
from factory.reports import values
from factory.reports.benchmarks import BenchmarkScore, Delta, deltas, scores
from factory.reports.win_rates import COMPARED, Rate, win_rates

ACCURACY = "pair accuracy"  # of a reward model


@dataclass(frozen=True)
class Result:
    """One number of `model` in `language` (`all`: over all of them).

    `evaluation` is the benchmark, or the repo of the answers; `against` the model that `value` is
    compared with, "" for a score alone; `by` the tool or judge that measured it. Numbers by
    different measurers are not comparable. `value` is None where there is none, and `note` says
    why. `fingerprint` and `repo` are of the artifact that holds it. `version` stands for version
    and settings of the measurer, `questions` for the content of the questions; "" where unknown."""

    model: str
    language: str
    evaluation: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    against: str
    by: str
    significant: bool | None
    note: str
    repo: str
    fingerprint: str
    version: str = ""
    questions: str = ""
    of_answers: bool = False


def tidy(manifests: Iterable[Manifest]) -> list[Result]:
    """Return every score, delta, win rate and pair accuracy of these manifests, artifact by
    artifact."""
    rows: list[Result] = []
    every = list(manifests)
    for manifest in every:
        if manifest.kind == "results":
            rows += [*_scores(manifest), *_deltas(manifest)]
        elif manifest.kind == "verdicts":
            questions = _questions(manifest, every)
            rows += [
                replace(r, questions=questions.get(r.language, ""))
                for r in _win_rates(manifest, every)
            ]
        elif manifest.kind == "rankings":
            rows += _accuracies(manifest)
    return rows


def together(
    collections: Mapping[str, Sequence[Result]], metric: str | None
) -> tuple[list[Result], list[str]]:
    """Return the results of several collections as those of one, with the collection before each
    model, and what is left out: judges and benchmarks that one collection lacks, and figures over
    all languages where these differ. Raises InputError for results that cannot be compared: of
    another version of the measurer, or other questions. `metric`: a metric or benchmark; None for
    all."""
    chosen = {
        name: [row for row in rows if metric in (None, row.metric, row.evaluation)]
        for name, rows in collections.items()
    }
    shared = set.intersection(*({_measure(row) for row in rows} for rows in chosen.values()))
    if not shared:
        by = (f"{n}: {', '.join({r.by: 0 for r in rows}) or 'none'}" for n, rows in chosen.items())
        raise InputError(
            f"no judge or benchmark is in all collections ({'; '.join(by)})",
            "evaluate them alike: numbers by different judges are not comparable",
        )
    rows = []
    firsts: dict[tuple[str, ...], tuple[str, Result]] = {}
    left_out: dict[str, None] = {}
    for name, results in chosen.items():
        for row in results:
            if _measure(row) not in shared:
                left_out[f"{row.metric} by {row.by} ({name} alone)"] = None
                continue
            at = (*_measure(row), row.language)
            first_name, first = firsts.setdefault(at, (name, row))
            if first.version != row.version:
                raise InputError(
                    f"{first_name} and {name} were judged by {row.by} in different versions, or "
                    "with different settings",
                    "judge them alike: factory diff shows what differs",
                )
            if first.questions != row.questions and row.language != "all":
                raise InputError(
                    f"{first_name} and {name} were asked different questions in {row.language}, or "
                    "answered with another temperature or limit",
                    "answer the same questions with the same settings of arena",
                )
            rows.append((name, row, at))
    other = {at for _, row, at in rows if row.questions != firsts[at][1].questions}
    if other:
        left_out["figures over all languages, which differ"] = None
    compared = [
        replace(row, model=f"{name}: {row.model}", evaluation=_measure(row)[1])
        for name, row, at in rows
        if at not in other
    ]
    return compared, list(left_out)


def _measure(row: Result) -> tuple[str, str, str]:
    """Return what makes two numbers the same figure: answers have a repo in each collection."""
    return row.metric, "the same questions" if row.of_answers else row.evaluation, row.by


def _scores(manifest: Manifest) -> Iterator[Result]:
    by = _tool(manifest)
    for row in scores(manifest):
        note = "" if row.status == "ok" else row.status
        yield Result(row.model, row.language, row.dataset, row.metric, row.value, row.low, row.high,
                     "", by, None, note, manifest.repo, manifest.fingerprint, _split(manifest),
                     _data(manifest, row))  # fmt: skip


def _deltas(manifest: Manifest) -> Iterator[Result]:
    by = _tool(manifest)
    for row in deltas(manifest):
        yield Result(row.model, row.language, row.dataset, f"{row.metric} delta", row.change,
                     row.low, row.high, row.reference, by, row.significant, row.why, manifest.repo,
                     manifest.fingerprint, _split(manifest), _data(manifest, row))  # fmt: skip


def _win_rates(manifest: Manifest, every: Iterable[Manifest]) -> Iterator[Result]:
    """Yield every rate of every comparison: plain, in language, of equal length, …"""
    version = _version(manifest, every)
    answers, judge = _answers(manifest), str(manifest.stats.get("judge", ""))
    for row in win_rates(manifest):
        for metric, rate in (row.rates or {"win_rate": Rate()}).items():
            low, high = rate.low, rate.high
            decided = None if low is None or high is None else low > 50 or high < 50
            unread = () if rate.rate is not None else ("no verdict could be read",)
            note = "; ".join((*unread, *row.blind))
            yield Result(row.model, row.language, answers, metric, rate.rate, low, high,
                         row.reference, judge, decided, note, manifest.repo,
                         manifest.fingerprint, version, of_answers=True)  # fmt: skip


def _accuracies(manifest: Manifest) -> Iterator[Result]:
    """Yield the share of pairs that each reward model ranks right in each language, in percent."""
    for cell in values.mappings(manifest.stats.get("matrix")):
        share, low, high = (
            None if (value := values.number(cell.get(name))) is None else 100 * value
            for name in ("share", "low", "high")
        )
        decided = None if low is None or high is None else low > 50 or high < 50
        note = "" if share is not None else str(cell.get("shown", "no pair has rewards"))
        yield Result(str(cell.get("reward_model")), str(cell.get("language")),
                     _read(manifest, "pairs", "pairs"), ACCURACY, share, low, high, "", "", decided,
                     note, manifest.repo, manifest.fingerprint)  # fmt: skip


def _version(manifest: Manifest, every: Iterable[Manifest]) -> str:
    """Return a hash of all that a judge's verdicts depend on, but for what it judged. That of a
    jury is its judges'."""
    [record, *_] = manifest.slices.values()
    votes = {(read.repo, read.tag) for read in record.inputs if read.role == "vote"}
    if votes:
        members = [m for m in every if (m.repo, m.tag) in votes]
        if len(members) < len(votes):  # nobody can tell what they were
            return manifest.fingerprint
        return fingerprint(sorted(_version(member, ()) for member in members))
    judge = sorted((r.role, r.digest) for r in record.inputs if r.role not in COMPARED)
    rules = {key: record.identity.get(key) for key in ("version", "fields", "seed")}
    return fingerprint({**rules, "judge": judge})


def _questions(manifest: Manifest, every: Iterable[Manifest]) -> dict[str, str]:
    """Return the content of the questions that were judged, and how they were answered, by
    language; `all` is every one."""
    answered = {
        record.digest: {read.digest for read in record.inputs if read.role == "questions"}
        | {f"{name}: {arena.fields.get(name)}" for name in ("temperature", "max_tokens")}
        | {f"top_p: {arena.fields.get('top_p', 1.0)}"}
        for arena in every
        if arena.kind == "answers"
        for record in arena.slices.values()
    }
    questions: dict[str, set[str]] = {}
    for name, record in manifest.slices.items():
        digests = questions.setdefault(name.partition("/")[0], set())
        for read in record.inputs:
            digests |= answered.get(read.digest, set()) if read.role == "answers" else set()
    contents = {code: fingerprint(sorted(read)) for code, read in questions.items()}
    return contents | {"all": fingerprint(contents)}


def _answers(manifest: Manifest) -> str:
    """Return the repo of the answers that were judged."""
    return _read(manifest, "answers", "arena")


def _read(manifest: Manifest, role: str, default: str) -> str:
    """Return the repo, source or step of what is read as `role`."""
    read = [r for s in manifest.slices.values() for r in s.inputs if r.role == role]
    return str(read[0].repo or read[0].source or read[0].step) if read else default


def _split(manifest: Manifest) -> str:
    return f"{manifest.stats.get('split')}, {manifest.stats.get('iterations')} iterations"


def _data(manifest: Manifest, row: BenchmarkScore | Delta) -> str:
    """Return the digest of a benchmark's data."""
    record = manifest.slices.get(f"{row.language}/{row.model}")
    reads = record.inputs if record else []
    return next((read.digest for read in reads if read.role == row.dataset), "")


def _tool(manifest: Manifest) -> str:
    stats = manifest.stats
    shots = "few-shot" if stats.get("few_shot") else "zero-shot"
    return f"EuroEval {stats.get('tool_version')}, {stats.get('backend')}, {shots}"
