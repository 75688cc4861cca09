"""The behaviour probe: what a tuned model draws beside its base, and when it cries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.engines import Completion
from factory.training import behaviour
from factory.training.behaviour import Question
from factory.training.settings import ProbeKnobs
from tests.support.trainings import adapter_of, classifier_of, prompts, tiny_model


def sides(**tuned: Any) -> dict[str, Any]:
    """Figures of a base and of a tuned model that differs from it in these."""
    base = {
        "answers": 32, "finished": 30, "empty": 0, "in_language": 28, "other_language": 1,
        "mean_tokens": 20.0, "repetition": 0.1, "distinct": 32, "reward": 1.0, "reward_error": 0.1,
    }  # fmt: skip
    about = {key: tuned.pop(key) for key in ("forgotten", "moved") if key in tuned}
    return {"temperature": 1.0, "base": base, "tuned": {**base, **tuned}, **about}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"finished": 15}, "answers that end by themselves fell from 30 of 32 (base) to 15 of 32"),
        ({"in_language": 12, "other_language": 17}, "in the language of their prompt fell from"),
        ({"distinct": 9}, "different answers fell from 32 of 32"),
        ({"empty": 20}, "20 of 32 answers are empty"),
        ({"repetition": 0.5}, "answers repeat themselves: 50%"),
        ({"forgotten": 1.5}, "the base's own answers lost 1.5 nats a token"),
        ({"moved": 2.5}, "2.5 nats a token likelier to it than to the base"),
        ({"reward": 0.5}, "the mean reward fell from 1 (base) to 0.5"),
    ],
)
def test_a_ruined_policy_cries(changed: dict[str, Any], said: str) -> None:
    [alarm] = behaviour.alarms(sides(**changed))
    assert said in alarm


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"finished": 32, "mean_tokens": 9.0, "reward": 2.0, "forgotten": 0.3, "moved": 0.4},
        {"finished": 27, "in_language": 25, "other_language": 4, "distinct": 30},  # by chance
        {"in_language": 3, "other_language": 0},  # too short to tell the language of the others
    ],
)
def test_a_policy_that_changed_for_the_better_or_by_chance_does_not(
    changed: dict[str, Any],
) -> None:
    assert behaviour.alarms(sides(**changed)) == []


def test_answers_are_described_by_counts_and_means() -> None:
    loop, plain = Completion((1, 2, 3, 4) * 3, "length"), Completion((5, 6), "stop")
    texts = ["Ésta es una respuesta larga en español, con varias palabras.", "", ""]
    ask = Question([{"role": "user", "content": "¿Qué?"}], "es", True)
    other = Question(ask.prompt, None, False)
    found = behaviour.describe([loop, plain, plain], texts, [ask, ask, other])
    assert (found["answers"], found["finished"], found["empty"], found["distinct"]) == (3, 2, 2, 2)
    assert (found["in_language"], found["other_language"]) == (1, 0)
    assert found["mean_tokens"] == pytest.approx(16 / 3)
    assert found["repetition"] == pytest.approx((1 - 4 / 9) / 3)


def test_an_adapter_that_ruins_its_base_is_seen_on_a_real_model(tmp_path: Path) -> None:
    """The probe draws with the real engine, and reads with PEFT and a classifier."""
    base = tiny_model()
    wild = adapter_of(
        base, tmp_path / "wild", r=8, lora_alpha=64, target_modules=["o_proj", "down_proj"]
    )
    reward = classifier_of(base, tmp_path / "reward")
    texts = [next(v for k, v in p.items() if k in ("prompt", "text")) for p in prompts()]
    questions = [
        Question([{"role": "user", "content": text}], "es", n < 3)
        for n, text in enumerate([*texts[:5], texts[0]])
    ]
    knobs = ProbeKnobs(prompts=4, n=16, max_tokens=16)
    found = behaviour.probe(base, wild, questions, knobs, "float32", 0, reward=reward)
    assert found is not None
    assert (found["prompts"], found["held_out"]) == (4, 2), "the first is trained on as well"
    assert found["base"]["answers"] == found["tuned"]["answers"] == 64
    assert "reward" in found["base"] and "reward" in found["tuned"]
    assert found["forgotten"] > 0 and found["moved"] > 0
    again = behaviour.probe(base, wild, questions, knobs, "float32", 0, reward=reward)
    assert again == found
    assert behaviour.probe(base, wild, [], knobs, "float32", 0) is None
