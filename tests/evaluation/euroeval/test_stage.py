"""The stage as a whole: with a stand-in for EuroEval that replays a real record, where it is our
side that is looked at; and, slow, with the real one on the small real model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import read_manifest
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.tables import read_slice, write_slice
from factory.artifacts.workdir import Home
from factory.errors import InputError, RecipeError, StageError
from factory.evaluation.euroeval import environment, suites
from factory.evaluation.euroeval.stage import Euroeval
from factory.execution import checks as checking
from factory.execution.builtin_models import POCKET
from factory.planning.estimate import Estimate, estimate
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import LoadedRecipe, load
from factory.slurm import site as sites
from factory.slurm import submission
from factory.slurm.queue import Queue
from factory.slurm.submit import SubmitRequest, check_requirements, submit
from factory.stage.inputs import ExternalInput, SliceSpec
from factory.stage.job import Job, PartDone, Place
from tests.conftest import run_factory
from tests.support.builders import ASKED, lock_of, walked

DATA = Path(__file__).parents[2] / "data"
RECORD = DATA / "euroeval" / "test-2.json"
MODEL = ExternalInput("model", "local/model@main", "model")

# Writes a record for each benchmark but those it is told to lose; says what it was asked.
STAND_IN = """#!{python}
import json, os, sys, time, pathlib
asked = [sys.argv[n + 1] for n, word in enumerate(sys.argv) if word == "--dataset"]
with open({asked!r}, "a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ),
                           "model": sorted(os.listdir("model"))}}) + "\\n")
record = json.loads(pathlib.Path({record!r}).read_text())
for name in asked:
    if name in {kill!r}:
        sys.exit("the engine is dead")
    if name in {lose!r}:
        print(f"{{name}} came to grief", flush=True)
        continue
    record["eval_library"]["additional_details"]["dataset"] = name
    record["model_info"]["id"] = os.getcwd() + "/model"
    with open("euroeval_benchmark_results.jsonl", "a") as file:
        file.write("\\n" + json.dumps(record) + "\\n")
time.sleep({sleep})
"""


def stand_in(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose: Sequence[str] = (),
    kill: Sequence[str] = (),
    sleep: float = 0,
    gpus: int = 4,
) -> Path:
    """An environment whose `euroeval` replays, but for what it loses, or what kills it, and whose
    torch finds so many GPUs. Returns the file of what it was asked."""
    place, asked = root / "environment", root / "asked.jsonl"
    (place / "bin").mkdir(parents=True, exist_ok=True)
    # asked whether it has vLLM: yes
    (place / "bin/python").write_text(f"#!/bin/sh\necho 'torch 2.9: no driver'; echo {gpus}\n")
    (place / "bin/python").chmod(0o755)
    script = place / "bin/euroeval"
    script.write_text(
        STAND_IN.format(
            python=sys.executable,
            asked=str(asked),
            record=str(RECORD),
            lose=set(lose),
            sleep=sleep,
            kill=set(kill),
        )
    )
    script.chmod(0o755)
    listing = Path(suites.__file__).with_name("registry.json").read_text()
    (place / "benchmarks.json").write_text(listing)
    monkeypatch.setenv("FACTORY_EUROEVAL", str(place))
    return asked


def told(asked: Path) -> list[dict[str, Any]]:
    """What the stand-in was asked, run by run."""
    return [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's directory as transformers 5 writes it; nobody loads its weights here."""
    out = tmp_path / "tiny"
    out.mkdir()
    rope = {"rope_type": "default", "rope_theta": 100000.0}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16",
              "rope_parameters": rope}  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_text("{}")
    (out / "model.safetensors").write_bytes(b"weights")
    return out


def job(
    root: Path,
    model: Path,
    benchmarks: Mapping[str, Sequence[str]],
    earlier: Mapping[str, tuple[ReusableSlice, ...]] | None = None,
    part: tuple[int, int] | None = None,
) -> Job:
    """A job for one model, every benchmark's data being the same sentences."""
    specs, places = [], {MODEL: Place(model, "local/model", "main")}
    for language, names in benchmarks.items():
        data = [
            ExternalInput(n, f"{suites.registry()[n].source}@main", "dataset", extent=True)
            for n in names
        ]
        places |= {need: Place(DATA / "scala-en", need.source.partition("@")[0]) for need in data}
        name = f"{language}/policy"
        specs.append(SliceSpec("euroeval", name, language, (MODEL, *data)))
    (root / "out").mkdir(parents=True, exist_ok=True)
    return Job("euroeval", 0, tuple(specs), places, root, root / "out", lambda *_, **__: None,
               earlier=earlier or {}, part=part)  # fmt: skip


def stage(**knobs: Any) -> Euroeval:
    given = {"of": ["policy"], "iterations": 2, "few_shot": False, **knobs}
    return Euroeval.model_validate(given)


def test_each_model_may_be_measured_in_languages_of_its_own() -> None:
    """As the published scripts: the model in all of a list, an adapter in that of its training."""

    def runs(languages: str) -> list[str]:
        stage = f"stages.euroeval={{of: [policy, sft], languages: {languages}}}"
        recipe = load("smoke", [stage]).recipe
        return [spec.name for made, spec in recipe.slices() if made.name == "euroeval"]

    assert runs("own") == ["en/policy", "es/policy", "fr/policy", "en/sft-all", "es/sft-all",
                           "fr/sft-all"]  # fmt: skip
    assert runs("{policy: [fi, da], sft: [es]}") == ["fi/policy", "da/policy", "es/sft-all"]
    assert runs("{policy: [pt]}") == ["pt/policy", "en/sft-all", "es/sft-all", "fr/sft-all"]
    with pytest.raises(RecipeError, match="languages names 'dpo', which of does not"):
        runs("{dpo: own}")
    with pytest.raises(RecipeError, match="unknown language 'danish'"):
        runs("{policy: [danish]}")


def test_a_run_asks_for_every_benchmark_of_a_language_at_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret_secret")
    outcome = stage().run(job(tmp_path / "w", model, {"en": ["scala-en", "sst5"], "da": ["dala"]}))
    runs = told(asked)
    assert [[w for w in run["argv"] if w in suites.registry()] for run in runs] == [
        ["scala-en", "sst5"], ["dala"],
    ]  # fmt: skip
    line = " ".join(runs[0]["argv"])
    for part in ("--model model", "--language en", "--num-iterations 2", "--evaluate-test-split",
                 "--zero-shot", "--gpu-memory-utilization 0.8", "--no-progress-bar"):  # fmt: skip
        assert part in line
    assert "--api-base" not in line and "--raise-errors" not in line
    assert runs[0]["cwd"] != runs[1]["cwd"]
    assert "hf_secret_secret_secret" not in json.dumps(runs)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(runs[0]["model"])
    # the model is in the words of the older transformers, and still itself
    config = json.loads((Path(runs[0]["cwd"]) / "model/config.json").read_text())
    own = json.loads((model / "config.json").read_text())
    assert config["rope_theta"] == own["rope_parameters"]["rope_theta"]
    assert outcome.rows["en/policy"].into == outcome.rows["en/policy"].out == 4
    rows = read_slice(tmp_path / "w/out", "en/policy", "results").to_pylist()
    assert {row["dataset"] for row in rows} == {"scala-en", "sst5"}
    assert {row["status"] for row in rows} == {"ok"}
    kept = (tmp_path / "w/out/records/en/policy/scala-en.json").read_text()
    assert str(tmp_path) not in kept and json.loads(kept)["model_info"]["id"] == "policy"


def test_exit_code_0_is_no_record_and_what_there_is_is_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"en": ["scala-en", "sst5"], "da": ["dala"]}
    asked = stand_in(tmp_path, monkeypatch, lose=["scala-en"])
    with pytest.raises(StageError) as caught:
        stage().run(job(tmp_path / "w", model, wanted))
    assert "en/policy: scala-en" in caught.value.what
    assert "exit code 0" in caught.value.what and "scala-en came to grief" in caught.value.what
    assert len(told(asked)) == 2, "the other language is evaluated all the same"
    # once that is mended, only what has no record is run
    stand_in(tmp_path, monkeypatch)
    outcome = stage().run(job(tmp_path / "w", model, wanted))
    [again] = told(asked)[2:]
    assert [w for w in again["argv"] if w in suites.registry()] == ["scala-en"]
    assert outcome.stats["missing"] == []
    stage().run(job(tmp_path / "w", model, wanted))
    assert len(told(asked)) == 3, "nothing is run twice"


def benchmarks_of(asked: Path) -> list[list[str]]:
    """What each run of the stand-in was asked to evaluate on, in order."""
    return [[w for w in run["argv"] if w in suites.registry()] for run in told(asked)]


def test_a_benchmark_that_kills_euroeval_does_not_take_the_others_along(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch, kill=["sst5"])
    wanted = {"en": ["scala-en", "sst5", "squad", "wic"]}
    with pytest.raises(StageError, match=r"of en/policy: sst5: exit code 1; .*dead ") as caught:
        stage().run(job(tmp_path / "w", model, wanted))
    assert "en/policy/log.txt; those that are there are kept" in caught.value.fix
    assert benchmarks_of(asked) == [wanted["en"], ["squad", "wic", "sst5"]]
    asked.unlink()
    stand_in(tmp_path, monkeypatch, kill=["sst5", "wic"])
    with pytest.raises(StageError, match=r"sst5: .* 1 more"):
        stage().run(job(tmp_path / "v", model, wanted))
    assert benchmarks_of(asked) == [wanted["en"], ["squad", "wic", "sst5"]]
    asked.unlink()
    stand_in(tmp_path, monkeypatch, kill=wanted["en"])  # the model itself cannot be run
    with pytest.raises(StageError, match=r"scala-en: .* 3 more"):
        stage().run(job(tmp_path / "u", model, wanted))
    assert len(told(asked)) == 2


def test_a_benchmark_without_a_record_may_be_kept_as_a_row_without_a_value(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, lose=["scala-en"])
    wanted = {"en": ["scala-en", "sst5"]}
    outcome = stage(incomplete="keep").run(job(tmp_path / "w", model, wanted))
    rows = read_slice(tmp_path / "w/out", "en/policy", "results").to_pylist()
    assert [(row["status"], row["value"]) for row in rows if row["dataset"] == "scala-en"] == [
        ("no_record", None), ("no_record", None),
    ]  # fmt: skip
    [lost] = outcome.stats["missing"]
    assert lost["dataset"] == "scala-en" and "came to grief" in lost["why"]


def test_a_run_over_its_limit_keeps_what_it_had_written(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, lose=["sst5"], sleep=60)
    wanted = {"en": ["scala-en", "sst5"]}
    with pytest.raises(StageError, match="sst5: ended after 1 s, the limit"):
        stage(how={"limit": 1}).run(job(tmp_path / "w", model, wanted))
    assert (tmp_path / "w/checkpoints/euroeval/en/policy/records/scala-en.json").exists()


def test_scores_of_an_earlier_artifact_are_not_measured_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch, lose=["sst5"])
    one = job(tmp_path / "one", model, {"en": ["scala-en", "sst5"]})
    stage(incomplete="keep").run(one)
    there = ReusableSlice(tmp_path / "one/out/data/en/policy", "local/r-results@fp-1", whole=False)
    stand_in(tmp_path, monkeypatch)
    other = job(
        tmp_path / "other", model, {"en": ["scala-en", "sst5", "squad"]}, {"en/policy": (there,)}
    )
    outcome = stage().run(other)
    [_, again] = told(asked)
    # the score that was there stands; the one that was missing is measured, as is the new one
    assert [w for w in again["argv"] if w in suites.registry()] == ["sst5", "squad"]
    assert outcome.rows["en/policy"].out == 6
    assert other.reused("en/policy", "results").rows == {"local/r-results@fp-1": 2}


def test_half_a_benchmark_is_measured_again_and_no_row_is_there_twice(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    stage().run(job(tmp_path / "one", model, {"en": ["scala-en"]}))
    data = tmp_path / "one/out/data/en/policy"
    rows = read_slice(tmp_path / "one/out", "en/policy", "results")
    (data / "part-00000.parquet").unlink()
    write_slice(data, rows.slice(0, 1))
    there = {"en/policy": (ReusableSlice(data, "local/r-results@fp-1", whole=False),)}
    outcome = stage().run(job(tmp_path / "other", model, {"en": ["scala-en"]}, there))
    assert outcome.rows["en/policy"].balanced() and outcome.rows["en/policy"].out == 2
    made = read_slice(tmp_path / "other/out", "en/policy", "results").to_pylist()
    assert sorted(row["metric"] for row in made) == ["macro_f1", "mcc"]


def test_several_runs_at_once_and_parts_of_a_job(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch, sleep=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    wanted = {"en": ["scala-en"], "da": ["dala"], "nl": ["scala-nl"], "de": ["scala-de"]}
    with pytest.raises(PartDone):
        stage(how={"parallel": 2}).run(job(tmp_path / "w", model, wanted, part=(1, 2)))
    runs = told(asked)
    assert {w for run in runs for w in run["argv"] if w in suites.registry()} == {
        "dala", "scala-de",
    }  # fmt: skip
    assert {run["env"]["CUDA_VISIBLE_DEVICES"] for run in runs} == {"4,6", "5,7"}
    outcome = stage(how={"parallel": 2}).run(job(tmp_path / "w", model, wanted))
    assert len(told(asked)) == 4
    # what a plan predicts from: the seconds of the runs themselves, in both processes
    assert outcome.spent is not None and outcome.spent.engines == 2
    assert outcome.spent.working >= 2


def test_fewer_gpus_than_runs_at_once_is_an_error(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(StageError, match=r"how.parallel is 2, and there are 1 GPUs"):
        stage(how={"parallel": 2}).run(
            job(tmp_path / "w", model, {"en": ["scala-en"], "da": ["dala"]})
        )


def test_gpus_that_euroevals_own_torch_does_not_find_end_it_before_a_model_is_loaded(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch, gpus=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(StageError, match=r"given 2 GPUs, and torch finds 1: torch 2\.9: no driver"):
        stage().run(job(tmp_path / "w", model, {"en": ["scala-en"]}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    stand_in(tmp_path, monkeypatch, gpus=0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 550'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(StageError, match=r"has 1 x NVIDIA H100, .* torch finds none: torch") as r:
        stage().run(job(tmp_path / "w", model, {"en": ["scala-en"]}))
    assert "export CUDA_VISIBLE_DEVICES=" in r.value.fix
    assert told(asked) == []
    assert environment.gpus(Path(sys.executable))[1].startswith("torch "), "a real torch is asked"


def test_what_needs_nltks_data_is_refused_before_hours_are_spent(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(tmp_path, monkeypatch)
    without_punkt(tmp_path)
    with pytest.raises(InputError, match=r"ifeval counts sentences .* is not here") as caught:
        stage().run(job(tmp_path / "w", model, {"en": ["scala-en", "ifeval"]}))
    assert "factory doctor --install euroeval-vllm;" in caught.value.fix
    assert not told(asked)
    stage().run(job(tmp_path / "v", model, {"en": ["scala-en"]}))
    given = str(tmp_path / "environment")
    with pytest.raises(InputError) as caught:
        stage(how={"environment": given}).run(job(tmp_path / "u", model, {"en": ["ifeval"]}))
    assert f"nltk.downloader -d {given}/nltk_data punkt_tab" in caught.value.fix


def without_punkt(root: Path) -> None:
    """Take NLTK's data from the stand-in: its Python has vLLM, and counts no sentences."""
    said = 'case $* in *nltk*) echo "NLTK\'s punkt_tab is not here" >&2; exit 1;; esac'
    (root / "environment/bin/python").write_text(f"#!/bin/sh\n{said}\n")


def test_benchmarks_that_lack_a_metric_here_are_left_out_by_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    official = stage(benchmarks="official")
    assert "duidelijke-taal" in suites.suite("nl", "official")
    assert "duidelijke-taal" not in official.suite("nl") and "scala-nl" in official.suite("nl")
    outcome = official.run(job(tmp_path / "w", model, {"nl": ["scala-nl"], "da": ["dala"]}))
    assert outcome.stats["left_out"] == [
        {"language": "nl", "dataset": "duidelijke-taal", "metrics": ["meteor", "sari"]}
    ]
    assert stage().run(job(tmp_path / "v", model, {"nl": ["scala-nl"]})).stats["left_out"] == []


# before a line begins

LINE = """
name: line
org: lab
languages: [en]
license: {id: apache-2.0, because: a test}
models: {policy: lab/policy}
stages:
  prompts: {source: "p-{language}.jsonl"}
  generate: {}
  euroeval: {of: [policy], benchmarks: {en: [scala-en, ifeval]}}
"""


@pytest.fixture
def line(tmp_path: Path) -> LoadedRecipe:
    """A recipe with an evaluation at its end."""
    (tmp_path / "line.yaml").write_text(LINE)
    (tmp_path / "p-en.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    return load(str(tmp_path / "line.yaml"))


def findings(loaded: LoadedRecipe, only: set[str] | None = None) -> list[str]:
    return [finding.line() for finding in checking.missing_requirements(loaded.recipe, only)]


def test_what_euroeval_needs_is_looked_at_with_the_recipe(
    tmp_path: Path, line: LoadedRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_EUROEVAL", str(tmp_path / "none"))
    [said] = findings(line)
    assert said.startswith("error: stages.euroeval: EuroEval has no environment at ")
    assert "(fix: make it where there is a network: factory doctor --install euroeval-vllm" in said
    assert findings(line, {"prompts", "generate"}) == []
    stand_in(tmp_path, monkeypatch)
    assert findings(line) == []
    without_punkt(tmp_path)
    [said] = findings(line)
    assert "ifeval counts sentences with NLTK: NLTK's punkt_tab is not here" in said
    # a server needs vLLM here, unless there is one somewhere
    served = load(str(tmp_path / "line.yaml"), ["stages.euroeval.backend=openai"])
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(findings(served)) == 2 and "not installed" in findings(served)[1]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert len(findings(served)) == 1


@pytest.fixture
def hub_with_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose hub has all that the line reads, on a machine without EuroEval."""
    from huggingface_hub import HfApi

    from factory.localhub.launcher import connect

    monkeypatch.setenv("FACTORY_EUROEVAL", str(tmp_path / "none"))
    home = tmp_path / "home"
    with connect(home / "hub") as hub:
        api = HfApi(hub.url, token=hub.token)
        for name, kind in (("lab/policy", "model"), ("EuroEval/scala-en", "dataset"),
                           ("EuroEval/ifeval-en", "dataset")):  # fmt: skip
            api.create_repo(name, repo_type=kind)
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=name,
                            repo_type=kind)  # fmt: skip
    return home


def test_a_run_says_so_before_anything_is_made(line: LoadedRecipe, hub_with_it_all: Path) -> None:
    home = hub_with_it_all
    done = run_factory("run", "line.yaml", home=home)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stages.euroeval: EuroEval has no environment" in done.stderr
    assert "factory doctor --install euroeval-vllm" in done.stderr
    assert not list(home.glob("work/lab/*/artifact")), "not even the prompts were read"


@pytest.mark.slow
def test_a_check_says_so(line: LoadedRecipe, hub_with_it_all: Path) -> None:
    done = run_factory("check", "line.yaml", home=hub_with_it_all)
    assert done.returncode == 1
    assert "error: stages.euroeval: EuroEval has no environment" in done.stdout


SITE = """
generate: {partition: p, time: "60", gpus: 1}
train: {partition: p, time: "60", gpus: 1}
euroeval: {partition: p, time: "60", gpus: 1%s}
cpu: {partition: p, time: "60"}
"""


@pytest.mark.parametrize(
    ("more", "differs"),
    [
        ("", False),
        (", setup: [module load rocm]", False),
        (", container: /images/euroeval.sif", True),
        (", factory: /elsewhere/bin/factory", True),
        (", environment: {FACTORY_EUROEVAL: /shared/euroeval}", True),
        (", setup: ['export OPENAI_BASE_URL=http://node:8000/v1']", True),
    ],
)
def test_a_submission_refuses_what_a_node_would_see_too_and_tells_the_rest(
    tmp_path: Path, line: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, more: str, differs: bool
) -> None:
    monkeypatch.setenv("FACTORY_EUROEVAL", str(tmp_path / "none"))
    (tmp_path / "lab.yaml").write_text(SITE % more)
    site = sites.load(str(tmp_path / "lab.yaml"), tmp_path)
    pins = lock_of(line.recipe)
    steps = plan(line.recipe, pins, Inventory())
    names = [step.name for step in steps]
    asked = SubmitRequest(line, pins, Inventory(), steps, names, site, Home(tmp_path / "home"))
    told: list[str] = []
    if differs:
        check_requirements(asked, steps, told.append)
        assert told[0].startswith("warning: stages.euroeval, as seen from here: EuroEval has no ")
    else:
        with pytest.raises(InputError, match=r"stages\.euroeval: EuroEval has no environment"):
            submit(asked, None, told.append, Queue(lambda command: ""))  # type: ignore[arg-type]
        assert not submission.read_submissions(asked.home.root, line.recipe), "none submitted"
    told.clear()
    check_requirements(asked, steps, told.append, binding=False)  # scripts are looked at anywhere
    assert len(told) == 1
    told.clear()
    check_requirements(asked, steps[:2], told.append)
    assert told == []


def test_a_plan_says_how_many_scores_there_will_be_and_how_long_they_take(
    line: LoadedRecipe,
) -> None:
    def left(held: Inventory, *overrides: str) -> Estimate:
        recipe = load(str(line.path), overrides).recipe
        return estimate(plan(recipe, lock_of(recipe), held), held)["euroeval"]

    scores = sum(len(suites.registry()[name].metrics) for name in ("scala-en", "ifeval"))
    assert left(Inventory()) == Estimate(scores, 0, 1, None)
    held = walked(line.recipe, lock_of(line.recipe))  # in a second, for so many rows
    assert left(held).rows == 0
    again = left(held, "stages.euroeval.few_shot=false")
    assert again.rows == scores and again.seconds == pytest.approx(scores / ASKED)


def test_a_server_without_the_model_is_told_before_anything_runs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(StageError, match="has no model local/model"):
        stage(backend="openai").run(job(tmp_path / "w", model, {"en": ["scala-en"]}))
    names = {"policy": "one", "dpo-all": "one"}
    with pytest.raises(StageError, match="policy and dpo-all are both 'one' on the server"):
        stage(backend="openai", how={"served_models": names}).run(
            job(tmp_path / "v", model, {"en": ["scala-en"]})
        )


# the real tool


def installed() -> bool:
    return (environment.default_place("openai") / "benchmarks.json").exists()


real = pytest.mark.skipif(not installed(), reason="no EuroEval here: make install-euroeval")

ROPE = """
import json, sys
import torch, transformers
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
for path in sys.argv[1:]:
    config = AutoConfig.from_pretrained(path)
    made = LlamaRotaryEmbedding(config)
    print(json.dumps([transformers.__version__, made.inv_freq.tolist(),
                      float(made.attention_scaling),
                      str(getattr(config, "dtype", None) or config.torch_dtype)]))
"""


@real
@pytest.mark.slow
def test_rotary_embeddings_are_the_same_in_both_versions_of_transformers(tmp_path: Path) -> None:
    from factory.evaluation.euroeval import checkpoint

    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
            "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64,
            "max_position_embeddings": 8192, "dtype": "bfloat16"}  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 8.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 2048},
    }  # fmt: skip
    for kind, more in kinds.items():
        new = tmp_path / kind / "new"
        new.mkdir(parents=True)
        rope = {"rope_type": kind, "rope_theta": 100000.0, **more}
        (new / "config.json").write_text(json.dumps({**base, "rope_parameters": rope}))
        checkpoint.write(new, tmp_path / kind / "old", "bfloat16")
    asked = {}
    for python, where in ((sys.executable, "new"), (str(environment.python("openai")), "old")):
        paths = [str(tmp_path / kind / where) for kind in kinds]
        done = subprocess.run([python, "-c", ROPE, *paths], check=True, text=True,
                              env=environment.clean_environment(), capture_output=True)  # fmt: skip
        asked[where] = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "["]
    for kind, ours, theirs in zip(kinds, asked["new"], asked["old"], strict=True):
        assert ours[0].startswith("5.") and theirs[0].startswith("4.")
        assert ours[1] == pytest.approx(theirs[1], rel=1e-6), kind
        assert ours[2:] == theirs[2:], kind


METRICS = """
import json, evaluate
def score(name, predictions, references, **more):
    return evaluate.load(name).compute(predictions=predictions, references=references, **more)
said, right = [0, 1, 2, 2, 1, 0], [0, 2, 2, 2, 1, 1]
found = [
    score("accuracy", said, right)["accuracy"],
    score("f1", said, right, average="macro")["f1"],
    score("matthews_correlation", said, right)["matthews_correlation"],
    score("seqeval", [["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "B-ORG"]])[
        "overall_f1"
    ],
]
answers = lambda *texts: {"text": list(texts), "answer_start": [0] * len(texts)}
asked = [
    ("1", "The red house", answers("red house", "house")),  # the same but for an article
    ("2", "in the old town", answers("old town hall")),  # words: in old town, old town hall
    ("3", "", answers()),  # no answer, and none was right
    ("4", "a guess", answers()),
]
squad = score(
    "squad_v2",
    [{"id": n, "prediction_text": said, "no_answer_probability": 0.0} for n, said, _ in asked],
    [{"id": n, "answers": right} for n, _, right in asked],
)
print(json.dumps([*found, squad["exact"], squad["f1"]]))
"""


@real
@pytest.mark.slow
def test_our_metric_scripts_are_read_by_evaluate_and_right(tmp_path: Path) -> None:
    from factory.evaluation.euroeval import directory

    directory.prepare(tmp_path / "run", {}, {}, "en", "17.0.0")
    for script in ("accuracy", "f1", "matthews_correlation", "seqeval", "squad_v2"):
        to = tmp_path / "run" / script
        to.mkdir()
        (to / f"{script}.py").write_text(directory.metric(script).read_text())
    env = environment.clean_environment(
        {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(environment.INSIDE)}
    )
    done = subprocess.run(
        [str(environment.python("openai")), "-c", METRICS],
        cwd=tmp_path / "run", env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    accuracy, f1, mcc, entities, exact, words = json.loads(done.stdout.splitlines()[-1])
    assert accuracy == pytest.approx(4 / 6)
    # by hand: label 0: p 1/2, r 1; label 1: p 1/2, r 1/2; label 2: p 1, r 2/3
    assert f1 == pytest.approx((2 / 3 + 1 / 2 + 4 / 5) / 3)
    # (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), Gorodkin 2004
    assert mcc == pytest.approx((4 * 6 - 12) / ((36 - 12) * (36 - 14)) ** 0.5)
    assert entities == pytest.approx(1 / 2)
    assert exact == pytest.approx(100 * 2 / 4)
    assert words == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)


SENTENCES = """
import sys
import nltk
nltk.data.path[:] = sys.argv[1:]
from euroeval.metrics.ifeval.metric import instruction_accuracy
for count in (2, 3):
    asked = {"instruction_id_list": ["length_constraints:number_sentences"],
             "kwargs": [{"num_sentences": count, "relation": "at least"}]}
    print(instruction_accuracy(["Dr. Smith came. He left."], [asked], None, None, None))
"""


@real
@pytest.mark.slow
def test_what_is_brought_from_pypi_counts_sentences_offline(tmp_path: Path) -> None:
    # NLTK reads nothing that a group may write, which is what many clusters' umask gives
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(environment.python("openai"))
    before = os.umask(0o002)
    try:
        environment._bring_punkt(tmp_path, print)
        environment._bring_punkt(tmp_path, print)  # over what is there
    finally:
        os.umask(before)
    env = environment.clean_environment({"PYTHONPATH": str(environment.INSIDE)})
    done = subprocess.run(
        [str(environment.python("openai")), "-c", SENTENCES, str(tmp_path / "nltk_data")],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if line[0].isdigit()] == ["1.0", "0.0"]


RECIPE = """
name: eur
org: local
languages: [en]
license: {id: apache-2.0, because: a test}
models:
  policy: local/SmolLM2-135M-Instruct-Q4_1
  tuned: {name: local/SmolLM2-135M-Instruct-Q4_1, adapter: local/tuned,
          base: local/SmolLM2-135M-Instruct-Q4_1}
stages:
  euroeval:
    of: [policy, tuned]
    benchmarks: {en: [scala-en]}
    iterations: 2
    few_shot: false
    backend: openai
    dtype: float32
    max_context: 1024
    how: {limit: 600}
"""


@real
@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("vllm"), reason="vLLM is not installed: make install-vllm"
)
def test_the_real_tool_on_the_real_model_through_a_recipe(tmp_path: Path) -> None:
    # over a minute: vLLM and EuroEval each start twice, for the base and for the tuned model
    from huggingface_hub import HfApi

    from factory.localhub.launcher import connect

    home = tmp_path / "home"
    adapter = tmp_path / "adapter"
    make_adapter(adapter, tmp_path)
    rows = tmp_path / "rows"  # a few: the time goes into the starts
    rows.mkdir()
    for split, count in (("train", 8), ("val", 8), ("test", 10)):
        lines = (DATA / "scala-en" / f"{split}.csv").read_text().splitlines(keepends=True)
        (rows / f"{split}.csv").write_text("".join(lines[: count + 1]))
    with connect(home / "hub") as hub:
        api = HfApi(hub.url, token=hub.token)
        api.create_repo("EuroEval/scala-en", repo_type="dataset")
        api.upload_folder(repo_id="EuroEval/scala-en", repo_type="dataset", folder_path=str(rows))
        api.create_repo("local/tuned")
        api.upload_folder(repo_id="local/tuned", folder_path=str(adapter))
    (tmp_path / "eur.yaml").write_text(RECIPE)
    done = run_factory("run", "eur.yaml", home=home, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    found = run_factory("results", "eur.yaml", "--json", home=home)
    rows = json.loads(found.stdout)
    scores = {(r["model"], r["metric"]): r for r in rows if not r["against"]}
    assert scores.keys() == {
        (model, metric) for model in ("policy", "tuned") for metric in ("mcc", "macro_f1")
    }
    [manifest] = [read_manifest(path) for path in home.glob("work/local/*/artifact")]
    # every answer of the model is a label: none is cut off before it
    assert {s["failed"] for s in manifest.stats["scores"] if s["model"] == "policy"} == {0}
    for row in scores.values():
        assert row["value"] is not None and row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["by"] == "EuroEval 17.0.0, openai, zero-shot"
    [delta] = [r for r in rows if r["against"]]
    assert delta["model"] == "tuned" and delta["against"] == "policy"
    [kept] = home.glob("work/local/*/artifact/records/en/tuned/scala-en.json")
    assert str(tmp_path) not in kept.read_text()
    assert (kept.parents[3] / "README.md").read_text().count("scala-en") > 4

    checked = run_factory("card", "datasets/local/eur-results", "--check", home=home)
    assert checked.returncode == 0, checked.stdout
    again = run_factory("run", "eur.yaml", home=home)
    assert again.returncode == 0 and "reused" in again.stdout


def make_adapter(out: Path, aside: Path) -> None:
    """A LoRA adapter on the small model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = aside / "base"
    base.mkdir()
    POCKET["local/SmolLM2-135M-Instruct-Q4_1"].build(base)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), config)
    torch.manual_seed(0)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    made.save_pretrained(str(out))
