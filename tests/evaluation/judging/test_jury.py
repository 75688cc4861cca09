"""Juries, rubrics and people as judges."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from factory.artifacts import schemas
from factory.artifacts.hashing import text_hash
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.engines import chat_template
from factory.errors import InputError, RecipeError
from factory.evaluation.judging import jury, people, prompts
from factory.evaluation.judging.match import match
from factory.evaluation.judging.stage import Judge
from factory.evaluation.judging.verdicts import APART
from factory.execution.builtin_models import POCKET
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.stage.inputs import ExternalInput, SliceSpec, StepInput
from factory.stage.job import Job, Place
from tests.conftest import run_factory
from tests.evaluation.judging.test_stage import LLM, Scripted, answers, marks
from tests.support.builders import by_name, lock_of
from tests.support.jobs import job

OURS = {"en": ["a good", "b", "same", "d good", "e"], "ga": ["f", "g good", "same", "i", "j"]}
THEIRS = {"en": ["A", "B good", "same", "D", "E"], "ga": ["F good", "G", "same", "I", "J"]}
CHAT = "models.chat=org/chat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


@pytest.fixture
def scripted(model: Path, monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    tokenizer = chat_template.load_tokenizer(str(model))
    Scripted.loads, Scripted.asked, Scripted.says = [], [], None
    monkeypatch.setattr("factory.engines.choose.sampler", lambda *_, **__: Scripted(tokenizer))
    return Scripted


@pytest.fixture
def reads(tmp_path: Path) -> dict[str, Path]:
    return {
        "answers": answers(tmp_path / "ours", "dpo-all", OURS),
        "reference": answers(tmp_path / "theirs", "policy", THEIRS),
    }


def of_a_jury(*overrides: str) -> dict[str, list[SliceSpec]]:
    """The slices of the judge, by step."""
    steps: dict[str, list[SliceSpec]] = {}
    for stage, spec in load("demo", [CHAT, *overrides]).recipe.slices():
        if stage.name == "judge":
            steps.setdefault(spec.step, []).append(spec)
    return steps


def test_each_judge_of_a_jury_has_a_step_of_its_own_and_the_jury_reads_them() -> None:
    steps = of_a_jury("stages.judge.judge=[reward, chat]", "stages.judge.ask={max_tokens: 9}")
    assert list(steps) == ["judge[reward]", "judge[chat]", "judge[jury]"]
    votes = [need for need in steps["judge[jury]"][0].needs if need.role == "vote"]
    assert votes == [StepInput("vote", f"judge[{n}]", "en/dpo-all") for n in ("reward", "chat")]
    notes = steps["judge[jury]"][0].notes
    assert notes == ("reward: training reward (not independent)",)
    assert not of_a_jury()["judge"][0].need("vote")


def test_a_judge_of_a_jury_is_the_same_judge_alone() -> None:
    """Its verdicts are reused, and knobs of another kind of judge are none of its own."""
    overrides = [CHAT, "stages.judge.judge=[reward, chat]", "stages.judge.ask={max_tokens: 9}"]
    recipe = load("demo", overrides).recipe
    steps = by_name(plan(recipe, lock_of(recipe), Inventory()))
    alone = [CHAT, "stages.judge.judge=chat", "stages.judge.ask={max_tokens: 9}"]

    def keys(step: Any) -> dict[str, str]:
        return {made.spec.name: made.row_key for made in step.slices}

    assert keys(steps["judge[reward]"]) == marks()
    assert keys(steps["judge[chat]"]) == marks(*alone) != marks(*alone[:2])


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["stages.judge.judge=[reward]"], "a jury has two judges or more"),
        (["stages.judge.judge=[chat, chat]"], "a jury has two judges or more, each once"),
        (["stages.judge.annotations={us: a.csv}"], "annotations has 'us', which is none of the"),
        (["stages.judge.judge=[reward, other]"], "other"),
        (["stages.judge.judge=us", "stages.judge.annotations={us: a.csv}",
          "stages.judge.ask={max_tokens: 3}"], "ask has no meaning for 'us', which is no model"),
        (["stages.judge.judge=[a, b]", "models.a={served: x}", "models.b={served: y}",
          "stages.judge.dtype=null", "stages.judge.how={served_model: z}"],
         "served_model is one name, and a server judges as a, b"),
        (["stages.judge.judge=chat", "stages.judge.ask={template: harm, orders: random}"],
         "a rubric reads one answer at a time"),
        (["stages.judge.judge=chat",
          "stages.judge.ask={text: '{prompt} {answer} {language} [[A]]'}"],
         "must name the steps of its scale"),
    ],
)  # fmt: skip
def test_a_jury_that_cannot_be_meant_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("demo", [CHAT, *overrides])
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ((1.0, 1.0, 0.0), "model"), ((0.0, 0.25, 1.0), "reference"), ((1.0, 0.5, 0.0), "tie"),
        ((1.0, 0.0, None), "tie"), ((1.0, None, None), "model"), ((0.5, 0.5, 1.0), "tie"),
        ((None, None, None), "unparseable"),
    ],
)  # fmt: skip
def test_the_verdict_of_a_jury_is_that_of_most(votes: Sequence[float], verdict: str) -> None:
    assert jury.decide(dict(zip("xyz", votes, strict=True))) == verdict


def verdict_artifact(root: Path, spec: SliceSpec, rows: list[dict[str, Any]]) -> Path:
    write_slice(slice_directory(root, spec.name), schemas.from_rows(rows, "verdicts"))
    return root


def test_a_jury_has_majority_mean_and_agreement_of_its_judges(
    reads: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two judges like `good`, one always the model; one of the first gave no verdict on e."""
    names = ("x", "y", "z")
    places: dict[Any, Place] = {}
    specs = []
    for code in ("en", "ga"):
        needs = [StepInput(role, role, code) for role in reads]
        places |= {need: Place(reads[need.role]) for need in needs}
        votes = [StepInput("vote", f"judge[{name}]", code) for name in names]
        ours, theirs = (read_slice(reads[r], code, "answers").to_pylist() for r in reads)
        pairs, _ = match(ours, theirs, code)
        for name, vote in zip(names, votes, strict=True):
            rows = []
            for pair in pairs:
                verdict = "model" if name == "z" or "good" in pair.model["answer"] else "reference"
                verdict = "tie" if pair.identical else verdict
                if name == "y" and pair.model["answer"] == "e":
                    verdict = "unparseable"
                rows.append(jury.row_of(pair, name, APART, verdict, None))
            spec = SliceSpec("judge", code, code, ())
            places[vote] = Place(verdict_artifact(tmp_path / name, spec, rows))
        specs.append(SliceSpec("judge[jury]", code, code, (*needs, *votes)))
    blind = {"ga": ["its accuracy is chance"]}
    manifests = {"x": {"notes": ["no rival"], "judge_blind": blind}, "y": {"notes": []}}
    monkeypatch.setattr(
        "factory.evaluation.judging.stage.read_manifest",
        lambda path: SimpleNamespace(stats=manifests.get(path.name, {"notes": []})),
    )
    (tmp_path / "job" / "out").mkdir(parents=True)
    work = Job("judge[jury]", 0, tuple(specs), places, tmp_path / "job", tmp_path / "job" / "out",
               lambda *_: None)  # fmt: skip
    outcome = Judge(judge=names).run(work)
    row = next(r for r in outcome.stats["comparisons"] if r["language"] == "en")
    # a, d won by all; b lost 1 to 2; same tied; e: x reference, z model
    assert (row["won"], row["tied"], row["lost"]) == (2, 2, 1)
    assert row["jury_mean"]["rate"] == pytest.approx(100 * (1 + 1 / 3 + 0.5 + 1 + 0.5) / 5)
    assert row["judges"]["z"]["rate"] == 90 and row["judges"]["x"]["rate"] == 50
    assert row["judges"]["y"]["comparisons"] == 4
    agreement = {(a["first"], a["second"], a["language"]): a for a in outcome.stats["agreement"]}
    assert agreement["x", "y", "all"]["kappa"] == pytest.approx(1)
    assert (agreement["x", "y", "en"]["compared"], agreement["x", "y", "en"]["unread"]) == (3, 1)
    assert agreement["x", "z", "en"]["share"] == 50 and agreement["x", "z", "en"]["kappa"] == 0
    assert outcome.stats["notes"] == ["x: no rival"]
    assert outcome.stats["judge_blind"] == {"ga": ["x: its accuracy is chance"]}
    [*_, last] = read_slice(work.out, "en", "verdicts").to_pylist()
    assert last["judge_output"] == "x: reference; y: no verdict; z: model"


def test_49_a_rubric_rates_each_answer_apart(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def sample(self: Scripted, asked: Any, sampling: Any, seed: int) -> list[Any]:
        texts = [self.tokenizer.decode(list(ids)) for ids in asked]
        Scripted.asked += texts
        ids = [
            self.tokenizer("[[5]]" if "good" in text.split("[Answer]")[1] else "[[2]]",
                           add_special_tokens=False)["input_ids"]
            for text in texts
        ]  # fmt: skip
        return [SimpleNamespace(token_ids=tuple(i), finish_reason="stop") for i in ids]

    monkeypatch.setattr(Scripted, "sample", sample)
    stage = Judge(judge="chat", dtype="float32", ask={"template": "fluency"})
    outcome = stage.run(job(tmp_path / "job", ["en", "ga"], reads, {LLM: model}))
    assert len(scripted.asked) == 2 * (2 * 4 + 1)  # of identical answers, one
    assert all("Rate how fluent the" in text for text in scripted.asked)
    [one, *_] = read_slice(tmp_path / "job" / "out", "en", "verdicts").to_pylist()
    assert (one["verdict"], one["score_model"], one["score_reference"]) == ("model", 5.0, 2.0)
    assert outcome.stats["template"]["scale"] == ["1", "2", "3", "4", "5"]
    assert outcome.stats["orders"] == APART
    rows = {row["language"]: row for row in outcome.stats["comparisons"]}
    assert (rows["en"]["won"], rows["en"]["tied"], rows["en"]["lost"]) == (2, 2, 1)
    ratings = rows["en"]["ratings"]
    assert (ratings["model"], ratings["reference"]) == (pytest.approx(3.2), pytest.approx(2.6))
    assert ratings["difference"] == pytest.approx(0.6)
    assert ratings["low"] < 0.6 < ratings["high"]
    # harm, split by the label of the prompt: every category has its ratings
    by_category = {row["category"]: row["ratings"] for row in outcome.stats["by_category"]}
    assert set(by_category) == {"hard_prompt", "creative_writing"}


def test_every_rubric_has_a_scale_of_five_and_reads_its_last_word() -> None:
    for name in ("fluency", "naturalness", "harm"):
        words = prompts.wording(name)
        assert words.rubric and words.span == 4.0
        assert words.read("[[1]] at first, but [[4]]") == "4" and words.read("[[6]]") is None
    assert prompts.wording("ties").span is None and prompts.wording("as-published").span is None


def test_197_annotations_are_blind_balanced_and_read_back(
    reads: dict[str, Path], tmp_path: Path
) -> None:
    matched = {}
    for code in ("en", "ga"):
        ours, theirs = (read_slice(reads[r], code, "answers").to_pylist() for r in reads)
        matched[code], _ = match(ours, theirs, code)
    rows = people.to_annotate(matched)
    assert len(rows) == 8, "identical answers need no annotator"
    assert not any("dpo" in str(row) or "policy" in str(row) for row in rows)
    first = [row["answer_a"].islower() for row in rows if row["language"] == "en"]
    assert sum(first) == 2, "the model stands first in half"
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len(people.to_annotate(matched, 2)) == 4
    assert {r["id"] for r in people.to_annotate(matched, 2)} < {row["id"] for row in rows}

    # people like `good`; of two who disagree, a tie; one row is left empty
    for row in rows:
        good = [name for name in ("answer_a", "answer_b") if "good" in row[name]]
        row["verdict"] = good[0][-1] if good else "Tie"
    rows[0]["verdict"] = " "
    twice = rows[1] | {"verdict": "a" if rows[1]["verdict"] != "a" else "b"}
    file = tmp_path / "people.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, people.COLUMNS)
        writer.writeheader()
        writer.writerows([*rows, twice])
    source = ExternalInput("annotations", "people.csv", "dataset")
    work = job(tmp_path / "job", ["en", "ga"], reads, {source: file})
    stage = Judge(judge="us", annotations={"us": "people.csv"})
    outcome = stage.run(replace(work, places={**work.places, source: Place(file)}))
    verdicts = [
        row for code in ("en", "ga") for row in read_slice(work.out, code, "verdicts").to_pylist()
    ]
    assert len(verdicts) == 7
    wants = {r["id"]: r["verdict"] for r in rows}
    assert outcome.stats["annotations"] == {"rows": 8, "pairs": 7, "used": 7}
    ours = {text_hash(t): t for texts in OURS.values() for t in texts}
    disagreed = 0
    for row in verdicts:
        mine = "good" in ours[row["answer_hash"]]
        disagreed += ", " in row["judge_output"]
        if ", " not in row["judge_output"]:
            assert row["verdict"] in ("model" if mine else "reference", "tie")
    assert disagreed == 1 and len(wants) == 8
    assert sum(counts.dropped["not_annotated"] for counts in outcome.rows.values()) == 3

    file.write_text("id,verdict\nabc,A\n")
    with pytest.raises(InputError, match="none of 1 annotated rows is of these answers"):
        stage.run(replace(work, places={**work.places, source: Place(file)}))
    file.write_text("id,verdict\nabc,left\n")
    with pytest.raises(InputError, match=r"line 2|row 1.*'left' is none of A, B and tie"):
        people.read(file, "people.csv")


def test_row_33_annotations_go_to_argilla_and_come_back(
    reads: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Argilla's own classes; its server alone is a stand-in."""
    rg = pytest.importorskip("argilla")
    from factory.evaluation.judging import argilla

    ours, theirs = (read_slice(reads[r], "en", "answers").to_pylist() for r in reads)
    rows = people.to_annotate({"en": match(ours, theirs, "en")[0]})
    with pytest.raises(InputError, match="no address of an Argilla server"):
        argilla.write(rows, "pairs", None)
    monkeypatch.setenv("ARGILLA_API_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"Argilla at http://127.0.0.1:9: "):
        argilla.write(rows, "pairs", None)

    logged: list[Any] = []
    made: dict[str, Any] = {}

    class Dataset:
        def __init__(self, name: str, settings: Any, **_: Any) -> None:
            self.settings, made[name] = settings, self
            self.records = type(self)._Records()

        class _Records:
            log = staticmethod(logged.extend)

            def __call__(self, with_responses: bool) -> Any:
                return iter(logged)

        def create(self) -> None:
            """Nothing is sent."""

    monkeypatch.setattr(rg.Argilla, "__init__", lambda self, **_: None)
    monkeypatch.setattr(rg.Argilla, "_get_default", classmethod(lambda cls: cls()))
    monkeypatch.setattr(rg.Argilla, "api", MagicMock(), raising=False)
    monkeypatch.setattr(rg.Argilla, "datasets", lambda self, name, workspace: made.get(name))
    monkeypatch.setattr(rg, "Dataset", Dataset)
    argilla.write(rows, "pairs", "lab")
    assert [record.id for record in logged] == [row["id"] for row in rows]
    assert made["pairs"].settings.guidelines == people.RUBRIC
    who = "00000000-0000-0000-0000-00000000000"
    for number, record in enumerate(logged):
        record.responses.add(rg.Response("verdict", "A", who + "1", "submitted"))
        record.responses.add(rg.Response("comment", "clear", who + "1", "submitted"))
        if number:
            record.responses.add(rg.Response("verdict", "B", who + "2", "draft"))
    back = argilla.read("pairs", "lab")
    assert back == [row | {"verdict": "A", "comment": "clear"} for row in rows]
    with pytest.raises(InputError, match="Argilla has no dataset 'others'"):
        argilla.read("others", None)


@pytest.mark.slow
def test_row_33_people_judge_a_run_and_agree_with_its_other_judge(
    smoke: Path, tmp_path: Path
) -> None:
    """The command line, from published answers to a jury with people in it."""
    smoke = Path(shutil.copytree(smoke, tmp_path / "home", symlinks=True))
    file = tmp_path / "people.csv"
    export = ["export", "annotations", "smoke", "--out", str(file), "--number", "4"]
    done = run_factory(*export, home=smoke)
    assert done.returncode == 0, done.stderr
    assert "judge: [reward, people], annotations: {people:" in done.stdout
    again = run_factory(*export, home=smoke)
    assert again.returncode == 1 and "perhaps with verdicts" in again.stderr
    rows = list(csv.DictReader(file.open()))
    for number, row in enumerate(rows):
        row["verdict"] = ("A", "B", "tie", "")[number % 4]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, people.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    knobs = ["stages.judge.judge=[reward, people]", f"stages.judge.annotations={{people: {file}}}"]
    sets = [part for knob in knobs for part in ("--set", knob)]
    done = run_factory("run", "smoke", *sets, "--until", "judge", home=smoke)
    assert done.returncode == 0, done.stderr
    assert "Agreement of the judges" in done.stdout
