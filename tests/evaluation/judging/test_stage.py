"""judge and arena: who is asked what, how often, and what is never asked twice."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.artifacts import schemas
from factory.artifacts.hashing import text_hash
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.engines import Completion, Sampling, chat_template, choose, transformers
from factory.engines.choose import EngineCache, EngineKnobs
from factory.engines.transformers import TransformersLikelihood
from factory.errors import RecipeError
from factory.evaluation.arena import Arena, _describe
from factory.evaluation.judging.stage import (
    NOT_INDEPENDENT,
    OWN_MODEL,
    UNKNOWN_TRAINING,
    Judge,
)
from factory.execution.builtin_models import POCKET
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.rewards.backends.generative import Generative, GenerativeBackend
from factory.sampling.sources import Questions
from factory.stage.inputs import ExternalInput, RewardInput
from factory.stage.job import Place
from tests.engines.test_openai import serving
from tests.support.builders import by_name, lock_of
from tests.support.jobs import MODEL, job, made, prompts
from tests.support.openai_server import KEY
from tests.support.trainings import adapter_of, model_of_family

REAL_SAMPLER = choose.sampler
LLM = ExternalInput("llm_judge", "local/judge@main", "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M, unpacked once: that alone takes 20 s of a processor."""
    out = tmp_path_factory.mktemp("real")
    POCKET["local/SmolLM2-135M-Instruct-Q4_1"].build(out)
    return out


def answers(root: Path, name: str, texts: dict[str, Sequence[str]]) -> Path:
    """An artifact of a model's answers by language; None for a question it did not answer."""
    for language, said in texts.items():
        rows: list[dict[str, object]] = [
            {
                "model": name,
                "question_id": f"q{number}",
                "language": language,
                "category": "hard_prompt" if number % 2 else "creative_writing",
                "prompt": [{"role": "user", "content": f"Question {number} in {language}?"}],
                "prompt_hash": text_hash(f"{number} {language}"),
                "answer": text,
                "n_tokens": len(text.split()),
                "finish_reason": "stop",
                "detected_language": language,
                "lines": 1,
                "wrong_lines": 0,
            }
            for number, text in enumerate(said)
            if text is not None
        ]
        write_slice(slice_directory(root, language), schemas.from_rows(rows, "answers"))
    return root


class Scripted:
    """A judge without weights that says what it is told to: by default it likes the answer with
    the word `good` and else the first. It keeps what it is asked, and by which knobs it opens."""

    name, lanes, tokens, stop_ids = "scripted", 1, 0, (2,)
    loads: ClassVar[list[str]] = []
    knobs: ClassVar[Any] = None
    asked: ClassVar[list[str]] = []
    says: ClassVar[str | None] = None

    def __init__(self, tokenizer: Any, max_context: int = 100_000, knobs: Any = None) -> None:
        self.tokenizer, self.max_context = tokenizer, max_context
        Scripted.loads.append("loaded")
        Scripted.knobs = knobs

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        found = []
        for ids in prompts:
            text = self.tokenizer.decode(list(ids))
            Scripted.asked.append(text)
            if "<response_2>" in text:
                second, marks = text.split("<response_2>")[1].split("</response_2>")[0], "12"
            else:
                second, marks = text.split("[Answer B]")[1].split("[End of answer B]")[0], "AB"
            said = Scripted.says or f"[[{marks['good' in second]}]]"
            said_ids = self.tokenizer(said, add_special_tokens=False)["input_ids"]
            end = "length" if "LONG" in said else "stop"
            found.append(Completion(tuple(said_ids), end, seed))
        return found

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def scripted(model: Path, monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    tokenizer = chat_template.load_tokenizer(str(model))
    Scripted.loads, Scripted.asked, Scripted.says = [], [], None
    monkeypatch.setattr(
        "factory.engines.choose.sampler", lambda knobs, *_: Scripted(tokenizer, knobs=knobs)
    )
    return Scripted


def judge(**more: Any) -> Judge:
    return Judge(**{"dtype": "float32", "judge": "chat", "how": {"shard": 2}, **more})


OURS = {"en": ["good one", "other", "same", "good four"], "ga": ["bad", "good two", "same", "x"]}
THEIRS = {"en": ["bad one", "good", "same", "four"], "ga": ["good", "two", "same", "y"]}


@pytest.fixture
def reads(tmp_path: Path) -> dict[str, Path]:
    return {
        "answers": answers(tmp_path / "ours", "dpo-all", OURS),
        "reference": answers(tmp_path / "theirs", "policy", THEIRS),
    }


def test_every_question_is_asked_in_both_orders_with_one_load_for_all_languages(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    asked = job(tmp_path / "job", ["en", "ga"], reads, {LLM: model})
    outcome = judge().run(asked)
    planned = judge().expected_rows({"answers": 4, "reference": 4}, asked.slices[0])
    assert planned == outcome.rows["en"].into
    rows = made(tmp_path / "job", "en", "verdicts")
    assert [(row["question_id"], row["order"]) for row in rows] == [
        (f"q{n}", order) for n in range(4) for order in ("model_first", "reference_first")
    ]
    assert scripted.loads == ["loaded"]
    assert len(scripted.asked) == 2 * (3 + 3), "identical answers are not asked about"
    assert [row["verdict"] for row in rows[:2]] == ["model", "model"], "whichever stands first"
    assert [row["verdict"] for row in rows[2:4]] == ["reference", "reference"]
    assert {(row["verdict"], row["reason"]) for row in rows[4:6]} == {("tie", "identical")}
    assert outcome.rows["en"].balanced() and outcome.rows["en"].out == 8
    assert outcome.determinism == "rounding", "of an engine that nobody knows"
    every = outcome.stats["comparisons"][0]
    assert (every["language"], every["verdicts"]["identical"]) == ("all", 2)
    assert outcome.stats["judge_kind"] == "llm"
    assert outcome.stats["judge"] == "local/model" and "judge_revision" in outcome.stats
    assert outcome.stats["template"]["name"] == "ties" and outcome.stats["orders"] == "both"
    irish = made(tmp_path / "job", "ga", "verdicts")
    assert irish[6]["verdict"] == "model" and irish[7]["verdict"] == "reference"
    found = next(row for row in outcome.stats["comparisons"] if row["language"] == "ga")
    assert found["consistency"]["both"] == 3 and found["consistency"]["same"] == 2
    assert "should be in Irish" in scripted.asked[-1]
    assert {row["category"] for row in outcome.stats["by_category"]} == {
        "hard_prompt", "creative_writing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("says", "reason"),
    [("I like both.", "no_verdict"), ("[[m]]", "no_verdict"), ("LONG [[A]]", "cut_off")],
)
def test_what_cannot_be_read_is_kept_with_what_was_said_and_is_no_tie(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path,
    says: str, reason: str,
) -> None:  # fmt: skip
    scripted.says = says
    outcome = judge().run(job(tmp_path / "job", ["en"], reads, {LLM: model}))
    row = made(tmp_path / "job", "en", "verdicts")[0]
    assert (row["verdict"], row["reason"], row["judge_output"]) == ("unparseable", reason, says)
    [found] = outcome.stats["comparisons"]
    assert found["unparseable"] == 3 and found["bounds"] == {"worst": 12.5, "best": 87.5}
    assert found["win_rate"]["comparisons"] == 1, "the identical pair alone"


def test_one_random_order_asks_once(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    stage = judge(ask="as-published")
    outcome = stage.run(job(tmp_path / "job", ["en", "ga"], reads, {LLM: model}))
    rows = made(tmp_path / "job", "ga", "verdicts")
    assert len(rows) == 4 and len(scripted.asked) == 6
    alone = stage.run(job(tmp_path / "alone", ["ga"], reads, {LLM: model}))
    again = made(tmp_path / "alone", "ga", "verdicts")
    assert [row["order"] for row in rows] == [row["order"] for row in again]
    assert [row["verdict"] for row in rows[:3]] == ["reference", "model", "tie"]
    assert outcome.determinism == "distribution" and alone.stats["orders"] == "random"
    assert (alone.stats["template"]["name"], alone.stats["template"]["ties"]) == (
        "as-published", True,
    )  # fmt: skip
    other = replace(job(tmp_path / "other", ["ga"], reads, {LLM: model}), seed=7)
    stage.run(other)
    assert made(tmp_path / "other", "ga", "verdicts") == again, "its seed is 1337 in any recipe"
    assert "consistency" not in outcome.stats["comparisons"][0]


def _earlier(root: Path, *languages: str) -> dict[str, tuple[ReusableSlice, ...]]:
    return {
        name: (ReusableSlice(slice_directory(root / "out", name), "org/old@fp-1", whole=False),)
        for name in languages
    }


def test_a_second_run_judges_nothing_and_a_new_answer_or_language_only_what_is_new(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    first = judge().run(job(tmp_path / "one", ["en"], reads, {LLM: model}))
    loads, asked = len(scripted.loads), len(scripted.asked)
    held = replace(
        job(tmp_path / "two", ["en"], reads, {LLM: model}), earlier=_earlier(tmp_path / "one", "en")
    )
    second = judge().run(held)
    assert (len(scripted.loads), len(scripted.asked)) == (loads, asked), "no engine, no question"
    assert second.stats["comparisons"] == first.stats["comparisons"]

    changed = {**OURS, "en": [*OURS["en"][:3], "good and new"]}
    reads["answers"] = answers(tmp_path / "changed", "dpo-all", changed)
    held = replace(
        job(tmp_path / "three", ["en", "ga"], reads, {LLM: model}),
        earlier=_earlier(tmp_path / "two", "en"),
    )
    scripted.asked.clear()
    third = judge().run(held)
    assert len(scripted.asked) == 2 + 6, "one new answer, and Irish, in both orders"
    assert sum("good and new" in text for text in scripted.asked) == 2
    assert third.rows["en"].out == 8 and third.rows["ga"].out == 8


def test_only_the_order_that_is_lacking_is_asked_for(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    judge(ask={"orders": "random"}).run(job(tmp_path / "one", ["en"], reads, {LLM: model}))
    scripted.asked.clear()
    held = replace(
        job(tmp_path / "two", ["en"], reads, {LLM: model}), earlier=_earlier(tmp_path / "one", "en")
    )
    judge().run(held)
    assert len(scripted.asked) == 3


def test_answers_that_are_too_long_are_cut_and_counted_by_language(
    scripted: type[Scripted], model: Path, tmp_path: Path
) -> None:
    long = {"en": ["bread and water " * 400, "b"], "ga": ["a", "b"]}
    reads = {
        "answers": answers(tmp_path / "ours", "dpo", long),
        "reference": answers(tmp_path / "theirs", "policy", {"en": ["x", "y"], "ga": ["x", "y"]}),
    }
    stage = judge(ask={"context": 700, "max_tokens": 64})
    outcome = stage.run(job(tmp_path / "job", ["en", "ga"], reads, {LLM: model}))
    cut = {row["language"]: row["verdicts"]["cut"] for row in outcome.stats["comparisons"]}
    assert cut == {"all": 1, "en": 1, "ga": 0}
    rows = made(tmp_path / "job", "en", "verdicts")
    assert rows[0]["cut_tokens"] > 100 and rows[2]["cut_tokens"] == 0
    assert "unparseable" not in {row["verdict"] for row in rows}, "one long pair ends no run"
    assert scripted.knobs.vllm() == EngineKnobs().vllm(), "opened for the longest that is asked"
    stage = judge(ask={"context": 300, "max_tokens": 64})
    outcome = stage.run(job(tmp_path / "short", ["en"], reads, {LLM: model}))
    assert {row["reason"] for row in made(tmp_path / "short", "en", "verdicts")} == {"too_long"}


def test_a_generative_reward_judges_each_answer_apart(
    reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    need = ExternalInput("generative", "local/judge@main", "model")
    reward = RewardInput(
        GenerativeBackend(kind="generative", name="local/judge"), (("generative", need),)
    )
    plain = job(tmp_path / "job", ["en"], reads, {need: model})
    slices = tuple(replace(spec, reward=reward) for spec in plain.slices)
    outcome = Judge(dtype="float32").run(replace(plain, slices=slices))
    by_hand = Generative(TransformersLikelihood(model, "float32"), 16384)
    rows = {row["question_id"]: row for row in made(tmp_path / "job", "en", "verdicts")}
    asked = read_slice(reads["answers"], "en", "answers").to_pylist()
    for answer in asked:
        [value] = by_hand([(answer["prompt"], answer["answer"])])
        row = rows[answer["question_id"]]
        assert row["score_model"] == pytest.approx(value.value, abs=1e-5)
        assert (row["order"], row["verdict"] == "tie") == ("apart", answer["answer"] == "same")
    assert outcome.stats["judge_kind"] == "generative"
    assert outcome.stats["judge"] == "local/model"


def test_what_one_model_did_not_answer_is_dropped_with_a_reason(
    scripted: type[Scripted], model: Path, tmp_path: Path
) -> None:
    reads = {
        "answers": answers(tmp_path / "ours", "dpo", {"en": ["a", None, "c"]}),  # type: ignore[list-item]
        "reference": answers(tmp_path / "theirs", "policy", {"en": ["x", "y", None]}),  # type: ignore[list-item]
    }
    outcome = judge().run(job(tmp_path / "job", ["en"], reads, {LLM: model}))
    assert outcome.rows["en"].model_dump() == {
        "into": 6,
        "out": 2,
        "dropped": {"unanswered_by_model": 2, "unanswered_by_reference": 2},
    }


def test_questions_among_the_prompts_of_training_are_counted_and_named(
    scripted: type[Scripted], reads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    reads["training"] = prompts(
        tmp_path / "prompts", {"en": ["QUESTION 2  in en?", "Something else"]}
    )
    outcome = judge().run(job(tmp_path / "job", ["en"], reads, {LLM: model}))
    assert outcome.stats["seen_in_training"]["en"] == {
        "questions": 4, "prompts": 2, "seen": 1, "ids": ["q2"],
    }  # fmt: skip
    assert outcome.stats["comparisons"][0]["seen_in_training"] == 1


# in a recipe


LLM_JUDGE = ("stages.judge.judge=asked", "models.asked=org/chat", "stages.judge.max_tokens=null")


def test_the_kind_of_the_model_that_is_named_says_how_it_judges() -> None:
    def needs(*overrides: str) -> list[str]:
        recipe = load("demo", overrides).recipe
        [spec, *_] = [spec for stage, spec in recipe.slices() if stage.name == "judge"]
        return [need.role for need in spec.needs]

    assert needs() == ["answers", "reference", "judge", "training"]
    assert needs(*LLM_JUDGE) == ["answers", "reference", "llm_judge", "training"]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("stages.judge.ask={orders: random}",), "ask has no meaning for 'reward'"),
        ((*LLM_JUDGE[:2], "stages.judge.max_tokens=5"), "is what a reward model reads"),
        (
            (*LLM_JUDGE, "stages.judge.ask={template: tied}"),
            "no template 'tied', only as-",
        ),
        ((*LLM_JUDGE, "stages.judge.ask={text: hello}"), "does not say where {prompt} goes"),
        (
            (*LLM_JUDGE, "stages.judge.how={max_model_len: 8192}"),
            "the first long pair would end the run",
        ),
        ((*LLM_JUDGE, "stages.judge.ask=published"), "the one word as-published"),
    ],
)
def test_a_judge_that_cannot_be_meant_is_refused_before_anything_runs(overrides, what) -> None:
    with pytest.raises(RecipeError) as error:
        load("demo", overrides)
    assert what in str(error.value)


def test_a_language_that_was_not_answered_is_an_error_and_no_gap() -> None:
    with pytest.raises(RecipeError, match=r"compares 'en/policy', which stages.arena does not"):
        load("demo", ["stages.arena.of=[dpo]"])


def evaluated(*overrides: str) -> dict[str, list[str]]:
    """The slices of the demo's questions, arena and judge."""
    slices: dict[str, list[str]] = {"questions": [], "arena": [], "judge": []}
    for stage, spec in load("demo", ["stages.dpo.each=[en]", *overrides]).recipe.slices():
        if stage.name in slices:
            slices[stage.name].append(spec.name)
    return slices


def test_11_an_adapter_of_one_language_is_compared_in_every_language() -> None:
    assert evaluated()["judge"] == ["en/dpo-en"]
    assert evaluated()["arena"] == ["en/policy", "es/policy", "fr/policy", "en/dpo-en"]
    everywhere = evaluated("stages.arena.languages=all")
    assert everywhere["judge"] == ["en/dpo-en", "es/dpo-en", "fr/dpo-en"]
    own = evaluated("stages.arena.languages=all", "stages.judge.languages=own")
    assert own["judge"] == ["en/dpo-en"]
    beyond = evaluated("stages.arena.languages=[en, ga]", "stages.judge.languages=[ga]")
    assert beyond["questions"] == ["en", "es", "fr", "ga"]
    assert beyond["arena"] == ["en/policy", "ga/policy", "en/dpo-en", "ga/dpo-en"]
    assert beyond["judge"] == ["ga/dpo-en"]


def test_more_languages_change_no_verdict_and_count_no_question_as_learned() -> None:
    every = ("stages.dpo.each=[en]", "stages.arena.languages=all")
    assert marks("stages.dpo.each=[en]").items() <= marks(*every).items()
    recipe = load("demo", every).recipe
    reads = {
        spec.name: spec.need("training") for stage, spec in recipe.slices() if stage.name == "judge"
    }
    assert [name for name, need in reads.items() if need is not None] == ["en/dpo-en"]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("stages.arena.languages=[]", "names no language"),
        ("stages.arena.languages=[xx]", "xx"),
        ("stages.judge.languages=[de]", "add de to stages.arena.languages"),
    ],
)
def test_languages_that_cannot_be_meant_are_refused(override: str, what: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("demo", ["stages.arena.of=[policy, dpo]", override])
    assert what in str(error.value)


def marks(*overrides: str) -> dict[str, str]:
    recipe = load("demo", overrides).recipe
    step = by_name(plan(recipe, lock_of(recipe), Inventory()))["judge"]
    return {made.spec.name: made.row_key for made in step.slices}


def test_wording_orders_and_temperature_are_another_judge_and_how_it_is_run_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = marks(*LLM_JUDGE)
    for other in ("{template: no-ties}", "{orders: random}", "{temperature: 0.7}", "{context: 99}"):
        assert not set(base.values()) & set(marks(*LLM_JUDGE, f"stages.judge.ask={other}").values())
    assert marks(*LLM_JUDGE, "stages.judge.how={engine: openai, shard: 3}") == base
    assert (
        marks(*LLM_JUDGE, "languages=[en, es, fr, da]").items()
        >= {"es/dpo-es": base["es/dpo-es"]}.items()
    )
    from factory.evaluation.judging import prompts as wording

    read = wording.wording
    monkeypatch.setattr(
        wording, "wording", lambda name: wording.parse(name, read(name).text + " Be quick.")
    )
    assert not set(base.values()) & set(marks(*LLM_JUDGE).values()), "a changed file is seen"


def test_a_greedy_judge_has_no_use_for_the_seed_and_a_random_order_has() -> None:
    reward = Judge()
    llm = [spec for stage, spec in load("demo", LLM_JUDGE).recipe.slices() if stage.name == "judge"]
    apart = [spec for stage, spec in load("demo").recipe.slices() if stage.name == "judge"]
    assert not judge().uses_seed(llm[0]) and judge(ask={"orders": "random"}).uses_seed(llm[0])
    assert not judge(ask="as-published").uses_seed(llm[0]), "it has a seed of its own"
    assert not reward.uses_seed(apart[0])


def test_a_judge_that_is_not_independent_is_said_to_be_so() -> None:
    def notes(*overrides: str) -> tuple[str, ...]:
        recipe = load("demo", overrides).recipe
        return next(spec.notes for stage, spec in recipe.slices() if stage.name == "judge")

    assert notes() == (NOT_INDEPENDENT,)
    assert notes(*LLM_JUDGE) == ()
    assert notes("stages.judge.judge=policy") == (OWN_MODEL,)
    same = "models.reward={kind: generative, name: org/chat}"
    assert notes(*LLM_JUDGE, same) == (NOT_INDEPENDENT,)
    served = ("models.asked={served: org/chat}", "stages.judge.dtype=null")
    assert notes(LLM_JUDGE[0], LLM_JUDGE[2], *served, same) == (NOT_INDEPENDENT,)
    again = "models.again={kind: classifier, step: reward}"
    assert notes(again, "stages.judge.judge=again") == (NOT_INDEPENDENT,)
    mine = "models.asked={name: local/SmolLM2-135M-Instruct-Q4_1, revision: main}"
    assert notes(LLM_JUDGE[0], LLM_JUDGE[2], mine) == (OWN_MODEL,)
    adapted = "models.reward={kind: generative, name: org/chat, adapter: org/other}"
    assert notes(*LLM_JUDGE, adapted) == (), "another model than the one that is asked"


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("control-online", (), (NOT_INDEPENDENT,)),  # which scores nothing beforehand
        ("control-sft", (), (NOT_INDEPENDENT,)),
        ("control-online", ("models.other={kind: classifier, name: org/other}",
                            "stages.judge.judge=other"), ()),
        # of two rewards, the one that trained what is compared
        ("smoke", ("models.other={kind: classifier, name: org/other}",
                   "stages.score.reward=other"), ()),
        ("smoke", ("models.other={kind: classifier, name: org/other}",
                   "stages.score.reward=other", "stages.judge.judge=other"), (NOT_INDEPENDENT,)),
        ("smoke-icr", ("stages.judge.judge=reward",), (NOT_INDEPENDENT, OWN_MODEL)),
        ("smoke", ("stages.dpo={from: org/adapter}", "stages.merge=null"), (UNKNOWN_TRAINING,)),
        # rows that were chosen elsewhere, below an adapter that is trained here
        ("smoke", ("stages.pair={from: org/pairs}",), (UNKNOWN_TRAINING,)),
        ("control-sft", ("stages.best={from: org/best}",), (UNKNOWN_TRAINING,)),
        ("smoke", ("stages.generate={from: org/answers}",), (NOT_INDEPENDENT,)),
        ("smoke", ("models.theirs={name: local/tiny-random-llama, adapter: org/adapter}",
                   "stages.arena.of=[policy, theirs]", "stages.judge.model=theirs"),
         (UNKNOWN_TRAINING,)),
    ],
)  # fmt: skip
def test_a_judge_is_compared_with_the_rewards_that_trained_what_it_compares(
    recipe: str, overrides: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    slices = load(recipe, overrides).recipe.slices()
    assert {spec.notes for stage, spec in slices if stage.name == "judge"} == {expected}


# arena


def arena(**more: Any) -> Arena:
    how = {"engine": "transformers", "shard": 2}
    return Arena(**{"max_tokens": 4, "dtype": "float32", "how": how, **more})


def arena_spec() -> Any:
    return next(spec for stage, spec in load("demo").recipe.slices() if stage.name == "arena")


def arena_job(root: Path, names: list[str], reads: dict[str, Path], model: Path) -> Any:
    """A job whose slices are called `language/model`."""
    plain = job(root, ["en"], reads, {MODEL: model})
    [spec] = plain.slices
    return replace(plain, slices=tuple(replace(spec, name=f"en/{name}") for name in names))


def test_answers_end_where_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aya = model_of_family("aya", tmp_path / "aya", max_position_embeddings=4096)
    asked = prompts(tmp_path / "q", {"en": ["Hello"]})
    handed: list[list[int]] = []
    real = transformers.generation

    def watched(sampling: Any, room: int, ids: list[int]) -> Any:
        handed.append(ids)
        return real(sampling, room, ids)

    monkeypatch.setattr(transformers, "generation", watched)
    for stops in ("all", "config"):
        held = arena_job(tmp_path / stops, ["base"], {"questions": asked}, aya)
        arena(stops=stops).run(held)
    assert len(set(handed[0]) - set(handed[-1])) == 2, "what the template prints, and no config has"


def test_questions_that_the_template_refuses_are_left_out_and_counted(tmp_path: Path) -> None:
    mistral = model_of_family("mistral", tmp_path / "mistral", max_position_embeddings=4096)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked = prompts(tmp_path / "q", {"en": ["Hello", system, "Why?"]})
    held = arena_job(tmp_path / "job", ["base"], {"questions": asked}, mistral)
    rows = arena().run(held).rows["en/base"]
    assert (rows.into, rows.out, rows.dropped) == (3, 2, {chat_template.REFUSED: 1})


def test_answers_keep_category_and_subcategory_and_say_how_their_lines_went(
    model: Path, tmp_path: Path
) -> None:
    asked = prompts(tmp_path / "q", {"en": ["Hello", "Why?"]})
    rows = made_prompts(asked)
    for row in rows:
        row |= {"domain": "hard_prompt", "subcategory": "coding"}
    write_slice(slice_directory(asked, "en"), schemas.from_rows(rows, "prompts"))
    outcome = arena().run(arena_job(tmp_path / "job", ["base"], {"questions": asked}, model))
    said = made(tmp_path / "job", "en/base", "answers")
    assert [(r["category"], r["subcategory"]) for r in said] == [("hard_prompt", "coding")] * 2
    assert [row["prompt_hash"] for row in said] == [row["prompt_hash"] for row in rows]
    assert all(row["lines"] is not None and row["wrong_lines"] <= row["lines"] for row in said)
    assert outcome.stats["by_slice"]["en/base"]["answers"] == 2
    assert outcome.stats["by_slice"]["en/base"]["word_pass_rate"] is None
    assert outcome.stats["by_slice"]["en/base"]["no_word_pass_rate"] == "latin_script"
    assert outcome.stats["by_slice"]["en/base"]["cut_off"] == sum(
        row["finish_reason"] == "length" for row in said
    )


def test_the_word_pass_rate_is_that_of_answers_without_a_wrong_line() -> None:
    text = "это совсем обычная строка текста"
    said = [(text, 2, 0), (f"{text} weather", 1, 0), (f"{text} weather", 2, 1), ("да", 0, 0)]
    rows = [
        {
            "model": "base", "question_id": str(n), "language": "ru", "answer": answer,
            "prompt": [{"role": "user", "content": "?"}], "n_tokens": 3, "finish_reason": "stop",
            "lines": lines, "wrong_lines": wrong,
        }
        for n, (answer, lines, wrong) in enumerate(said)
    ]  # fmt: skip
    found = _describe(schemas.from_rows(rows, "answers"), "ru")
    assert found["line_pass_rate"] == pytest.approx(2 / 3)
    assert found["word_pass_rate"] == 0.5 and "no_word_pass_rate" not in found
    none = _describe(schemas.from_rows(rows[2:], "answers"), "ru")
    assert (none["word_pass_rate"], none["no_word_pass_rate"]) == (None, "no_answer_to_judge")
    unknown = _describe(schemas.from_rows(rows, "answers"), "mni")
    assert (unknown["in_language"], unknown["no_word_pass_rate"]) == (None, "no_detector")


def made_prompts(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_slice(root, "en", "prompts").to_pylist()
    return rows


def test_a_model_is_decoded_alike_whatever_it_is_called(model: Path, tmp_path: Path) -> None:
    asked = prompts(tmp_path / "q", {"en": ["Hello", "Why?", "Salt"]})
    names = ["base", "maya-aya-tuned"]
    arena().run(arena_job(tmp_path / "job", names, {"questions": asked}, model))
    one, other = (made(tmp_path / "job", f"en/{name}", "answers") for name in names)
    assert [row["answer"] for row in one] == [row["answer"] for row in other]
    with pytest.raises(ValueError, match="temperature"):
        arena(temperature=-0.1)


def test_answers_may_be_drawn_with_the_seed_and_are_then_of_another_identity(
    model: Path, tmp_path: Path
) -> None:
    asked = prompts(tmp_path / "q", {"en": ["Hello", "Why?", "Salt"]})

    def drawn(name: str, seed: int, **knobs: Any) -> Any:
        work = arena_job(tmp_path / name, ["base", "other"], {"questions": asked}, model)
        outcome = arena(**knobs).run(replace(work, seed=seed))
        one, other = (made(tmp_path / name, f"en/{m}", "answers") for m in ("base", "other"))
        assert [row["answer"] for row in one] == [row["answer"] for row in other]
        return [row["answer"] for row in one], outcome.determinism

    greedy, exact = drawn("greedy", 0)
    hot, distribution = drawn("hot", 0, temperature=1.0)
    assert (exact, distribution) == ("exact", "distribution")
    assert hot == drawn("again", 0, temperature=1.0)[0] != greedy
    assert hot != drawn("seeded", 1, temperature=1.0)[0]
    [spec, *_] = arena_job(tmp_path / "s", ["base"], {"questions": asked}, model).slices
    assert not arena().uses_seed(spec) and arena(temperature=1.0).uses_seed(spec)
    assert "temperature" not in arena().identity_fields(spec)
    assert arena(temperature=1.0).identity_fields(spec)["temperature"] == 1.0
    # so little probability leaves the likeliest token alone
    assert greedy == drawn("narrow", 0, temperature=1.0, top_p=1e-6)[0]
    assert "top_p" not in arena(temperature=1.0).identity_fields(spec)
    with pytest.raises(ValueError, match="top_p means nothing at temperature 0"):
        arena(top_p=0.9)


def test_several_answers_are_drawn_and_judged_with_an_interval_over_questions(
    model: Path, tmp_path: Path, scripted: type[Scripted]
) -> None:
    monkey = pytest.MonkeyPatch()
    words = ["Hello", "Why?", "Salt", "Sea", "Sun", "Sky"]
    asked = prompts(tmp_path / "q", {"en": words})
    work = arena_job(tmp_path / "job", ["base", "other"], {"questions": asked}, model)
    stage = arena(temperature=1.0, n=3, max_tokens=4)
    with monkey.context() as patched:
        patched.setattr("factory.engines.choose.sampler", REAL_SAMPLER)
        outcome = stage.run(work)
        rows = made(tmp_path / "job", "en/base", "answers")
        assert [row["draw"] for row in rows] == [0, 1, 2] * 6
        assert len({row["answer"] for row in rows}) > 6
        assert outcome.rows["en/base"].into == 18
        # more questions: those that are there keep their draws
        more = prompts(
            tmp_path / "q2", {"en": ["Hello", "Why?", "Salt", "Sea", "Sun", "Sky", "Ho"]}
        )
        again = arena_job(tmp_path / "again", ["base", "other"], {"questions": more}, model)
        kept = ReusableSlice(slice_directory(tmp_path / "job" / "out", "en/base"), "x", False)
        again = replace(again, earlier={"en/base": (kept,)})
        stage.run(again)
        assert [r["answer"] for r in made(tmp_path / "again", "en/base", "answers")][:18] == [
            row["answer"] for row in rows
        ]

    # each draw is judged beside the same draw of the reference, the same texts once
    write_slice(slice_directory(tmp_path / "a", "en"), schemas.from_rows(rows, "answers"))
    theirs = made(tmp_path / "job", "en/other", "answers")
    for row in theirs:
        row["answer"] = "always good" if row["question_id"] == "p0" else "so"
    for row in rows:
        row["answer"] = "the same" if row["question_id"] == "p0" else f"good {row['draw']}"
    for name, written in (("a", rows), ("b", theirs)):
        write_slice(slice_directory(tmp_path / name, "en"), schemas.from_rows(written, "answers"))
    reads = {"answers": tmp_path / "a", "reference": tmp_path / "b"}
    verdicts = judge().run(job(tmp_path / "judge", ["en"], reads, {LLM: model}))
    assert len(scripted.asked) == 2 * (1 + 5 * 3)
    counts = verdicts.rows["en"]
    assert (counts.into, counts.out, counts.dropped) == (36, 32, {"same_texts_drawn_again": 4})
    [figures] = verdicts.stats["comparisons"]
    rate = figures["win_rate"]
    assert (rate["comparisons"], rate["questions"]) == (18, 6)
    assert figures["verdicts"]["asked"] == 36


def test_several_answers_at_temperature_0_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"arena.* at temperature 0 all answers are the same one"):
        load("demo", ["stages.arena.n=4"])
    assert "n" not in arena(temperature=1.0).identity_fields(arena_spec())
    assert arena(temperature=1.0, n=4).identity_fields(arena_spec())["n"] == 4


def test_a_base_is_loaded_once_for_all_that_are_made_of_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(tmp_path / "q", {"en": ["Hello", "Why?", "Salt"]})
    adapters = {
        name: adapter_of(
            model, tmp_path / name, r=rank, lora_alpha=64, target_modules=["q_proj", "down_proj"]
        )
        for name, rank in (("dpo-en", 4), ("dpo-da", 12))
    }
    opened: list[Any] = []
    real = choose.sampler

    def counted(*arguments: Any) -> Any:
        opened.append(arguments[4:])
        return real(*arguments)

    monkeypatch.setattr(choose, "sampler", counted)

    def run(root: Path, names: list[str]) -> list[list[str]]:
        plain = arena_job(root, names, {"questions": asked}, model)
        needs = {name: ExternalInput("adapter", f"local/{name}@main", "model") for name in adapters}
        slices = [
            replace(spec, needs=(*spec.needs, *([needs[name]] if name in needs else [])))
            for name, spec in zip(names, plain.slices, strict=True)
        ]
        places = {**plain.places, **{needs[n]: Place(adapters[n]) for n in adapters}}
        arena().run(replace(plain, slices=tuple(slices), places=places))
        rows = [made(root, f"en/{name}", "answers") for name in names]
        return [[row["answer"] for row in of_one] for of_one in rows]

    names = ["policy", *adapters]
    together = run(tmp_path / "all", names)
    assert opened == [(None, list(adapters.values()))]
    assert len({tuple(said) for said in together}) == 3
    assert run(tmp_path / "alone", ["dpo-da"]) == together[2:]
    assert opened[1:] == [(adapters["dpo-da"], [])]


def test_one_name_at_a_server_stands_for_one_model() -> None:
    served = ["stages.arena.how={engine: openai, served_model: busy}"]
    with pytest.raises(RecipeError, match="one name"):
        list(load("demo", served).recipe.slices())


def test_more_questions_are_answered_and_no_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = prompts(tmp_path / "few", {"en": ["Hello", "Why?", "salt " * 600]})
    more = prompts(tmp_path / "more", {"en": ["Hello", "Why not?", "salt " * 600, "New"]})
    arena().run(arena_job(tmp_path / "one", ["base"], {"questions": few}, model))
    held = replace(
        arena_job(tmp_path / "two", ["base"], {"questions": more}, model),
        earlier=_earlier(tmp_path / "one", "en/base"),
    )
    asked: list[int] = []
    real = Arena._make

    def counted(self: Arena, sampler: Any, seed: int, label: str, rows: Any) -> Any:
        asked.extend(int(row["prompt_id"][1:]) for row in rows)
        return real(self, sampler, seed, label, rows)

    monkeypatch.setattr(Arena, "_make", counted)
    outcome = arena().run(held)
    assert sorted(asked) == [1, 2, 3], "what is in other words, what was too long, what is new"
    assert outcome.rows["en/base"].dropped == {"prompt_too_long": 1}
    whole = replace(
        arena_job(tmp_path / "three", ["base"], {"questions": few}, model),
        earlier={
            "en/base": (replace(_earlier(tmp_path / "one", "en/base")["en/base"][0], whole=True),)
        },
    )
    outcome = arena().run(whole)
    assert (
        outcome.rows["en/base"].dropped == {"as_before": 1} and outcome.rows["en/base"].balanced()
    )


def _arenahard(code: str) -> list[dict[str, str]]:
    return [
        {
            "question_id": f"id{number}",
            "category": "hard_prompt",
            "subcategory": "coding",
            "prompt": f"{number} in {code}?",
            "language": code,
        }
        for number in range(3)
    ]


def _questions(root: Path, source: Path, code: str) -> list[dict[str, Any]]:
    """The questions in a language that are made of a file, or of a dataset as it lies on disk."""
    need = ExternalInput("source", str(source), "dataset", extent=True)
    plain = job(root, [code], {}, {})
    [spec] = plain.slices
    slices = (replace(spec, needs=(need,)),)
    stage = Questions(source="CohereLabs/m-ArenaHard-v2.1", split="test")
    stage.run(replace(plain, slices=slices, places={need: Place(source)}))
    rows = made(root, code, "prompts")
    assert [row["prompt_id"] for row in rows] == ["id0", "id1", "id2"], "the same in each"
    assert {(row["domain"], row["subcategory"]) for row in rows} == {("hard_prompt", "coding")}
    return rows


def test_m_arenahard_is_read_in_its_own_columns(tmp_path: Path) -> None:
    """question_id, category, subcategory, prompt, language, the language of a row its own."""
    source = tmp_path / "m-arenahard.jsonl"
    lines = [line for code in ("en", "mt") for line in _arenahard(code)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for code in ("en", "mt"):
        rows = _questions(tmp_path / code, source, code)
        assert rows[0]["messages"][0]["content"] == f"0 in {code}?"


@pytest.mark.slow
def test_m_arenahard_is_read_as_the_dataset_that_it_is(tmp_path: Path) -> None:
    """A config a language, the split `test`, through the datasets library."""
    root = tmp_path / "m-ArenaHard-v2.1"
    configs = ""
    for code in ("en", "mt"):
        (root / code).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(_arenahard(code)), root / code / "test.parquet")
        configs += f"- config_name: {code}\n  data_files:\n  - split: test\n    path: {code}/*\n"
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for code in ("en", "mt"):
        rows = _questions(tmp_path / code, root, code)
        assert rows[0]["messages"][0]["content"] == f"0 in {code}?"


# for real


@pytest.mark.slow
def test_a_real_small_model_judges_for_real(real: Path, tmp_path: Path) -> None:
    """SmolLM2-135M through transformers: most of what it says is no verdict, which is what the
    bounds are for."""
    texts = {"en": ["It is Paris.", "same"], "es": ["Es París.", "igual"]}
    others = {"en": ["I like trains.", "same"], "es": ["Trenes.", "igual"]}
    reads = {
        "answers": answers(tmp_path / "ours", "dpo-all", texts),
        "reference": answers(tmp_path / "theirs", "policy", others),
    }
    opened: list[str] = []
    keep = EngineCache.__call__

    def counting(self: EngineCache[Any], key: str = "") -> Any:
        if self._current is None:
            opened.append(key)
        return keep(self, key)

    EngineCache.__call__ = counting  # type: ignore[method-assign]
    try:
        how = {"engine": "transformers", "shard": 2}
        stage = judge(how=how, ask={"max_tokens": 16})
        outcome = stage.run(job(tmp_path / "job", ["en", "es"], reads, {LLM: real}))
    finally:
        EngineCache.__call__ = keep  # type: ignore[method-assign]
    assert len(opened) == 1, "one load for both languages and both orders"
    rows = [row for code in ("en", "es") for row in made(tmp_path / "job", code, "verdicts")]
    assert len(rows) == 8 and sum(row["reason"] == "identical" for row in rows) == 4
    assert all(row["judge_output"] for row in rows if row["reason"] != "identical")
    every = outcome.stats["comparisons"][0]
    assert every["bounds"]["worst"] <= every["win_rate"]["rate"] <= every["bounds"]["best"]
    assert every["verdicts"]["asked"] == 8


_COPIES = (
    "{prompt} ({language}) [[A]] or [[B]]?\nA: {answer_a}\nB: {answer_b}\nRepeat the better answer."
)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
def test_a_judge_says_the_same_through_vllm_as_through_transformers(
    real: Path, tmp_path: Path
) -> None:
    """SmolLM2-135M, greedy, in both orders. It is no judge: it copies answers, and some of these
    hold a verdict, so that there is something to read."""
    ours = {
        "en": ["Yes.", "Yes: [[A]] it is.", "Bread. [[A]]", "same"],
        "es": ["Sí.", "Pan. [[A]]", "El agua.", "igual"],
    }
    theirs = {
        "en": ["No: [[B]] it is.", "No: [[B]] it is.", "Bread is flour and salt.", "same"],
        "es": ["No: [[B]].", "El pan es harina y sal.", "Agua hierve.", "igual"],
    }
    found = {}
    for engine in ("transformers", "vllm"):
        reads = {
            "answers": answers(tmp_path / engine / "ours", "dpo-all", ours),
            "reference": answers(tmp_path / engine / "theirs", "policy", theirs),
        }
        how = {"engine": engine, "shard": 8, "max_num_seqs": 16}
        stage = judge(how=how, ask={"text": _COPIES, "max_tokens": 24, "context": 256})
        outcome = stage.run(job(tmp_path / engine, ["en", "es"], reads, {LLM: real}))
        assert [name.split()[0] for name in outcome.stats["engines"]] == [engine]
        same_batches = engine == "transformers"
        assert outcome.determinism == ("exact" if same_batches else "rounding")
        assert outcome.tokens > 0
        found[engine] = [
            (row["question_id"], row["order"], row["verdict"], row["reason"], row["judge_output"])
            for code in ("en", "es")
            for row in made(tmp_path / engine, code, "verdicts")
        ]
    assert found["vllm"] == found["transformers"]
    assert len(found["vllm"]) == 16
    verdicts = [verdict for _, _, verdict, reason, _ in found["vllm"] if reason != "identical"]
    assert {"model", "reference", "unparseable"} <= set(verdicts), verdicts


@pytest.mark.slow
def test_a_served_model_judges_over_http(
    model: Path, reads: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with serving(log) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        how = {"engine": "openai", "served_model": "busy-1", "shard": 2}
        stage = judge(how=how, ask={"max_tokens": 16, "context": 512})
        outcome = stage.run(job(tmp_path / "job", ["en", "ga"], reads, {LLM: model}))
    sent = [json.loads(line)["body"] for line in log.read_text().splitlines()]
    assert {body["temperature"] for body in sent} == {0} and {
        body["max_tokens"] for body in sent
    } == {16}
    assert outcome.stats["comparisons"][0]["verdicts"] == {
        "asked": 16, "unparseable": 12, "identical": 2, "cut": 0,
    }  # fmt: skip
    assert [name.split(",")[0] for name in outcome.stats["engines"]] == ["openai"]
