"""A kind of reward takes one class and one line in the tuple: a length penalty goes through every
stage that reads rewards, and is refused where one cannot take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from factory.engines import choose
from factory.errors import RecipeError
from factory.execution import checks
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.reports.cards import card
from factory.rewards import backends
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.rewards.backends.classifier import Classifier
from factory.stage.inputs import Need
from factory.stage.stage import StageContext
from tests.rewards import test_score
from tests.rewards.test_score import CLASSIFIER, recipe, roles, run, specs, values
from tests.support.builders import by_name, lock_of
from tools.golden import manifests

models = test_score.models  # the fixture
PENALTY = "{kind: length_penalty, name: lab/tuned, per_character: 0.5}"


class LengthPenalty(Backend):
    """The logit of a classifier, less `per_character` for each character of the answer."""

    conversation_roles: ClassVar[frozenset[str]] = frozenset({"reward"})
    about: ClassVar[str] = "the logit of a classifier, less a penalty for each character"

    kind: Literal["length_penalty"]
    per_character: float = Field(0.01, ge=0)

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        return (context.model(name, "reward", asked_by),)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        scorer = choose.scorer(settings.how, paths["reward"], settings.dtype)
        logits = Classifier(scorer, settings.max_tokens)

        def penalized(items: Sequence[Item]) -> list[RewardValue]:
            return [
                RewardValue.from_score(
                    None if one.value is None else one.value - self.per_character * len(answer),
                    one.n_tokens,
                )
                for one, (_, answer) in zip(logits(items), items, strict=True)
            ]

        return OpenReward(penalized, scorer)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, LengthPenalty))


def test_score_runs_with_it(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain, penalty = recipe(tmp_path / "plain", CLASSIFIER), recipe(tmp_path, PENALTY)
    assert all(roles(spec) == ["samples", "prompts", "reward"] for spec in specs(penalty))
    outcome, tables = run(penalty, test_score.job(penalty, models, tmp_path))
    _, logits = run(plain, test_score.job(plain, models, tmp_path / "plain"))
    for code, table in tables.items():
        lengths = [len(answer) for answer in test_score.ANSWERS] * 2
        expected = [
            float(logit or 0) - 0.5 * n
            for logit, n in zip(values(logits[code]), lengths, strict=True)
        ]
        assert values(table) == pytest.approx(expected, abs=1e-5)
    assert outcome.stats["kind"] == "length_penalty" and outcome.stats["per_character"] == 0.5
    assert outcome.stats["audit"]["by_language"]["en"]["scored"] == 6


def test_its_kind_and_its_knobs_are_hashed(tmp_path: Path) -> None:
    marks = set()
    for reward in (CLASSIFIER, PENALTY, PENALTY.replace("0.5", "0.25")):
        made = recipe(tmp_path, reward)
        marks.add(by_name(plan(made, lock_of(made), Inventory()))["score"].fingerprint)
    assert len(marks) == 3


def test_a_mistake_in_it_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"yaml:6.*no key 'per_charcter'.*'per_character'"):
        recipe(tmp_path, PENALTY.replace("per_character", "per_charcter"))
    with pytest.raises(RecipeError, match=r"score\.prompt is for kind: implicit, and 'tuned'"):
        recipe(tmp_path, PENALTY, ", prompt: own")


def demo(reward: str, *overrides: str) -> Any:
    return load("demo", [f"models.reward={reward}", "stages.transfer=null", *overrides]).recipe


GENERATIVE = "{kind: generative, name: lab/chat}"
IMPLICIT = "{kind: implicit, name: lab/tuned, reference: policy}"


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (CLASSIFIER, ["judge"]),
        (PENALTY, ["judge"]),
        (GENERATIVE, ["generative"]),
        (IMPLICIT, ["policy", "judge_reference"]),
    ],
)
def test_judge_takes_every_kind(reward: str, expected: list[str]) -> None:
    made = [spec for stage, spec in demo(reward).slices() if stage.name == "judge"]
    assert all(roles(spec) == ["answers", "reference", *expected, "training"] for spec in made)
    assert made


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (PENALTY, ["pairs", "reward"]),
        (GENERATIVE, ["pairs", "generative"]),
        (IMPLICIT, ["pairs", "policy", "reference"]),
    ],
)
def test_transfer_takes_every_kind(reward: str, expected: list[str]) -> None:
    pairs = "stages.transfer={of: [reward], pairs: pairs.jsonl}"
    made = [spec for stage, spec in demo(reward, pairs).slices() if stage.name == "transfer"]
    assert made and all(roles(spec) == expected for spec in made)


@pytest.mark.parametrize("reward", [PENALTY, GENERATIVE, IMPLICIT])
def test_online_refuses_what_is_no_plain_classifier(reward: str) -> None:
    demo(CLASSIFIER, "stages.online={each: all}")
    with pytest.raises(RecipeError, match=r"stages\.online.*one sequence classifier") as raised:
        demo(reward, "stages.online={each: all}")
    assert "dpo" in raised.value.fix


def test_its_tokenizer_is_checked_for_conversations_alone() -> None:
    of = {use.model.source: use.answers for use in checks.tokenizers(demo(PENALTY))}
    assert of["lab/tuned@main"] is False
    assert {u.model.source: u.answers for u in checks.tokenizers(demo(GENERATIVE))}["lab/chat@main"]


def test_its_card_says_its_kind() -> None:
    manifest = manifests()["score"]
    assert "the raw output of the reward model" in card.render(manifest)
    stats = {**manifest.stats, "kind": "length_penalty", "about": LengthPenalty.about}
    text = card.render(manifest.model_copy(update={"stats": stats}))
    assert f"of kind `length_penalty`: {LengthPenalty.about}." in text
