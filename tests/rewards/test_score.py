"""The score stage with each kind of reward: what it reads, what it refuses, what it audits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.artifacts import schemas, tables
from factory.artifacts.hashing import text_hash
from factory.artifacts.tables import read_slice, slice_directory
from factory.engines import chat_template, choose
from factory.engines.transformers import TransformersLikelihood
from factory.errors import InputError, RecipeError, StageError
from factory.execution.builtin_models import POCKET
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.rewards.backends.generative import Generative
from factory.rewards.backends.implicit import Implicit, crosslingual
from factory.rewards.score import Score
from factory.stage.inputs import ExternalInput, ServedModel, SliceSpec
from factory.stage.job import Job, PartDone, Place
from factory.stage.outcome import Outcome
from tests.support.builders import by_name, lock_of

RECIPE = """\
name: made
org: lab
languages: [en, es]
models:
  policy: lab/policy
  tuned: {reward}
stages:
  prompts: {{source: "p-{{language}}.jsonl"}}
  generate: {{n: 3}}
  score: {{reward: tuned, dtype: float32{more}}}
"""
IMPLICIT = "{kind: implicit, name: lab/tuned, reference: policy}"
GENERATIVE = "{kind: generative, name: lab/tuned}"
CLASSIFIER = "{kind: classifier, name: lab/tuned}"
TEXTS = {
    "en": {"a": "Why does bread rise?", "b": "How do I sleep?"},
    "es": {"a": "¿Por qué sube el pan?", "b": "¿Cómo duermo?"},
}
ANSWERS = ("Yeast.", "Porque sí, y ya.", "It is a long story, and it begins with flour.")


def recipe(tmp_path: Path, reward: str = IMPLICIT, more: str = "") -> Recipe:
    path = tmp_path / "made.yaml"
    path.write_text(RECIPE.format(reward=reward, more=more), encoding="utf-8")
    return load(str(path)).recipe


def specs(made: Recipe) -> list[SliceSpec]:
    return [spec for stage, spec in made.slices() if isinstance(stage, Score)]


def roles(spec: SliceSpec) -> list[str]:
    return [need.role for need in spec.needs]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    root = tmp_path_factory.mktemp("models")
    found = {name: root / name for name in ("policy", "tuned", "classifier", "lora")}
    for path in found.values():
        path.mkdir()
    POCKET["local/tiny-random-llama"].build(found["policy"])
    torch.manual_seed(1)
    tuned = AutoModelForCausalLM.from_pretrained(str(found["policy"]))
    for weight in tuned.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.3)
    tuned.save_pretrained(str(found["tuned"]))
    judge = AutoModelForSequenceClassification.from_pretrained(str(found["tuned"]), num_labels=1)
    torch.nn.init.normal_(judge.score.weight)
    judge.save_pretrained(str(found["classifier"]))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(str(found["policy"]))
    get_peft_model(base, lora).save_pretrained(str(found["lora"]))
    for name in ("tuned", "classifier"):
        AutoTokenizer.from_pretrained(str(found["policy"])).save_pretrained(str(found[name]))
    return found


def prompt_row(language: str, name: str, text: str) -> dict[str, Any]:
    return {
        "prompt_id": name,
        "language": language,
        "messages": [{"role": "user", "content": text}],
        "prompt_hash": text_hash(text),
    }


def sample_row(language: str, name: str, text: str, k: int, answer: str) -> dict[str, Any]:
    return {
        "prompt_id": name,
        "language": language,
        "k": k,
        "prompt_hash": text_hash(text),
        "response": answer,
        "response_hash": text_hash(answer),
        "n_tokens": len(answer.split()),
        "n_chars": len(answer),
        "finish_reason": "stop",
        "seed": 0,
    }


def job(
    made: Recipe,
    models: Mapping[str, Path],
    root: Path,
    texts: Mapping[str, Mapping[str, str]] = TEXTS,
    answers: tuple[str, ...] = ANSWERS,
    prompts: Mapping[str, Mapping[str, str]] | None = None,
) -> Job:
    """What a run would hand to the stage: rows at rest, models on disk."""
    for code, asked in texts.items():
        known = (prompts or texts)[code]
        rows = [prompt_row(code, name, text) for name, text in known.items()]
        drawn = [
            sample_row(code, name, text, k, answer)
            for name, text in asked.items()
            for k, answer in enumerate(answers)
        ]
        for kind, table in (("prompts", rows), ("samples", drawn)):
            directory = slice_directory(root / kind, code)
            tables.write_slice(directory, schemas.from_rows(table, kind))
    places = {}
    for spec in specs(made):
        for need in spec.needs:
            if isinstance(need, ServedModel):
                continue
            if isinstance(need, ExternalInput):
                name = "classifier" if need.role == "reward" else need.source.split("/")[-1]
                path = models.get(name.partition("@")[0], Path(need.source))
                places[need] = Place(path, need.source)
            else:
                places[need] = Place(root / ("samples" if need.role == "samples" else "prompts"))
    return Job(
        step="score",
        seed=0,
        slices=tuple(specs(made)),
        places=places,
        work=root / "work",
        out=root / "out",
        progress=lambda done, total, unit, tokens=0: None,
    )


def run(made: Recipe, of: Job) -> tuple[Outcome, dict[str, pa.Table]]:
    (of.work).mkdir(exist_ok=True)
    stage = made.steps()["score"]
    outcome = stage.run(of)
    return outcome, {spec.name: read_slice(of.out, spec.name, "scores") for spec in of.slices}


def values(table: pa.Table) -> list[float | None]:
    found: list[float | None] = table.column("reward").to_pylist()
    return found


# What is read.


def test_an_implicit_reward_reads_two_models_and_the_english_prompts(tmp_path: Path) -> None:
    english, spanish = specs(recipe(tmp_path))
    assert roles(english) == ["samples", "prompts", "policy", "reference"]
    assert roles(spanish) == ["samples", "prompts", "english", "policy", "reference"]
    assert spanish.needs[2].slice == "en"  # type: ignore[union-attr]
    assert spanish.need("policy").source == "lab/tuned@main"  # type: ignore[union-attr]
    assert spanish.need("reference").source == "lab/policy@main"  # type: ignore[union-attr]


def test_under_its_own_prompt_it_reads_no_others(tmp_path: Path) -> None:
    for spec in specs(recipe(tmp_path, more=", prompt: own")):
        assert roles(spec) == ["samples", "prompts", "policy", "reference"]


def test_a_policy_may_be_a_base_with_an_adapter(tmp_path: Path) -> None:
    tuned = "{kind: implicit, name: lab/policy, adapter: lab/lora, reference: policy}"
    english, _ = specs(recipe(tmp_path, tuned))
    assert roles(english) == ["samples", "prompts", "policy", "adapter", "reference"]
    assert english.need("adapter") == ExternalInput("adapter", "lab/lora@main", "model")


def test_likelihoods_stand_beside_the_rewards(models: dict[str, Path], tmp_path: Path) -> None:
    """Column log_prob is that of a plain loop over single answers, under their own prompts."""
    plain = recipe(tmp_path, CLASSIFIER)
    alone = run(plain, job(plain, models, tmp_path / "alone"))[1]
    made = recipe(tmp_path, CLASSIFIER, ", likelihood: policy")
    assert roles(specs(made)[1]) == ["samples", "prompts", "reward", "likelihood"]
    _, tables_of = run(made, job(made, models, tmp_path / "both"))
    engine = choose.likelihood(made.steps()["score"].how, models["policy"], "float32", None)
    for code, table in tables_of.items():
        assert values(table) == pytest.approx(values(alone[code]), abs=1e-4)
        assert "log_prob" not in alone[code].column_names
        rows = table.to_pylist()
        for row in rows:
            asked = [{"role": "user", "content": TEXTS[code][row["prompt_id"]]}]
            answer = ANSWERS[row["k"]]
            [(ids, start)] = chat_template.answered_ids(engine.tokenizer, [(asked, answer)])
            expected = sum(engine.log_probs([ids], [start])[0])
            assert row["log_prob"] == pytest.approx(expected, abs=1e-3)
    engine.close()


def test_a_generative_reward_reads_one_model(tmp_path: Path) -> None:
    for spec in specs(recipe(tmp_path, GENERATIVE)):
        assert roles(spec) == ["samples", "prompts", "generative"]


def test_every_kind_and_what_it_asks_is_another_identity(tmp_path: Path) -> None:
    marks = set()
    for reward, more in (
        (CLASSIFIER, ""),
        (IMPLICIT, ""),
        (IMPLICIT, ", prompt: own"),
        (GENERATIVE, ""),
        (GENERATIVE, ', question: "Is {answer} good for {prompt}?"'),
        (CLASSIFIER, ", audit: {preferences: q.jsonl}"),
        (CLASSIFIER, ", audit: {preferences: {source: q.jsonl, split: dev}}"),
        (CLASSIFIER, ", likelihood: policy"),
    ):
        made = recipe(tmp_path, reward, more)
        marks.add(by_name(plan(made, lock_of(made), Inventory()))["score"].fingerprint)
    assert len(marks) == 8


def test_an_audit_moves_no_row_key_and_its_limits_move_nothing(tmp_path: Path) -> None:
    def score(more: str) -> Any:
        made = recipe(tmp_path, CLASSIFIER, more)
        return by_name(plan(made, lock_of(made), Inventory()))["score"]

    plain, limited = score(""), score(", audit: {on_blind: refuse, length: 0.5}")
    assert plain.fingerprint == limited.fingerprint
    audited = score(", audit: {preferences: q.jsonl}")
    assert audited.fingerprint != plain.fingerprint  # what is published differs
    assert [s.row_key for s in audited.slices] == [s.row_key for s in plain.slices]


# What is refused at load, with its line.


@pytest.mark.parametrize(
    ("reward", "more", "match"),
    [
        ("{kind: implicit, name: lab/tuned}", "", r"yaml:6.*tuned.reference is missing"),
        (
            "{kind: classifier, name: lab/t, reference: policy}",
            "",
            "yaml:6.*tuned has no key 'reference'",
        ),
        ("{kind: implicit, name: lab/t, reference: nobody}", "", "names the model 'nobody'"),
        ("{kind: implicit, name: lab/t, reference: tuned}", "", "not a causal model"),
        ("{kind: implict, name: lab/t}", "", "yaml:6.*did you mean 'implicit'"),
        ("{kind: implicit, name: lab/t, referense: p}", "", "did you mean 'reference'"),
        ("{name: lab/t}", "", "'tuned' gives no rewards"),
        (CLASSIFIER, ", prompt: own", "score.prompt is for kind: implicit"),
        (IMPLICIT, ', question: "{prompt}{answer}?"', "question is for kind: generative"),
        (GENERATIVE, ', question: "Is {answer} good?"', r"yaml:10.*must hold \{prompt\} once"),
        (CLASSIFIER, ", likelihood: tuned", "score.likelihood names 'tuned', a classifier"),
        (CLASSIFIER, ", likelihood: nobody", "names the model 'nobody'"),
        (GENERATIVE, ", audit: {on_blind: stop}", "yaml:10.*audit.on_blind"),
        (GENERATIVE, ", audit: {length: 2}", "yaml:10.*audit.length"),
        (GENERATIVE, ", audit: {preferences: {source: q, splt: a}}", "yaml:10.*splt"),
        (GENERATIVE, ', audit: {preferences: "q-{lang}.jsonl"}', "placeholder other than"),
    ],
)
def test_nonsense_fails_when_it_is_loaded(
    tmp_path: Path, reward: str, more: str, match: str
) -> None:
    with pytest.raises(RecipeError, match=match):
        recipe(tmp_path, reward, more)


def test_without_english_prompts_an_implicit_reward_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "made.yaml"
    text = RECIPE.format(reward=IMPLICIT, more="").replace("[en, es]", "[es]")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="the recipe has no en") as raised:
        load(str(path))
    assert "prompt: own" in raised.value.fix


@pytest.mark.parametrize("kind", ["implicit, reference: policy", "generative"])
def test_a_policy_that_is_trained_after_its_own_scores_is_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match="dpo trains, which comes after it"):
        load("demo", [f"models.reward={{kind: {kind}, step: dpo}}", "stages.judge=null"])


def test_a_classifier_that_is_trained_here_answers_nothing() -> None:
    with pytest.raises(RecipeError, match="reward trains a classifier, which answers nothing"):
        load("demo", ["models.reward={kind: generative, step: reward}"])


# What is scored.


def test_every_language_is_read_under_the_english_prompt(
    models: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path)
    outcome, tables = run(made, job(made, models, tmp_path))
    policy = TransformersLikelihood(models["tuned"], "float32")
    by_hand = Implicit(policy, TransformersLikelihood(models["policy"], "float32"), 512)
    for code, table in tables.items():
        items = [
            (crosslingual([{"role": "user", "content": text}], code), answer)
            for text in TEXTS["en"].values()
            for answer in ANSWERS
        ]
        expected = [reward.value for reward in by_hand(items)]
        assert values(table) == pytest.approx(expected, abs=1e-4)
        hashes = [text_hash(TEXTS["en"][name]) for name in table.column("prompt_id").to_pylist()]
        found = table.column("prompt_hash").to_pylist()
        assert found == (hashes if code == "es" else [None] * len(table))
    assert outcome.rows["es"].into == outcome.rows["es"].out == 6


def test_the_adapter_is_on_the_policy_and_not_on_its_reference(
    models: dict[str, Path], tmp_path: Path
) -> None:
    tuned = "{kind: implicit, name: lab/policy, adapter: lab/lora, reference: policy}"
    made = recipe(tmp_path, tuned)
    _, tables = run(made, job(made, models, tmp_path))
    base = TransformersLikelihood(models["policy"], "float32")
    policy = TransformersLikelihood(models["policy"], "float32", models["lora"])
    items = [
        ([{"role": "user", "content": text}], answer)
        for text in TEXTS["en"].values()
        for answer in ANSWERS
    ]
    expected = [reward.value for reward in Implicit(policy, base, 512)(items)]
    assert values(tables["en"]) == pytest.approx(expected, abs=1e-4)
    assert all(value and abs(value) > 1e-3 for value in expected)


def test_a_prompt_without_an_english_one_has_no_reward_and_a_reason(
    models: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path)
    texts = {"en": {"a": TEXTS["en"]["a"]}, "es": TEXTS["es"]}
    _, tables = run(made, job(made, models, tmp_path, texts))
    rows = tables["es"].to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["no_english_prompt"] * 3
    assert [row["reward"] is None for row in rows] == [False] * 3 + [True] * 3


def test_a_score_under_an_english_prompt_that_changed_is_not_taken_over(
    models: dict[str, Path], tmp_path: Path
) -> None:
    import polars as pl

    made = recipe(tmp_path)
    stage = made.steps()["score"]
    asked: dict[str, pl.DataFrame] = {}

    class Watched(Job):
        def missing(self, name: str, kind: str, rows: Any) -> list[int]:
            asked[name] = rows
            return super().missing(name, kind, rows)

    of = job(made, models, tmp_path)
    of.work.mkdir()
    stage.run(Watched(**{field: getattr(of, field) for field in of.__dataclass_fields__}))
    assert asked["en"].columns == ["prompt_id", "k", "response_hash"]
    assert asked["es"]["prompt_hash"].to_list() == [
        text_hash(TEXTS["en"][name]) for name in ("a", "a", "a", "b", "b", "b")
    ]


def test_a_generative_reward_is_asked_in_the_prompts_own_language(
    models: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path, GENERATIVE, ', question: "Is {answer} good for {prompt}?"')
    _, tables = run(made, job(made, models, tmp_path))
    by_hand = Generative(
        TransformersLikelihood(models["tuned"], "float32"), 512, "Is {answer} good for {prompt}?"
    )
    items = [
        ([{"role": "user", "content": text}], answer)
        for text in TEXTS["es"].values()
        for answer in ANSWERS
    ]
    expected = [reward.value for reward in by_hand(items)]
    assert values(tables["es"]) == pytest.approx(expected, abs=1e-5)


def test_a_sample_of_another_prompt_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path)
    changed = {**TEXTS, "es": {**TEXTS["es"], "b": "¿Cómo descanso?"}}
    with pytest.raises(InputError, match="sample b k=0 answers another prompt"):
        run(made, job(made, models, tmp_path, prompts=changed))


# What is audited.


def many(code: str, prompts: int = 6) -> dict[str, str]:
    return {f"p{n}": f"{code} question number {n}?" for n in range(prompts)}


def test_a_reward_model_that_is_blind_is_warned_about_or_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    texts = {code: many(code) for code in ("en", "es")}
    same = ("The same.",) * 3  # one answer three times: nothing to tell apart
    made = recipe(tmp_path, CLASSIFIER)
    outcome, _ = run(made, job(made, models, tmp_path / "warn", texts, same))
    figures = outcome.stats["audit"]["by_language"]
    assert figures["es"]["spread"] == pytest.approx(0, abs=1e-6) and figures["es"]["prompts"] == 6
    assert "flat" in figures["es"]["blind"][0] and "flat" in figures["en"]["blind"][0]

    strict = recipe(tmp_path, CLASSIFIER, ", audit: {on_blind: refuse}")
    of = job(strict, models, tmp_path / "refuse", texts, same)
    with pytest.raises(StageError, match=r"blind in en \(flat.*; es \(flat") as raised:
        run(strict, of)
    assert "on_blind: warn" in raised.value.fix
    assert list(of.work.rglob("*.parquet"))  # what was scored is kept


def test_accuracy_comes_from_the_preferences_of_each_language(
    models: dict[str, Path], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs-es.jsonl"
    rows = [
        {"id": n, "prompt": f"¿Qué es {n}?", "chosen": f"Es {n}.", "rejected": "No " * n}
        for n in range(1, 8)
    ]
    pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    made = recipe(tmp_path, CLASSIFIER, f", audit: {{preferences: {{es: {pairs}}}}}")
    english, spanish = specs(made)
    assert "preferences" not in roles(english) and "preferences" in roles(spanish)
    outcome, _ = run(made, job(made, models, tmp_path))
    figures = outcome.stats["audit"]["by_language"]
    assert (figures["en"]["pairs"], figures["es"]["pairs"]) == (0, 7)
    from factory.engines.transformers import TransformersScorer
    from factory.rewards.backends.classifier import Classifier

    judge = Classifier(TransformersScorer(models["classifier"], "float32"), 512)
    right = 0
    for row in rows:
        asked = [{"role": "user", "content": str(row["prompt"])}]
        chosen, rejected = judge([(asked, str(row["chosen"])), (asked, str(row["rejected"]))])
        right += chosen.value > rejected.value  # type: ignore[operator]
    assert figures["es"]["pairs_right"] == right
    assert 0 < right < 7  # this random model is neither always right nor always wrong


def test_an_audit_that_is_cut_off_keeps_the_pairs_that_it_has_read(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs-es.jsonl"
    rows = [
        {"prompt": f"¿Qué es {n}?", "chosen": f"Es {n}.", "rejected": "No " * n}
        for n in range(1, 8)
    ]
    pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    more = f", audit: {{preferences: {{es: {pairs}}}}}, how: {{shard: 3}}"
    made = recipe(tmp_path, CLASSIFIER, more)
    whole, _ = run(made, job(made, models, tmp_path / "whole"))

    real, read = choose.scorer, []

    class Read:
        """The real engine; `left` calls on, it is cut off."""

        def __init__(self, left: int) -> None:
            self._scorer, self._left = real(made.steps()["score"].how, models["classifier"],
                                            "float32"), left  # fmt: skip

        def __getattr__(self, name: str) -> Any:
            return getattr(self._scorer, name)

        def score(self, sequences: Any) -> list[float]:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
            read.append(len(sequences))
            return self._scorer.score(sequences)

    of = job(made, models, tmp_path / "cut")
    monkeypatch.setattr(choose, "scorer", lambda *_: Read(4 + 2))  # 12 samples, then 7 pairs
    with pytest.raises(KeyboardInterrupt):
        run(made, of)
    assert read == [3, 3, 3, 3, 6, 6]
    read.clear()
    monkeypatch.setattr(choose, "scorer", lambda *_: Read(99))
    outcome, _ = run(made, of)
    assert read == [2]  # the last pair alone
    assert outcome.stats["audit"] == whole.stats["audit"]
    assert outcome.stats["audit"]["by_language"]["es"]["pairs"] == 7
    monkeypatch.setattr(choose, "scorer", None)  # nothing is left to be asked
    assert run(made, of)[0].stats["audit"] == whole.stats["audit"]


def test_tasks_score_the_pairs_of_an_audit_and_a_seal_opens_no_model(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"{n}.", "rejected": "No " * n} for n in range(1, 8)
    ]
    pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    made = recipe(tmp_path, CLASSIFIER, f", audit: {{preferences: {pairs}}}, how: {{shard: 3}}")
    whole, _ = run(made, job(made, models, tmp_path / "whole"))
    of = job(made, models, tmp_path / "parts")
    for number in (0, 1):
        with pytest.raises(PartDone) as done:
            run(made, replace(of, part=(number, 2)))
    assert (done.value.done, done.value.total) == (10, 10)  # 2 x 2 of samples, 2 x 3 of pairs
    monkeypatch.setattr(choose, "scorer", None)
    sealed, _ = run(made, of)
    assert sealed.stats["audit"] == whole.stats["audit"]
    assert sealed.stats["audit"]["by_language"]["es"]["pairs"] == 7
