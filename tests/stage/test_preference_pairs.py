"""Preference pairs in the forms that people store them in, read as stages read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.manifest import Rows
from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.execution import external
from factory.pairs.pair import Pair
from factory.planning.recipe import load
from factory.rewards.preferences import Pairs
from factory.rewards.score import Score
from factory.sampling.sources import Preferences
from factory.stage.job import Job, Place
from factory.stage.stage import Stage, StageContext


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


JUGGLE = [user("Teach me to juggle."), assistant("Take two balls."), user("And then?")]
LONG = {"chosen": [*JUGGLE, assistant("Three.")], "rejected": [*JUGGLE, assistant("No idea.")]}
SYSTEM = {"role": "system", "content": "Be kind."}
HH = "\n\nHuman: Teach me to juggle.\n\nAssistant: Take two balls.\n\nHuman: And then?"
TWO = {"response1": "Yes.", "response2": "No."}


def taken(tmp_path: Path, rows: list[Any], **view: Any) -> list[tuple[list[Any], Rows]]:
    """The rows of `preferences`, of `pair: {from:}` and of an audit's pairs, with their counts."""
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = []
    stages: list[Stage] = [
        Preferences.model_validate({"source": path.name, **view}),
        Pair.model_validate({"from": {"source": path.name, **view}}),
    ]
    for stage in stages:
        specs = stage.checked_slices(StageContext(("en",), {}, {stage.name: stage}))
        places = {need: Place(path) for spec in specs for need in spec.needs}
        out = tmp_path / stage.name
        job = Job(stage.name, 0, tuple(specs), places, tmp_path, out, lambda *_: None)
        outcome = external.take_in(stage, job) if stage.from_ else stage.run(job)
        assert outcome.rows["en"].balanced()
        results.append((read_slice(out, "en", stage.kind).to_pylist(), outcome.rows["en"]))
    pairs, dropped = Pairs.model_validate({"source": path.name, **view}).read(path, "en")
    assert dropped == results[0][1].dropped
    assert [pair[1:] for pair in pairs] == [_texts(row) for row in results[1][0]]
    return results


def _texts(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"]


@pytest.mark.parametrize(
    "row",
    [
        LONG,
        {**LONG, "prompt": "Teach me to juggle."},
        {**LONG, "prompt": "And then? "},
        {**LONG, "prompt": JUGGLE},
        {**LONG, "messages": LONG["chosen"]},
        {"prompt": JUGGLE, "chosen": [assistant("Three.")], "rejected": [assistant("No idea.")]},
        {"prompt": JUGGLE, "chosen": "Three.", "rejected": assistant("No idea.")},
        {"prompt": JUGGLE, "chosen": LONG["chosen"][2:], "rejected": LONG["rejected"][2:]},
        {"prompt": JUGGLE[:2], "chosen": LONG["chosen"][2:], "rejected": LONG["rejected"][2:]},
        {"chosen": f"{HH}\n\nAssistant: Three.", "rejected": f"{HH}\n\nAssistant: No idea."},
        {"prompt": f"{HH}\n\nAssistant:", "chosen": "Three.", "rejected": "No idea."},
        {"prompt": HH, "chosen": "\n\nAssistant: Three.", "rejected": "\n\nAssistant: No idea."},
        {"prompt": f"{HH}\n\nAssistant: ", "answers": [
            {"answer": "Four?", "rank": 2.0}, {"answer": "No idea.", "rank": 7.0},
            {"answer": "Three.", "rank": 1.0}]},
        {"prompt": JUGGLE, "completions": [
            {"response": "No idea.", "overall_score": 2},
            {"response": "Three.", "overall_score": 9},
            {"response": "Lost.", "overall_score": None}]},
        {"prompt": JUGGLE, "answers": {"answer": ["No idea.", "Three."], "rank": [2, 1]}},
        {side: {"role": [turn["role"] for turn in LONG[side]],
                "content": [turn["content"] for turn in LONG[side]]} for side in LONG},
        {"prompt": JUGGLE, "responses": ["No idea.", "Three."], "scores": [0.1, 0.3]},
        {"context": JUGGLE, "response1": "No idea.", "response2": "Three.",
         "overall_preference": 2},
        {"prompt": JUGGLE, "response_1": "Three.", "response_2": "No idea.",
         "preference_strength": -3},
        {"prompt": JUGGLE, "response_a": "No idea.", "response_b": "Three.",
         "preferred": "response_b"},
        {"prompt": JUGGLE, "response_0": "Three.", "response_1": "No idea.", "preferred": 0},
        {"prompt": JUGGLE, "response_a": "No idea.", "response_b": "Three.", "response_c": "Four?",
         "score_a": "1", "score_b": "5", "score_c": None},
    ],
)  # fmt: skip
def test_every_form_of_one_pair_gives_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    for rows, counts in taken(tmp_path, [row]):
        assert [_texts(row) for row in rows] == [(JUGGLE, "Three.", "No idea.")]
        assert counts == Rows(into=1, out=1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**LONG, "chosen": [*LONG["chosen"], user("Good, bye.")]}, "no_answer"),
        ({**LONG, "prompt": "Who bakes bread?"}, "prompt_differs"),
        ({**LONG, "rejected": [user("Other?"), assistant("No.")]}, "several_turns"),
        ({**LONG, "rejected": LONG["chosen"]}, "same_text"),
        ({"prompt": "Hi?", "chosen": "Same.", "rejected": " Same.\n"}, "same_text"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": None}, "empty"),
        ({"prompt": " ", "chosen": "Yes.", "rejected": "No."}, "empty"),
        ({"prompt": LONG["chosen"], "chosen": "Yes.", "rejected": "No."}, "no_question"),
        ({"prompt": "Hi?", **TWO, "preference": 0}, "tie"),
        ({"prompt": "Hi?", **TWO, "preference": None}, "no_preference"),
        ({"prompt": "Hi?", "answers": [{"text": "a", "score": 1}]}, "no_preference"),
        (
            {"prompt": "Hi?", "response_a": "a", "response_b": "b", "preferred": None},
            "no_preference",
        ),
        *(
            ({"prompt": "Hi?", "response_a": "a", "response_b": "b", "preferred": word}, "tie")
            for word in ("tie", "Tie (both bad)", "both_bad", "neither")
        ),
        (
            {"prompt": "Hi?", "response_a": "a", "response_b": "b", "score_a": 3, "score_b": 3},
            "tie",
        ),
        ({"prompt": "Hi?", "answers": [{"text": t, "score": 1} for t in "ab"]}, "tie"),
    ],
)
def test_a_row_that_is_no_pair_is_counted_by_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    for rows, counts in taken(tmp_path, [LONG, row]):
        assert [_texts(row) for row in rows] == [(JUGGLE, "Three.", "No idea.")]
        assert counts == Rows(into=2, out=1, dropped={reason: 1})


def test_a_system_prompt_is_kept_and_a_prompt_without_it_fits(tmp_path: Path) -> None:
    sides = {side: [SYSTEM, *LONG[side]] for side in LONG}
    for rows, _ in taken(tmp_path, [{**sides, "prompt": JUGGLE}, sides]):
        assert [row["prompt"] for row in rows] == [[SYSTEM, *JUGGLE]] * 2


def test_columns_name_the_responses_and_the_side_that_is_better(tmp_path: Path) -> None:
    rows = [{"q": "Hi?", "a": "Yes.", "b": "No.", "better": n} for n in (-3, 0, 1)]
    columns = {"prompt": "q", "response1": "a", "response2": "b", "preference": "better",
               "margin": "better"}  # fmt: skip
    preferences, pairs = taken(tmp_path, rows, columns=columns)
    assert [_texts(row)[1:] for row in pairs[0]] == [("Yes.", "No."), ("No.", "Yes.")]
    assert [row["margin"] for row in preferences[0]] == [3.0, 1.0]
    assert preferences[1].dropped == {"tie": 1}


def test_scores_of_a_list_are_the_scores_of_the_pair(tmp_path: Path) -> None:
    scored = {"prompt": "Hi?", "answers": [{"text": t, "score": s} for s, t in enumerate("abc")]}
    _, (rows, _) = taken(tmp_path, [scored])
    assert [(row["score_chosen"], row["score_rejected"]) for row in rows] == [(2.0, 0.0)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "line 1: no columns 'chosen' and 'rejected'"),
        ({"prompt": "a", "chosen": "b"}, "line 1: no column 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "line 1: no column 'prompt'"),
        ({"prompt": "a", "answers": [{"text": "b"}]}, "answers have no rank or score"),
        ({"prompt": "a", "answers": ["b", "c"], "scores": [1]}, "2 answers and 1 scores"),
        ({"prompt": "a", **TWO, "preference": "first"}, "preference 'first' is not a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, "margin 'much'"),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "preferred": "response_z"},
            "preferred 'response_z' is no response",
        ),
        ({**LONG, "prompt": "Who?"}, "has no rows for en, prompt_differs 1"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        taken(tmp_path, [row])
    assert words in raised.value.what


def test_of_several_responses_the_worse_is_one_of_those_not_preferred(tmp_path: Path) -> None:
    letters = "abcd"
    rows = [
        {"prompt": f"{n}?", **{f"response_{one}": f"{n}{one}" for one in letters},
         "preferred": f"response_{letters[n % 4]}"}
        for n in range(40)
    ]  # fmt: skip
    (preferences, counts), _ = taken(tmp_path, rows)
    sides = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in preferences]
    assert counts.out == 40
    assert all(a[:-1] == b[:-1] and a != b for a, b in sides)
    assert len({b[-1] for _, b in sides}) == 4  # not always the same place


@pytest.mark.parametrize(("cell", "margin"), [("2.5", 2.5), ("3", 3.0), ("", None), ("nan", None)])
def test_a_number_of_a_csv_file_is_read_as_a_number(
    tmp_path: Path, cell: str, margin: float | None
) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(f"prompt,chosen,rejected,margin,id\nHi?,Yes.,No.,{cell},007\n")
    stage = Preferences(source=path.name)
    [spec] = stage.plan_slices(StageContext(("en",), {}, {}))
    places = {need: Place(path) for need in spec.needs}
    job = Job("x", 0, (spec,), places, tmp_path, tmp_path / "out", lambda *_: None)
    stage.run(job)
    [row] = read_slice(tmp_path / "out", "en", "preferences").to_pylist()
    assert (row["margin"], row["prompt_id"]) == (margin, "007")


@pytest.mark.parametrize("cell", ["much", "1_000", "inf", "true"])
def test_what_is_no_number_in_a_csv_file_is_named(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(f"prompt,chosen,rejected,margin\nHi?,Yes.,No.,{cell}\n")
    with pytest.raises(InputError, match=f"line 2: margin '{cell}' is not a number"):
        Pairs(source=path.name).read(path, "en")


def test_rows_of_one_group_are_one_row_with_its_answers(tmp_path: Path) -> None:
    rows = [
        {"q": "Hi?", "text": "Yes.", "points": 3},
        {"q": "Why?", "text": "So.", "points": 1},
        {"q": "Hi?", "text": "No.", "points": 1},
        {"q": "Hi?", "text": "Maybe.", "points": 2},
    ]
    columns = {"prompt": "q", "answer": "text", "score": "points"}
    view = {"group": "q", "columns": columns, "where": {"points": {"least": 1, "most": 3}}}
    for read, counts in taken(tmp_path, rows, **view):
        assert [_texts(row)[1:] for row in read] == [("Yes.", "No.")]
        assert counts == Rows(into=4, out=1, dropped={"joined": 2, "no_preference": 1})


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({"least": 0.5}, 2), ({"most": 0.5}, 2), ({"least": 0.5, "most": 0.5}, 1), ({"least": 0}, 3)],
)
def test_a_column_of_numbers_filters_by_its_bounds(
    tmp_path: Path, bounds: dict[str, float], kept: int
) -> None:
    rows = [{**LONG, "id": n, "quality": n / 2 if n < 3 else None} for n in range(4)]
    rows[1]["quality"] = "0.5"
    for read, counts in taken(tmp_path, rows, where={"quality": bounds}):
        assert len(read) == kept
        assert counts.dropped == {"filtered": 4 - kept}


def test_a_recipe_maps_columns_to_responses_and_reads_pairs_by_a_preset(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: x\norg: me\nlanguages: [en]\nmodels: {policy: org/p}\nstages:\n"
        "  preferences: {source: a.csv, columns: {prompt: q, response_a: x, response_b: y, "
        "preferred: best, score_a: p}, where: {toxic: {most: 0.5}}}\n"
        "  pair: {from: {preset: hh-rlhf, split: test}}\n"
    )
    steps = load(str(tmp_path / "recipe.yaml")).recipe.steps()
    assert steps["pair"].from_ is not None
    assert (steps["pair"].from_.source, steps["pair"].from_.split) == ("Anthropic/hh-rlhf", "test")
    with pytest.raises(ValidationError, match="the preset tagengo is for prompts, questions"):
        Pair.model_validate({"from": {"preset": "tagengo"}})
    with pytest.raises(ValidationError, match="needs least, most or both"):
        Preferences(source="a.csv", where={"toxic": {}})


def test_scores_of_a_csv_file_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scored.csv"
    path.write_text("prompt,response,reward,k,n_tokens\nHi?,Yes.,2.5,1,7\nHi?,No.,,0,3\n")
    stage = Score.model_validate({"from": path.name})
    specs = stage.checked_slices(StageContext(("en",), {}, {"score": stage}))
    places = {need: Place(path) for spec in specs for need in spec.needs}
    job = Job("score", 0, tuple(specs), places, tmp_path, tmp_path / "out", lambda *_: None)
    external.take_in(stage, job)
    rows = read_slice(tmp_path / "out", "en", "scores").to_pylist()
    assert [(r["reward"], r["k"], r["n_tokens"], r["status"]) for r in rows] == [
        (2.5, 1, 7, "ok"), (None, 0, 3, "absent"),
    ]  # fmt: skip
