"""transfer: every reward model ranks every language's pairs, with real classifiers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts.tables import read_slice
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.planning.recipe import Recipe
from factory.rewards.rankings import by_category, calibration_error, cell, describe, kappa
from factory.rewards.transfer import Transfer
from factory.stage.inputs import ExternalInput
from factory.stage.job import Job, PartDone, Place
from factory.stage.outcome import Outcome

PAIRS = {
    "en": [
        ("Name a colour.", "Blue.", "Seven."),
        ("Two and two?", "Four.", "Five."),
        ("Hi", "Hello.", "Hello!"),
    ],
    "es": [("Di un color.", "Azul.", "Siete.")],
}


def recipe(**stages: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r", "org": "me", "languages": ["en", "es"],
            "models": {"base": "org/base", "rm": {"kind": "classifier", "name": "org/rm"}},
            "stages": stages,
        }
    )  # fmt: skip


TAUGHT = {
    "preferences": {"source": "p-{language}.jsonl", "languages": ["en", "es"]},
    "reward": {"base": "base"},
}


def test_a_reward_model_is_made_for_each_language_of_preferences() -> None:
    made = {spec.step for stage, spec in recipe(**TAUGHT).slices() if stage.name == "reward"}
    assert made == {"reward[en]", "reward[es]"}
    one = {**TAUGHT, "preferences": {"source": "p.jsonl"}}
    assert {spec.step for _, spec in recipe(**one).slices()} == {"preferences", "reward"}


def test_every_model_is_asked_in_every_language() -> None:
    of = {"of": ["reward", "rm"], "pairs": "pairs-{language}.jsonl"}
    slices = [
        spec for stage, spec in recipe(**TAUGHT, transfer=of).slices() if stage.name == "transfer"
    ]
    assert [spec.name for spec in slices] == [
        "en/reward-en", "es/reward-en", "en/reward-es", "es/reward-es", "en/rm", "es/rm",
    ]  # fmt: skip
    assert slices[1].need("pairs") == ExternalInput(
        "pairs", "pairs-es.jsonl", "dataset", extent=True
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"pairs": {"de": "x.jsonl"}, "of": ["rm"]}, "none of the languages here"),
        ({"pairs": "x.jsonl", "of": ["preferences"]}, "trains no reward models"),
        ({"pairs": "x.jsonl", "of": ["base"]}, "gives no rewards"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_load(said: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(**TAUGHT, transfer=said).slices()


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    root = tmp_path_factory.mktemp("models")
    (root / "base").mkdir()
    POCKET["local/tiny-random-llama"].build(root / "base")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(str(root / "base"), num_labels=1)
        torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(str(root / name))
        AutoTokenizer.from_pretrained(str(root / "base")).save_pretrained(str(root / name))
    return {name: root / name for name in ("one", "two")}


def ran(
    root: Path,
    classifiers: dict[str, Path],
    part: tuple[int, int] | None = None,
    models: dict[str, Any] | None = None,
    **knobs: Any,
) -> tuple[Outcome, Path]:
    for code, pairs in PAIRS.items():
        rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
        rows.append({"prompt": "Hi", "chosen": "The same.", "rejected": "The same."})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"pairs-{code}.jsonl").write_text(text)
    models = models or {name: {"kind": "classifier", "name": f"org/{name}"} for name in classifiers}
    made = Recipe.model_validate(
        {
            "name": "r", "org": "me", "languages": ["en", "es"],
            "models": {"base": "org/base", **models},
            "stages": {"transfer": {
                "of": list(models), "pairs": "pairs-{language}.jsonl", "dtype": "float32", **knobs,
            }},
        }
    )  # fmt: skip
    [stage] = made.steps().values()
    specs = tuple(stage.checked_slices(made.context()))
    places: dict[Any, Place] = {}
    for spec in specs:
        for need in spec.needs:
            assert isinstance(need, ExternalInput)
            name = need.source.partition("@")[0]
            path = root / name if need.role == "pairs" else classifiers[name.partition("/")[2]]
            places[need] = Place(path, name)
    (root / "work").mkdir(exist_ok=True)
    work, out = root / "work", root / "out"
    job = Job("transfer", 0, specs, places, work, out, lambda *a, **k: None, part=part)
    return stage.run(job), root / "out"


def test_21_the_matrix_is_what_the_models_say_of_each_pair_alone(
    classifiers: dict[str, Path], tmp_path: Path
) -> None:
    from factory.engines import choose
    from factory.rewards.backends.classifier import Classifier

    outcome, out = ran(tmp_path, classifiers, how={"shard": 2})
    assert all(rows.balanced() for rows in outcome.rows.values())
    assert all(rows.dropped == {"same_text": 1} for rows in outcome.rows.values())
    fields = {(c["reward_model"], c["language"]): c for c in outcome.stats["matrix"]}
    assert len(fields) == 4
    for name, path in classifiers.items():
        reward = Classifier(choose.scorer(Transfer(pairs="x.jsonl").how, path, "float32"), 16384)
        for code, pairs in PAIRS.items():
            rows = read_slice(out, f"{code}/{name}", "rankings").to_pylist()
            assert [row["pair_id"] for row in rows] == [str(n) for n in range(len(pairs))]
            right = 0
            for row, (prompt, chosen, rejected) in zip(rows, pairs, strict=True):
                asked = [{"role": "user", "content": prompt}]
                mine = [reward([(asked, text)])[0].value for text in (chosen, rejected)]
                assert [row["reward_chosen"], row["reward_rejected"]] == pytest.approx(
                    mine, abs=1e-5
                )
                right += mine[0] > mine[1]  # type: ignore[operator]
            assert fields[name, code]["right"] == right


def test_a_pair_too_long_to_be_read_is_in_neither_count(
    classifiers: dict[str, Path], tmp_path: Path
) -> None:
    outcome, out = ran(tmp_path, classifiers, max_tokens=8)
    assert {c["without"] for c in outcome.stats["matrix"]} == {1, 3}
    assert {c["shown"] for c in outcome.stats["matrix"]} == {"no pair has rewards"}
    rows = read_slice(out, "en/one", "rankings").to_pylist()
    assert {row["status"] for row in rows} == {"too_long"}


def test_two_processes_make_what_one_makes(classifiers: dict[str, Path], tmp_path: Path) -> None:
    one, _ = ran(tmp_path, classifiers, how={"shard": 1})
    (tmp_path / "apart").mkdir()
    for part in ((0, 2), (1, 2)):
        with pytest.raises(PartDone):
            ran(tmp_path / "apart", classifiers, part, how={"shard": 1})
    other, _ = ran(tmp_path / "apart", classifiers, how={"shard": 1})
    assert other.stats == one.stats


def test_211_every_kind_of_reward_ranks_the_pairs(
    classifiers: dict[str, Path], tmp_path: Path
) -> None:
    from factory.engines.transformers import TransformersLikelihood
    from factory.rewards.backends.generative import Generative

    base = classifiers["one"].parent / "base"
    models = {
        "asked": {"kind": "generative", "name": "org/base"},
        "itself": {"kind": "implicit", "name": "org/base", "reference": "base"},
    }
    outcome, out = ran(tmp_path, {"base": base}, models=models)
    fields = {(c["reward_model"], c["language"]): c for c in outcome.stats["matrix"]}
    assert fields["itself", "en"]["tied"] == 3  # a model against itself
    by_hand = Generative(TransformersLikelihood(base, "float32"), 16384)
    rows = read_slice(out, "en/asked", "rankings").to_pylist()
    for row, (prompt, *texts) in zip(rows, PAIRS["en"], strict=True):
        items = [([{"role": "user", "content": prompt}], text) for text in texts]
        expected = [reward.value for reward in by_hand(items)]
        assert [row["reward_chosen"], row["reward_rejected"]] == pytest.approx(expected, abs=1e-5)


def test_a_cell_counts_each_pair_once() -> None:
    found = cell([1.0, 2.0, 3.0, None], [0.0, 2.0, 4.0, 1.0])
    assert (found["pairs"], found["right"], found["tied"], found["without"]) == (3, 1, 1, 1)


@settings(deadline=None)  # the first call imports libraries
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_are_the_shares_that_the_count_would_just_not_refute(
    counts: tuple[int, int],
) -> None:
    right, of = counts
    figures = cell([1.0] * right + [0.0] * (of - right), [0.5] * of)
    for end in (figures["low"], figures["high"]):
        off = abs(right / of - end)
        assert off == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), abs=1e-6)


def test_167_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    # four pairs at a margin of 2, three right; two at 0.1, one right
    chosen, rejected = [2.0, 2.0, 2.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 2.0, 0.0, 0.1]
    expected = (4 * abs(sigmoid(2) - 3 / 4) + 2 * abs(sigmoid(0.1) - 1 / 2)) / 6
    assert calibration_error(chosen, rejected) == pytest.approx(expected)
    assert calibration_error([1e9], [-1e9]) == 0.0
    assert calibration_error([None, 1.0], [1.0, None]) is None
    dice, pairs = random.Random(1), []
    for _ in range(20_000):  # one that is as often right as it says
        margin = dice.expovariate(1)
        better = dice.random() < sigmoid(margin)
        pairs.append((margin, 0.0) if better else (0.0, margin))
    assert (calibration_error(*zip(*pairs, strict=True)) or 0) < 0.02


def test_101_categories_of_m_rewardbench_are_weighted_as_it_weights_them() -> None:
    subsets = (
        ["alpacaeval-easy"] * 3 + ["mt-bench-med"] + ["mt-bench-hard"] * 2
        + ["llmbar-adver-GPTInst"]
        + ["xstest-should-refuse"] * 2 + ["donotanswer"] + ["math-prm"] + ["hep-cpp", "hep-go"] * 2
    )  # fmt: skip
    right = [1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0]
    found = by_category(subsets, [float(r) for r in right], [0.5] * len(right))
    categories = {"Chat": 3 / 4, "Chat Hard": 1 / 3, "Safety": 2 / 3,
                  "Reasoning": (4 * 0 + 3) / 8}  # fmt: skip
    assert found["categories"] == pytest.approx(categories)
    assert found["category_mean"] == pytest.approx(sum(categories.values()) / 4)
    own = by_category(["law", "law", None], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0])
    assert own == {"categories": {"law": 0.5}, "category_mean": 0.5}
    assert by_category([None], [1.0], [0.0]) == {}


def test_kappa_is_agreement_beyond_chance() -> None:
    both = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert kappa(both) == pytest.approx(0.4)  # a textbook's table
    assert kappa([(True, False), (False, True)]) == pytest.approx(-1)
    assert kappa([(True, True)]) is None and kappa([]) is None


def rankings(rows: list[tuple[str, float | None, float | None]]) -> pa.Table:
    names, chosen, rejected = zip(*rows, strict=True)
    return pa.table({"pair_id": names, "reward_chosen": pa.array(chosen, pa.float64()),
                     "reward_rejected": pa.array(rejected, pa.float64())})  # fmt: skip


def test_101_kappa_against_english_is_over_pairs_of_the_same_id() -> None:
    english = rankings([("a", 1, 0), ("b", 0, 1), ("c", 1, 0), ("d", 0, 1), ("x", 1, 0)])
    spanish = rankings([("b", 0, 1), ("a", 1, 0), ("d", 1, 0), ("c", None, 0), ("y", 1, 0)])
    found = describe(spanish, english)
    assert found["pairs_in_english"] == 3
    assert found["kappa_english"] == pytest.approx(
        kappa([(False, False), (True, True), (True, False)])
    )
    assert "kappa_english" not in describe(english, english)


def test_101_a_benchmark_with_subsets_is_counted_by_category_and_language(
    classifiers: dict[str, Path], tmp_path: Path
) -> None:
    subsets = ["hep-cpp", "math-prm", "donotanswer"]
    for code in ("en", "es"):
        rows = [
            {"id": f"i{n}", "prompt": f"{code} {n}?", "source": subsets[n % 3],
             "chosen": texts[n // 3 % 2], "rejected": texts[1 - n // 3 % 2]}
            for n in range(1, 13)
            for texts in [(f"Yes {n}.", "No " * n)]
        ]  # fmt: skip
        (tmp_path / f"bench-{code}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome, out = ran(tmp_path, classifiers, pairs="bench-{language}.jsonl")
    for one in outcome.stats["matrix"]:
        table = read_slice(out, f"{one['language']}/{one['reward_model']}", "rankings")
        assert set(table.column("subset").to_pylist()) == {"hep-cpp", "math-prm", "donotanswer"}
        assert set(one["categories"]) == {"Reasoning", "Safety"}
        assert 0 <= one["category_mean"] <= 1 and 0 <= one["calibration_error"] <= 1
        assert ("kappa_english" in one) <= (one["language"] == "es")
    assert any(one.get("pairs_in_english") == 12 for one in outcome.stats["matrix"])
