"""Generative rewards: yes or no, 1 to 10, against a reference; here and on a server."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.engines import chat_template
from factory.engines.transformers import TransformersLikelihood
from factory.errors import RecipeError
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.rewards.backends.generative import RUBRIC, Generative, expected_value
from tests.rewards import test_score
from tests.rewards.test_score import ANSWERS, GENERATIVE, TEXTS, job, recipe, run, specs, values
from tests.support.builders import by_name, lock_of

models = test_score.models  # the fixture
RATED = "{kind: generative, name: lab/tuned, scale: 1-10}"
SERVED = "{kind: generative, served: MODEL, scale: 1-10}"
REFERENCE = (
    ", question: 'Is {answer} as good an answer to {prompt} as {reference}? Reply Yes or No.'"
)


def golden(tmp_path: Path, reward: str = GENERATIVE, more: str = REFERENCE) -> Any:
    """A recipe whose prompts have gold answers."""
    path = tmp_path / "made.yaml"
    path.write_text(test_score.RECIPE.format(reward=reward, more=more), encoding="utf-8")
    return load(str(path), ["stages.prompts.columns={gold: theirs}"]).recipe


def test_a_rating_is_the_mean_of_one_to_ten_by_their_probabilities(
    models: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path, RATED)
    outcome, tables = run(made, job(made, models, tmp_path))
    engine = TransformersLikelihood(models["tuned"], "float32")
    expected = []
    for answer in ANSWERS:
        text = RUBRIC.replace("{prompt}", TEXTS["en"]["a"]).replace("{answer}", answer)
        messages = [{"role": "user", "content": text}]
        chance: dict[int, float] = {}
        begins: dict[int, list[int]] = {}
        for number in range(1, 11):
            [(ids, start)] = chat_template.answered_ids(engine.tokenizer, [(messages, str(number))])
            [logs] = engine.log_probs([ids[:-1]], [start])
            chance[number], begins[number] = math.exp(math.fsum(logs)), list(ids[:-1])
        if begins[10][: len(begins[1])] == begins[1]:
            chance[1] -= chance[10]
        expected.append(sum(n * p for n, p in chance.items()) / sum(chance.values()))
    assert values(tables["en"])[:3] == pytest.approx(expected, rel=1e-4)
    assert all(1 <= value <= 10 for value in expected)
    assert outcome.stats["scale"] == "1-10" and outcome.stats["question"] == RUBRIC


def test_a_number_that_begins_another_counts_for_itself_alone() -> None:
    values = list(range(1, 11))
    ids = [[7, n] for n in range(1, 10)] + [[7, 1, 0]]
    sums = [math.log(0.5)] + [math.log(1e-9)] * 8 + [math.log(0.4)]
    assert expected_value(sums, ids, values) == pytest.approx((0.1 * 1 + 0.4 * 10) / 0.5, rel=1e-6)
    assert expected_value([-9000.0] * 10, ids, values) == pytest.approx(sum(range(2, 11)) / 9)


def with_gold(root: Path, golds: dict[str, list[str | None]]) -> None:
    for code, texts in golds.items():
        table = read_slice(root / "prompts", code, "prompts")
        column = pa.array(texts, pa.string())
        write_slice(slice_directory(root / "prompts", code), table.append_column("gold", column))


def test_27_an_answer_is_compared_with_the_gold_answer_of_its_prompt(
    models: dict[str, Path], tmp_path: Path
) -> None:
    made = golden(tmp_path)
    of = job(made, models, tmp_path)
    with_gold(tmp_path, {"en": ["Yeast makes gas.", None], "es": ["La levadura.", "Tumbado."]})
    outcome, tables = run(made, of)
    rows = tables["en"].to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["no_reference"] * 3
    engine = TransformersLikelihood(models["tuned"], "float32")
    asked = f"as good an answer to {TEXTS['en']['a']} as Yeast makes gas.?"
    text = f"Is {{answer}} {asked} Reply Yes or No."
    by_hand = Generative(engine, 512, text)
    expected = by_hand([([{"role": "user", "content": ""}], answer) for answer in ANSWERS])
    assert values(tables["en"])[:3] == pytest.approx([one.value for one in expected], rel=1e-4)
    assert outcome.stats["by_language"]["en"]["reasons"] == {"no_reference": 3}
    hashes = {row["prompt_hash"] for row in tables["es"].to_pylist()}
    assert len(hashes) == 2 and None not in hashes  # a score goes with its reference


def test_what_makes_no_sense_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no prompt has a gold answer"):
        specs(recipe(tmp_path, GENERATIVE, REFERENCE))
    with pytest.raises(RecipeError, match="scale"):
        recipe(tmp_path, RATED.replace("1-10", "1-5"))
    with pytest.raises(RecipeError, match="request is for a served model"):
        specs(recipe(tmp_path, RATED.replace("1-10", "1-10, request: {a: 1}")))
    with pytest.raises(RecipeError, match="it has no adapter or revision here"):
        recipe(tmp_path, "{kind: classifier, served: some}")
    with pytest.raises(RecipeError, match="reads the reward 'tuned', which is served"):
        after = "}\n  questions: {source: q.jsonl}\n  arena: {of: [policy]}\n"
        recipe(tmp_path, SERVED, after + "  judge: {model: policy, judge: tuned").slices()


def test_the_scale_is_an_identity_and_yes_or_no_is_as_it_was(tmp_path: Path) -> None:
    marks = set()
    for reward in (GENERATIVE, GENERATIVE.replace("}", ", scale: yes_no}"), RATED, SERVED):
        made = recipe(tmp_path, reward)
        marks.add(by_name(plan(made, lock_of(made), Inventory()))["score"].fingerprint)
    assert len(marks) == 3


class Handler(BaseHTTPRequestHandler):
    """Rates by the length of a request's answer; the model's name says how it replies."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, model = body["messages"][0]["content"], body["model"]
        content = {"Yeast.": "3", "Porque sí, y ya.": "Score: 10"}.get(
            text.split("[Answer]\n")[1].split("\n\n")[0], "I would say 3 or 4."
        )
        places = [{"3": 0.5, " 5": 0.25, "The": 0.25}]
        if model == "split":
            content, places = "10", [{"1": 0.8, "2": 0.2}, {"0": 0.5, ".": 0.5}]
        choice: dict[str, Any] = {"message": {"content": content}, "finish_reason": "stop"}
        if model != "words":
            top = [
                [{"token": token, "logprob": math.log(p)} for token, p in place.items()]
                for place in places
            ]
            choice["logprobs"] = {"content": [{"top_logprobs": one} for one in top]}
        assert body["logprobs"] is True and body["temperature"] == 0.0
        reply = json.dumps({"choices": [choice], "usage": {"total_tokens": 50}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{served.server_port}/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    served.shutdown()
    served.server_close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("model", "expected", "statuses"),
    [
        ("chances", [(3 * 0.5 + 5 * 0.25) / 0.75] * 3, ["ok"] * 3),
        ("split", [10 * 0.4 + 1 * 0.4 + 2 * 0.2] * 3, ["ok"] * 3),
        ("words", [3.0, 10.0, None], ["ok", "ok", "unparseable"]),
    ],
)
def test_a_served_model_rates_by_its_chances_or_by_its_words(
    model: str, expected: list[Any], statuses: list[str], tmp_path: Path
) -> None:
    made = recipe(tmp_path, SERVED.replace("MODEL", model))
    stage = made.steps()["score"]
    assert stage.missing_requirements(specs(made)) == []
    outcome, tables = run(made, job(made, {}, tmp_path))
    rows = tables["en"].to_pylist()
    assert [row["reward"] for row in rows[:3]] == [
        value if value is None else pytest.approx(value) for value in expected
    ]
    assert [row["status"] for row in rows[:3]] == statuses
    assert {row["n_tokens"] for row in rows} == {50}
    without = statuses.count("unparseable") * 2
    assert outcome.stats["by_language"]["en"]["without_reward"] == without


def test_a_served_reward_asks_for_the_address_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    made = recipe(tmp_path, SERVED)
    [error] = made.steps()["score"].missing_requirements(specs(made))
    assert "OPENAI_BASE_URL" in error.what
