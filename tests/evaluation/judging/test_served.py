"""A judge that is only served: named by what its server calls it, asked over HTTP, never pinned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import License
from factory.artifacts.tables import read_slice
from factory.artifacts.workdir import Home
from factory.errors import InputError, RecipeError, StageError
from factory.evaluation.judging.prompts import wording
from factory.evaluation.judging.stage import Judge
from factory.evaluation.judging.truncate import MARK, Characters, fit
from factory.execution import bundle, checks, run
from factory.execution.builtin_models import POCKET
from factory.planning.lock import outside
from factory.planning.plan import Inventory, State, plan
from factory.planning.recipe import LoadedRecipe, load
from factory.reports.page import page
from factory.reports.page.gather import gather
from factory.reports.page.lineage import Chain
from factory.slurm import site as sites
from factory.slurm import sizes, submit
from factory.slurm.queue import Queue
from factory.slurm.script import render
from factory.slurm.submission import Part, begin, works
from factory.stage.inputs import ServedModel
from tests.engines.test_openai import serving
from tests.evaluation.judging.test_stage import answers
from tests.execution.test_offline_hub import SILENT
from tests.support.builders import by_name, lock_of, walked
from tests.support.jobs import job, made
from tests.support.openai_server import KEY
from tests.support.trainings import adapter_of

ASKED = ServedModel("llm_judge", "judge-1")
WORDS = {"max_tokens": None, "max_completion_tokens": 64}  # as newer models of OpenAI's want it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("served") / "log"
    with serving(log) as url:
        yield url, log


@pytest.fixture
def log(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_BASE_URL", server[0])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server[1].write_text("")
    return server[1]


def sent(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["body"] for line in log.read_text().splitlines()]


def judge(**more: Any) -> Judge:
    return Judge(**{"judge": "asked", "ask": {"request": WORDS}, "how": {"shard": 2}, **more})


def judged(root: Path, ours: list[str], theirs: list[str], stage: Judge) -> tuple[Any, list[Any]]:
    """What a stage makes of these answers, and its rows."""
    reads = {
        "answers": answers(root / "ours", "dpo-all", {"en": ours}),
        "reference": answers(root / "theirs", "policy", {"en": theirs}),
    }
    outcome = stage.run(job(root / "job", ["en"], reads, {ASKED: root}))
    return outcome, made(root / "job", "en", "verdicts")


def test_it_is_asked_over_http_in_both_orders_and_is_no_more_than_a_draw(
    log: Path, tmp_path: Path
) -> None:
    outcome, rows = judged(
        tmp_path, ["longer one", "b", "same"], ["short", "other", "same"], judge()
    )
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["model"] * 2 + ["reference"] * 2 + ["tie"] * 2
    assert {row["judge"] for row in rows} == {"judge-1"}
    assert rows[0]["judge_output"].startswith("Answer A has 10 characters")
    assert outcome.determinism == "distribution", "a server promises nothing at temperature 0"
    assert outcome.stats["judge"] == "judge-1" and outcome.stats["judge_revision"] is None
    assert outcome.stats["served"].startswith("not pinned")
    assert outcome.stats["engines"] == {"openai, served as judge-1": 2}
    assert outcome.tokens > 0 and outcome.spent is not None and outcome.spent.gpu_seconds == 0
    bodies = sent(log)
    assert len(bodies) == 4, "identical answers are not asked about"
    words = {"temperature": 0, "top_p": 1, "max_completion_tokens": 64, "model": "judge-1"}
    assert all({**body, **words} == body and "max_tokens" not in body for body in bodies)


def test_no_verdict_of_a_server_is_null_with_a_reason_and_ends_no_run(
    log: Path, tmp_path: Path
) -> None:
    ours = ["longer one", "forbidden", "improper", "endless", "x" * 9000, "last one"]
    stage = judge(ask={"request": WORDS, "orders": "random"})
    outcome, rows = judged(tmp_path, ours, ["short"] * 6, stage)
    assert [(row["verdict"], row["reason"]) for row in rows] == [
        ("model", None), ("unparseable", "refused"), ("unparseable", "refused"),
        ("unparseable", "cut_off"), ("unparseable", "too_long"), ("model", None),
    ]  # fmt: skip
    assert rows[2]["judge_output"] == "I will not judge this."
    assert outcome.stats["comparisons"][0]["bounds"] == {
        "worst": pytest.approx(100 / 3), "best": pytest.approx(100),
    }  # fmt: skip


def test_thinking_is_switched_off_in_the_servers_words(log: Path, tmp_path: Path) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    stage = judge(ask={"request": off}, how={"served_model": "judge-thinks"})
    _, rows = judged(tmp_path, ["longer"], ["short"], stage)
    assert rows[0]["verdict"] == "model" and rows[0]["judge"] == "judge-1"
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in sent(log))
    with pytest.raises(StageError, match="chat_template_kwargs") as error:
        judged(tmp_path / "other", ["longer"], ["short"], judge(ask={"request": off}))
    assert "ask.request" in error.value.fix and KEY not in str(error.value)


def test_long_answers_are_cut_by_characters_evenly_and_counted(log: Path, tmp_path: Path) -> None:
    stage = judge(ask={"context": 3000, "max_tokens": 64, "request": WORDS})
    outcome, rows = judged(tmp_path, ["x" * 9000, "b"], ["y" * 900, "cc"], stage)
    assert [row["verdict"] for row in rows] == ["model"] * 2 + ["reference"] * 2
    assert rows[0]["cut_tokens"] > 6000 and rows[2]["cut_tokens"] == 0
    texts = [body["messages"][0]["content"] for body in sent(log)]
    assert 2900 < max(map(len, texts)) <= 3000 - 64
    assert all("y" * 900 in text for text in texts if "y" * 9 in text), "the longer gives way"
    assert outcome.stats["cut_by"] == "characters"


@pytest.mark.parametrize("text", ["bread ", "żmien twil ", "长时间 ", "👩‍🍳 "])
def test_what_is_cut_by_characters_fits_to_the_letter(text: str) -> None:
    def ask(first: str, second: str) -> list[Any]:
        return wording("ties").fill([{"role": "user", "content": "?"}], first, second, "mt")

    asked, cut = fit(Characters(), ask, text * 900, text * 300, 2000)
    assert sum(len(message["content"]) for message in asked) == 2000 and MARK in str(asked)
    assert cut > 0 and fit(Characters(), ask, "a", "b", 20)[0] is None


# in a recipe

GPT = "gpt-4.1-2025-04-14"
TERMS = "licenses={" + GPT + ": {id: other, name: Terms of OpenAI, link: 'https://openai.com'}}"
SERVED = (
    "models.asked={served: " + GPT + "}", "stages.judge.judge=asked",
    "stages.judge.max_tokens=null", "stages.judge.dtype=null", TERMS,
    "license={id: apache-2.0, because: a test}",
)  # fmt: skip


def demo(*more: str) -> LoadedRecipe:
    return load("demo", (*SERVED, *more))


def fingerprints(*more: str) -> set[str]:
    recipe = demo(*more).recipe
    step = by_name(plan(recipe, lock_of(recipe), Inventory()))["judge"]
    return {made.fingerprint for made in step.slices}


def test_its_name_is_its_identity_and_where_it_is_asked_is_not() -> None:
    base = fingerprints()
    assert fingerprints("stages.judge.how={engine: openai, served_model: ours}") == base
    assert not base & fingerprints(
        "models.asked={served: gpt-4.1}", "licenses={gpt-4.1: {id: mit}}"
    )
    assert not base & fingerprints("stages.judge.ask={request: {reasoning_effort: low}}")


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("stages.generate.model=asked",), "stages.generate names the model 'asked', which is on"),
        (("stages.arena.of=[asked, policy, dpo]",), "stages.arena names the model 'asked'"),
        (("stages.score.reward=asked",), "stages.score names the model 'asked'"),
        (("stages.dpo.base=asked",), "stages.dpo names the model 'asked'"),
        (("stages.translate.model=asked",), "stages.translate names the model 'asked'"),
        (("models.asked={served: x, kind: classifier}",), "told by its name alone"),
        (("models.asked={served: x, revision: v1}",), "told by its name alone"),
        (("models.asked={served: x, name: a/b}",), "one of name, step and served"),
        (("stages.judge.dtype=float32",), "dtype has no meaning for 'asked'"),
        (("stages.judge.how={engine: vllm}",), "how.engine has no meaning for 'asked'"),
        (("stages.judge.ask={request: {model: x}}",), "model is not for a recipe to say"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_recipe_is_read(overrides, what) -> None:
    with pytest.raises(RecipeError) as error:
        demo(*overrides)
    assert what in str(error.value)


def test_words_for_a_server_are_refused_where_there_is_none() -> None:
    with pytest.raises(RecipeError, match="is for a judge that is served"):
        demo("models.asked=org/chat", "stages.judge.ask={request: {a: 1}}")


def test_nothing_of_it_is_pinned_fetched_or_looked_at(tmp_path: Path) -> None:
    loaded = demo()
    assert GPT not in {need.source for need in outside(loaded.recipe)}
    assert GPT not in {asked.model.source for asked in checks.tokenizers(loaded.recipe)}
    pins = lock_of(loaded.recipe)
    held = walked(loaded.recipe, pins, until="judge")
    steps = plan(loaded.recipe, pins, held)
    given = bundle.gather(loaded, pins, held, Home(tmp_path), steps, {"judge"}, tmp_path)
    assert not [one for one in given.repos if one.content is not None]
    given.write(tmp_path)
    again = bundle.read(tmp_path).loaded().recipe
    assert [s.fingerprint for s in plan(again, pins, held)] == [s.fingerprint for s in steps]


def test_a_run_is_told_that_there_is_no_address_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    recipe = demo().recipe
    [found] = checks.missing_requirements(recipe)
    assert found.name == "stages.judge" and "OPENAI_BASE_URL" in found.seen + found.fix
    assert checks.missing_requirements(recipe, {"arena"}) == []
    gate = checks.gate(demo(), lock_of(recipe), None, None, print, ["prompts"], {"judge"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="OPENAI_BASE_URL"):
        gate(plan(recipe, lock_of(recipe), Inventory())[0])
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert checks.missing_requirements(recipe) == []
    assert checks.missing_requirements(demo("models.asked=org/chat").recipe) == []


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (("licenses=null",), f"judge: unknown licence: {GPT}"),
        ((), f"judge cannot be under apache-2.0: it is made from {GPT} (other)"),
        (("licenses={" + GPT + ": {id: mit}}",), None),
        (("license=null",), None),
    ],
)
def test_what_its_words_are_under_is_asked_before_a_run_and_not_after(
    said: tuple[str, ...], what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    loaded = demo("license=apache-2.0", *said)
    missing = checks.missing_requirements(loaded.recipe)
    assert [finding.seen for finding in missing] == ([what] if what else [])
    assert checks.missing_requirements(loaded.recipe, {"arena"}) == []


SITE = (
    "secrets: {secrets}\ngenerate: {{partition: g, time: '60', gpus: 8}}\n"
    "train: {{partition: t, time: '60', gpus: 8}}\ncpu: {{partition: c, time: '60'}}\n{more}"
)


def test_nodes_that_are_not_told_where_it_is_are_not_waited_for(tmp_path: Path) -> None:
    def asked(more: str, *overrides: str) -> submit.SubmitRequest:
        (tmp_path / "lab.yaml").write_text(SITE.format(secrets=tmp_path / "keys", more=more))
        loaded = demo(*overrides)
        pins = lock_of(loaded.recipe)
        held = walked(loaded.recipe, pins, until="judge")
        steps = plan(loaded.recipe, pins, held)
        site = sites.load(str(tmp_path / "lab.yaml"), tmp_path)
        return submit.SubmitRequest(
            loaded, pins, held, steps, ["judge"], site, Home(tmp_path / "home")
        )

    told: list[str] = []
    unsaid = asked("", "licenses=null", "license=null")
    with pytest.raises(InputError, match="unknown licence"):
        submit.check_requirements(unsaid, unsaid.steps, told.append)
    refused = f"needs the served model {GPT}, and nodes of lab have no"
    with pytest.raises(InputError, match=refused) as error:
        submit.submit(asked(""), None, told.append, Queue(lambda command: ""))  # type: ignore[arg-type]
    assert "environment: of the site" in error.value.fix and "--only judge" in error.value.fix
    there = asked("environment: {OPENAI_BASE_URL: 'http://server:8000/v1'}\n")
    steps = [step for step in there.steps if step.name == "judge"]
    submit.check_requirements(there, steps, told.append)
    assert told == [f"judge asks {GPT} at the OPENAI_BASE_URL of lab: its nodes must reach that"]
    size = sizes.size(steps[0], there.site.cpu, shards=40)
    assert size.single, "more tasks would make a server no faster"
    submission = begin(there.home.root, there.loaded.recipe, there.site)
    [work] = works(Part(steps[0], size), submission, there.home.root)
    script = render(work, there.site)
    assert "--partition=c" in script and "gpus" not in script, "no GPU waits for a server"
    assert 'export OPENAI_BASE_URL="http://server:8000/v1"' in script
    assert str(tmp_path / "keys") in script and KEY not in script


# the whole line


def write(root: Path, questions: int = 6) -> LoadedRecipe:
    """A recipe in which a tuned model is judged by a served one, and its questions."""
    lines = [json.dumps({"id": f"q{n}", "prompt": f"Question {n}?"}) for n in range(questions)]
    (root / "questions.jsonl").write_text("\n".join(lines))
    (root / "line.yaml").write_text(
        f"name: {root.name}\norg: local\nlanguages: [en]\nlicense: apache-2.0\n"
        "licenses: {judge-1: {id: apache-2.0}}\n"
        "models:\n  policy: local/tiny-random-llama\n"
        "  tuned: {name: local/tiny-random-llama, adapter: local/tuned,"
        " base: local/tiny-random-llama}\n"
        "  asked: {served: judge-1}\n"
        "stages:\n  questions: {source: questions.jsonl}\n"
        "  arena: {of: [policy, tuned], max_tokens: 12, dtype: float32}\n"
        f"  judge: {{model: tuned, judge: asked, ask: {json.dumps({'request': WORDS})}}}\n"
    )
    return load(str(root / "line.yaml"))


@pytest.mark.slow
def test_a_whole_line_ends_in_verdicts_whose_manifest_and_card_say_what_is_not_known(
    server: tuple[str, Path], log: Path, hub: Any, connection: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from huggingface_hub import HfApi

    POCKET["local/tiny-random-llama"].build(tmp_path / "model")
    adapter_of(tmp_path / "model", tmp_path / "tuned", r=4, target_modules=["q_proj", "down_proj"])
    api = HfApi(connection.url, connection.token)
    (tmp_path / "tuned" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    api.create_repo("local/tuned")
    api.upload_folder(repo_id="local/tuned", folder_path=str(tmp_path / "tuned"))
    loaded, home = write(tmp_path), Home(tmp_path / "home")
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(InputError, match="needs OPENAI_BASE_URL"):
        run.run(loaded, hub, home, SILENT)
    assert not list(home.all_work("local")), "nothing was made before it was told"

    monkeypatch.setenv("OPENAI_BASE_URL", server[0])
    steps = by_name(run.run(loaded, hub, home, SILENT))
    found = steps["judge"].found
    assert steps["judge"].state is State.REUSE
    assert found is not None and found.directory is not None
    manifest = found.manifest
    rows = read_slice(found.directory, "en/tuned", "verdicts").to_pylist()
    assert len(rows) == 12 and {row["judge"] for row in rows} == {"judge-1"}
    assert {row["reason"] for row in rows} <= {None, "identical"}
    read = [one for one in manifest.slices["en/tuned"].inputs if one.served]
    assert [(one.role, one.source, one.revision) for one in read] == [
        ("llm_judge", "judge-1", None)
    ]
    assert [one.source for one in manifest.models] == ["judge-1"]
    assert manifest.determinism == "distribution" and manifest.license == License(id="apache-2.0")
    shown = (found.directory / "README.md").read_text()
    assert "judge-1, a served model, not pinned" in shown and "judge-1, served, not pinned" in shown
    everything = b"".join(p.read_bytes() for p in found.directory.rglob("*") if p.is_file())
    assert KEY.encode() not in everything and b"127.0.0.1" not in everything
    assert "served, not pinned" in page.render(gather(Chain((manifest,)), "line"))

    published = load(str(found.directory / "recipe.yaml")).recipe
    assert published == loaded.recipe, "what was taken out of a request is written down too"

    asked = len(sent(log))
    more = write(tmp_path, questions=8)  # more of the same: what was judged stands
    run.run(more, hub, home, SILENT)
    assert 0 < len(sent(log)) - asked <= 2 * 2
    asked = len(sent(log))
    run.run(more, hub, home, SILENT)
    assert len(sent(log)) == asked
