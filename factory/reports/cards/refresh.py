"""Cards on a hub: check one, or update it with new evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from factory.artifacts import untrusted
from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest
from factory.errors import Check, HubError
from factory.hub.client import Hub
from factory.reports.benchmarks import BenchmarkResult, benchmark_results, eval_results
from factory.reports.cards import card
from factory.reports.cards import check as card_check
from factory.reports.questions import Place, ReadQuestion, questions
from factory.reports.win_rates import Comparison, comparisons

_ANSWERED = 3  # questions on a card
EVAL_RESULTS = ".eval_results/euroeval.yaml"


@dataclass(frozen=True)
class EvaluatedRepo:
    """A repo at a revision, for its card."""

    repo: str
    kind: str
    revision: str

    def __str__(self) -> str:
        return f"{self.kind} {self.repo} at {self.revision}"


def find(hub: Hub, name: str) -> EvaluatedRepo:
    """Return the repo for `org/name`, `datasets/org/name` or either with `@revision`; a bare
    name is a model where one exists. Raises HubError."""
    path, _, revision = name.partition("@")
    revision = revision or "main"
    kinds = ("dataset",) if path.startswith("datasets/") else ("model", "dataset")
    repo = path.removeprefix("datasets/").removeprefix("models/")
    if repo.count("/") != 1:
        raise HubError(f"{name!r} names no repo", "give org/name or datasets/org/name")
    for kind in kinds:
        if hub.has(repo, kind, revision):
            return EvaluatedRepo(repo, kind, revision)
    raise HubError(
        f"{hub.called} has no {' or '.join(kinds)} {repo} at {revision}",
        f"check the name, or bring it in: factory pull {path}",
    )


def check(hub: Hub, subject: EvaluatedRepo) -> list[Check]:
    """Return the problems of any repo's card. Raises HubError."""
    readme = hub.read(subject.repo, subject.kind, subject.revision, "README.md")
    if readme is None:
        return [card_check.problem("it has no README.md", "write one: a card says what a repo is")]
    paths = hub.paths(subject.repo, subject.kind, subject.revision)
    config = None
    if "adapter_config.json" in paths:
        raw = hub.read(subject.repo, subject.kind, subject.revision, "adapter_config.json")
        try:
            config = untrusted.adapter_config(raw or b"{}")
        except ValueError:
            return [
                card_check.problem(
                    "adapter_config.json cannot be read", "publish the adapter again"
                )
            ]
    text = readme.decode("utf-8", "replace")
    problems = card_check.check(text, subject.kind, paths, cache(hub.has), config)
    manifest = _manifest(hub, subject.repo, subject.kind, subject.revision)
    if manifest is None:
        return problems
    with hub.explained(subject.repo):
        contents = hub.contents(subject.repo, subject.kind, subject.revision)
    return problems + [
        card_check.problem(
            f"{path} is not the file that {MANIFEST} records", "publish the artifact again"
        )
        for path in manifest.damaged(contents)
    ]


def rendered(hub: Hub, subject: EvaluatedRepo) -> tuple[str, list[Comparison | BenchmarkResult]]:
    """Render the card from the manifests on the hub, with win rates and benchmark scores from
    the same collections. Raises HubError for a repo without a manifest of the factory."""
    manifest = _manifest(hub, subject.repo, subject.kind, subject.revision)
    if manifest is None:
        raise HubError(
            f"{subject} has no manifest of the factory",
            "only its own cards can be made anew; --check looks at any",
        )
    manifests = [
        _manifest(hub, repo, kind, "main")
        for repo, kind in hub.siblings(subject.repo, subject.kind)
    ]
    readable = [other for other in manifests if other is not None]
    judged, scored = comparisons(manifest, readable), benchmark_results(manifest, readable)
    answered = _answered(hub, judged, readable)
    return card.render(manifest, judged, scored, answered), [*judged, *scored]


def refresh(
    hub: Hub, subject: EvaluatedRepo
) -> tuple[str | None, list[Comparison | BenchmarkResult]]:
    """Write the `rendered` card to main, with a model's benchmark scores in the Hub's form too.
    Returns the commit, None if nothing changed, and the evaluations. Raises HubError."""
    text, evaluations = rendered(hub, subject)
    scored = eval_results(row for row in evaluations if isinstance(row, BenchmarkResult))
    results = {EVAL_RESULTS: scored} if subject.kind == "model" else {}
    return hub.refresh_card(subject.repo, subject.kind, text, results), evaluations


def _answered(
    hub: Hub, judged: Sequence[Comparison], manifests: Sequence[Manifest]
) -> list[ReadQuestion]:
    """Read a few questions with the answers of the model and of its base: one in each of the first
    languages, or more of a single one."""
    slices = [(c.judge.repo, f"{c.row.language}/{c.row.model}") for c in judged]
    known = {(m.repo, name) for m in manifests if m.kind == "verdicts" for name in m.slices}
    chosen = list(dict.fromkeys(place for place in slices if place in known))
    languages = list(dict.fromkeys(name for _, name in chosen))[:_ANSWERED]
    if not languages:
        return []
    number = -(-_ANSWERED // len(languages))

    def wanted(manifest: Manifest, name: str) -> bool:
        return name in languages and (manifest.repo, name) in chosen

    return questions(manifests, from_hub(hub), number, wanted)[:_ANSWERED]


def from_hub(hub: Hub) -> Place:
    """Return how `questions` finds rows on a hub. Rows that are gone are left out."""

    def place(repo: str, tag: str, name: str) -> Path | None:
        try:
            return hub.fetch(repo, "dataset", tag, only=[f"data/{name}/*.parquet"])
        except HubError:
            return None

    return place


def _manifest(hub: Hub, repo: str, kind: str, revision: str) -> Manifest | None:
    raw = hub.read(repo, kind, revision, MANIFEST)
    try:
        return Manifest.model_validate_json(raw) if raw else None
    except ValueError:
        return None  # somebody else's factory.json
