"""transfer: every reward model ranks every language's pairs, with real classifiers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts.tables import read_slice
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.planning.recipe import Recipe
from factory.rewards.transfer import Transfer, cell
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


def test_the_matrix_is_what_the_models_say_of_each_pair_alone(
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


def test_every_kind_of_reward_ranks_the_pairs(classifiers: dict[str, Path], tmp_path: Path) -> None:
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
