"""The translate_pairs stage: preference pairs in another language, as pairs that dpo reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts import schemas, tables
from factory.artifacts.tables import read_slice, slice_directory
from factory.engines import choose
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.planning.recipe import Recipe
from factory.sampling.translate import TranslatePairs
from factory.stage.job import Job, Place
from tests.sampling.test_translate import Translator

BOOK = {
    "How do I fall asleep more easily in the evening?": "Wie schlafe ich abends leichter ein?",
    "Read a book and leave the telephone in another room.":
        "Lies ein Buch und lass das Telefon in einem anderen Zimmer.",
    "I do not know what to say about that.": "Dazu weiß ich leider nichts zu sagen.",
    "Just wait until you are tired enough.": "Dazu weiß ich leider nichts zu sagen.",
    "Yes, we have looked at it together.": "Ja, wir haben es uns zusammen angesehen.",
}  # fmt: skip
ASKED, GOOD, BAD, SAME, _ = BOOK


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


def recipe(**stages: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "baseline", "org": "me", "languages": ["de"],
        "models": {"policy": "org/policy", "translator": "org/translator"},
        "stages": {"preferences": {"preset": "ultrafeedback"}, "translate_pairs": {}, **stages},
    })  # fmt: skip


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.fixture
def run(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def go(pairs: list[tuple[str, str, str]], **knobs: Any) -> Any:
        rows: list[dict[str, Any]] = [
            {"prompt_id": f"p{n}", "language": "en", "prompt": said("user", asked),
             "chosen": said("assistant", good), "rejected": said("assistant", bad)}
            for n, (asked, good, bad) in enumerate(pairs)
        ]  # fmt: skip
        table = schemas.from_rows(rows, "preferences")
        tables.write_slice(slice_directory(tmp_path / "in", "en"), table)
        back = {german: english for english, german in BOOK.items()}
        translator = Translator(model, lambda text: {**BOOK, **back}.get(text, text))
        monkeypatch.setattr(choose, "sampler", lambda *_: translator)
        stage = TranslatePairs(**knobs)
        specs = stage.plan_slices(recipe(translate_pairs=stage).context())
        places = {
            need: Place(model if need.role == "model" else tmp_path / "in")
            for spec in specs
            for need in spec.needs
        }
        (tmp_path / "work").mkdir()
        job = Job("translate_pairs", 0, tuple(specs), places, tmp_path / "work", tmp_path / "out",
                  lambda done, total, unit, tokens=0: None)  # fmt: skip
        outcome = stage.run(job)
        assert all(one.balanced() for one in outcome.rows.values())
        return read_slice(tmp_path / "out", "de", "pairs").to_pylist(), outcome

    return go


def test_13_a_pair_is_translated_as_a_whole(run: Any) -> None:
    rows, outcome = run(
        [(ASKED, GOOD, BAD), (ASKED, BAD, SAME), (ASKED, GOOD, "Perhaps later, my friend.")],
        quality={"by": "back"},
    )
    [row] = rows
    assert row["prompt"] == said("user", BOOK[ASKED])
    assert row["chosen"] == said("assistant", BOOK[GOOD])
    assert row["rejected"] == said("assistant", BOOK[BAD])
    assert (row["id"], row["prompt_language"], row["chosen_language"]) == ("p0", "de", "de")
    assert 70 < row["quality"] < 100  # one of its three texts comes back as another
    assert outcome.rows["de"].dropped == {"copied": 1, "same_text": 1}
    figures = outcome.stats["by_language"]["de"]
    assert (figures["asked"], figures["kept"], figures["quality"]["n"]) == (3, 1, 1)


def test_first_is_how_many_and_a_gate_drops_whole_pairs(run: Any) -> None:
    rows, outcome = run([(ASKED, GOOD, BAD), (ASKED, BAD, GOOD)], first=1)
    assert len(rows) == 1
    assert outcome.rows["de"].into == 1


def test_dpo_reads_translated_pairs_and_nothing_asks_for_prompts() -> None:
    slices = recipe(dpo={"each": ["de"]}).slices()
    reads = {
        spec.step: [getattr(n, "step", None) for n in spec.needs if hasattr(n, "step")]
        for _, spec in slices
    }
    assert reads["dpo[de]"] == ["translate_pairs"]
    assert reads["translate_pairs"] == ["preferences"]
    assert "prompts" not in reads


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"translate_pairs": {"source_language": "de"}}, "nothing to translate from de into"),
        ({"translate_pairs": {"source_language": "fr"}}, "from fr, and preferences are in en"),
        ({"preferences": None}, "reads preferences, and no stage before it makes any"),
    ],
)
def test_pairs_that_cannot_be_translated_are_refused(stages: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(**stages).slices()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"turns": "first"}, "turns: all, since an answer is one to the whole prompt"),
        ({"compare": True}, "nobody wrote these pairs a second time"),
        ({"from": "org/x"}, "let pair take in what is translated already"),
    ],
)
def test_knobs_of_prompts_are_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TranslatePairs(**knobs)
