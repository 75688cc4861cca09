"""What EuroEval writes down, read: rows, deltas, and the one table over everything measured.

tests/data/euroeval/ holds records of runs of EuroEval 17.0.0 on the sentences in
tests/data/scala-en: two iterations of SmolLM2-135M-Instruct on the test split, and one on the val
split of a server that says yes twice and no once, over and over.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.artifacts import schemas
from factory.artifacts.manifest import InputRecord, Manifest
from factory.evaluation.euroeval import deltas, records, suites
from factory.reports import benchmarks
from factory.reports.cards import card, figures
from factory.reports.results import tidy
from tools.golden import manifests

RECORDS = Path(__file__).parents[2] / "data" / "euroeval"
SCALA = suites.registry()["scala-en"]
COMMON = {
    "model": "policy", "adapter": None, "language": "en", "split": "test", "few_shot": False,
    "backend": "openai", "tool_version": "17.0.0", "source": "EuroEval/scala-en",
    "source_digest": "d",
}  # fmt: skip


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return found


def test_a_real_record_becomes_rows() -> None:
    found = records.rows(record("test-2"), SCALA, COMMON)
    table = schemas.from_rows(found, "results")
    assert [row["metric"] for row in found] == ["mcc", "macro_f1"]
    assert [row["primary"] for row in found] == [True, False]
    for row in table.to_pylist():
        assert row["status"] == "ok" and row["n_iterations"] == 2
        assert row["value"] == pytest.approx(statistics.mean(row["values"]))
        assert -100 <= row["value"] <= 100
        # EuroEval's own interval: 1.96 standard errors of the mean of its iterations
        half = 1.96 * statistics.stdev(row["values"]) / math.sqrt(2)
        assert (row["ci_high"] - row["ci_low"]) / 2 == pytest.approx(half)
        assert isinstance(row["failed"], int)


def test_one_iteration_has_no_interval_and_the_val_split_is_called_test_all_the_same() -> None:
    one = record("val-1")
    assert {e["evaluation_name"] for e in one["evaluation_results"]} == {
        "test_mcc", "test_macro_f1",
    }  # fmt: skip
    assert one["eval_library"]["additional_details"]["validation_split"] == "true"
    for row in records.rows(one, SCALA, COMMON):
        assert row["value"] is not None and row["n_iterations"] == 1
        assert row["ci_low"] is None and row["ci_high"] is None


def test_the_last_whole_record_counts() -> None:
    old, new = record("test-2"), record("test-2")
    new["retrieved_timestamp"] = "later"
    text = f"\n{json.dumps(old)}\n\n{json.dumps(new)}\n{json.dumps(old)[:99]}"
    assert records.read(text) == {"scala-en": new}
    assert records.read("") == {} == records.read("[1]\n{}\nnull\n")


@pytest.mark.parametrize("said", [float("nan"), float("inf"), None, "none"])
def test_a_score_that_is_no_number_is_null_with_a_reason(said: Any) -> None:
    broken = record("test-2")
    broken["evaluation_results"][0]["score_details"]["score"] = said
    mcc, f1 = records.rows(json.loads(json.dumps(broken)), SCALA, COMMON)
    assert mcc["value"] is None and mcc["status"] == "not_finite" and mcc["values"] is None
    assert f1["status"] == "ok"
    del broken["evaluation_results"][0]
    assert records.rows(broken, SCALA, COMMON)[0]["status"] == "no_score"
    assert records.rows(None, SCALA, COMMON)[0]["status"] == "no_record"


def test_numbers_come_as_text_too() -> None:
    one = record("test-2")
    for item in one["evaluation_results"]:
        item["score_details"]["score"] = str(item["score_details"]["score"])
    assert records.rows(one, SCALA, COMMON) == records.rows(record("test-2"), SCALA, COMMON)


def test_a_published_record_names_no_path_of_a_machine() -> None:
    one = record("test-2")
    one["model_info"] |= {"id": "/home/somebody/run/model", "name": "/home/somebody/run/model"}
    one["evaluation_id"] = "scala-en//home/somebody/run/model/17"
    one["eval_library"]["token"] = "hf_" + "a" * 30
    clean = records.cleaned(one, "dpo-en", ["/home/somebody", "/home/somebody/run"])
    assert "somebody" not in json.dumps(clean) and "hf_a" not in json.dumps(clean)
    assert clean["model_info"]["id"] == "dpo-en"
    kept = "".join(path.read_text() for path in RECORDS.glob("*.json"))
    assert "/tmp" not in kept and "/root" not in kept and "/home" not in kept


# deltas


def pair(ours: list[float], theirs: list[float], **more: Any) -> list[dict[str, Any]]:
    rows = []
    for model, values in (("policy", theirs), ("dpo", ours)):
        rows.append(
            {
                **COMMON, "dataset": "scala-en", "task": SCALA.task, "metric": "mcc",
                "primary": True, "model": model, "n_iterations": len(values),
                "value": statistics.mean(values), "values": values, "status": "ok",
                **(more if model == "dpo" else {}),
            }
        )  # fmt: skip
    return rows


def test_a_delta_is_over_pairs_of_iterations() -> None:
    ours, theirs = [12.0, 14.0, 13.0], [10.0, 11.5, 11.0]
    [found] = deltas.deltas(pair(ours, theirs), "policy", suites.registry())
    differences = [2.0, 2.5, 2.0]
    reach = 4.303 * statistics.stdev(differences) * math.sqrt(4 / 3)
    assert found["delta"] == pytest.approx(statistics.mean(differences))
    assert found["high"] - found["delta"] == pytest.approx(reach)
    assert found["significant"] is True and found["why"] == ""
    # the same scores, in another order, are no longer pairs
    [found] = deltas.deltas(pair([14.0, 12.0, 13.0], theirs), "policy", suites.registry())
    assert found["significant"] is False


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"backend": "vllm"}, "not comparable: backend differs"),
        ({"tool_version": "18.3.0"}, "not comparable: tool_version differs"),
        ({"split": "val"}, "not comparable: split differs"),
        ({"source_digest": "e"}, "not comparable: source_digest differs"),
        ({"n_iterations": 3}, "not comparable: n_iterations differs"),
        ({"value": None, "status": "no_record"}, "no_record"),
        ({"language": "es"}, "policy was not evaluated on it"),
    ],
)
def test_what_was_measured_in_another_way_is_not_compared(more: dict[str, Any], why: str) -> None:
    [found] = deltas.deltas(pair([1.0, 2.0], [1.0, 1.5], **more), "policy", suites.registry())
    assert found["delta"] is None and found["significant"] is None and found["why"] == why


def test_without_pairs_there_is_a_delta_and_no_significance() -> None:
    [found] = deltas.deltas(pair([2.0], [1.0]), "policy", suites.registry())
    assert found["delta"] == 1.0 and found["significant"] is None
    [found] = deltas.deltas(pair([2.0, 3.0], [1.0, 2.0]), "policy", suites.registry())
    assert found["significant"] is None and found["why"] == "every iteration differs by the same"
    rows = [{**row, "dataset": "valeu-en"} for row in pair([2.0, 2.0], [1.0, 1.0])]
    [found] = deltas.deltas(rows, "policy", suites.registry())
    assert found["low"] is None and found["why"] == "every iteration has the same rows"


@pytest.mark.parametrize("iterations", [3, 10])
def test_the_interval_covers_as_often_as_it_says(iterations: int) -> None:
    # many test sets, each with some bootstrap draws of it, for two models of which one is better
    rng = np.random.default_rng(0)
    size, worlds, true = 400, 3000, 0.05
    covered = 0
    for _ in range(worlds):
        draws = rng.integers(0, size, (iterations, size))
        base = rng.random(size) < 0.5
        tuned = np.where(rng.random(size) < 0.1, True, base)  # 0.1 of the wrong half: + 0.05
        differences = (tuned[draws].mean(1) - base[draws].mean(1)).tolist()
        low, high = deltas.interval(differences)
        covered += low <= true <= high
    assert 0.935 <= covered / worlds <= 0.965
    # EuroEval's rule for single scores, read as one of test sets, would not
    narrow = 1.96 * statistics.stdev(differences) / math.sqrt(iterations)
    assert (high - low) / 2 > 2 * narrow


# the manifest of such a run, its card and its figure


def results_manifest(repo: str = "lab/r-results") -> Manifest:
    """A results manifest with the stats of a stage, beside the smoke recipe's dpo."""
    adapter = manifests()["dpo-all"]
    one = manifests()["arena"]
    rows = []
    for model, shift in (("policy", 0.0), ("dpo-all", 3.0)):
        for row in records.rows(record("test-2"), SCALA, COMMON | {"model": model}):
            values = [v + shift * (1 + 0.01 * n) for n, v in enumerate(row["values"])]
            rows.append({**row, "values": values, "value": statistics.mean(values)})
    [record_] = adapter.slices.values()
    read = InputRecord(role="adapter", digest=record_.digest, repo=adapter.repo, tag=adapter.tag)
    [first, *_] = one.slices.values()
    slices = {
        "en/policy": first.model_copy(update={"inputs": []}),
        "en/dpo-all": first.model_copy(update={"inputs": [read]}),
    }
    hidden = ("values", "source_digest", "primary")
    stats = {
        "reference": "policy", "tool_version": "17.0.0", "backend": "openai", "split": "test",
        "iterations": 2, "few_shot": False, "without_suite": ["gl", "mt"], "corrected": [],
        "left_out": [
            {"language": "nl", "dataset": "duidelijke-taal", "metrics": ["meteor", "sari"]}
        ],
        "scores": [{k: v for k, v in row.items() if k not in hidden} for row in rows],
        "deltas": deltas.deltas(rows, "policy", suites.registry()),
        "missing": [{"slice": "en/dpo-all", "dataset": "squad", "why": "ended after 1 s"}],
    }  # fmt: skip
    return one.model_copy(
        update={"repo": repo, "stage": "euroeval", "kind": "results", "step": "euroeval",
                "slices": slices, "stats": stats, "samples": []}
    )  # fmt: skip


def test_the_card_says_scores_deltas_and_what_is_missing() -> None:
    text = card.render(results_manifest())
    assert "no benchmarks in Galician and Maltese" in text
    assert "| dpo-all | English | scala-en, mcc |" in text and "+3.02" in text
    assert "No record of squad in en/dpo-all" in text
    missing = "duidelijke-taal, of the suite in Dutch, was not measured: it needs meteor and sari"
    assert missing in text
    assert "Scores of other backends are not comparable" in text
    assert "deltas.png" in text


def test_an_adapters_card_gets_its_deltas_in_the_form_of_the_hub() -> None:
    adapter, results = manifests()["dpo-all"], results_manifest()
    found = benchmarks.benchmark_results(adapter, [results])
    assert [(row.score.dataset, row.score.metric) for row in found] == [("scala-en", "mcc")]
    text = card.render(adapter, (), found)
    assert "Scores on EuroEval's benchmarks" in text and "+3.02" in text
    [index] = card.header(adapter, (), found)["model-index"]
    [entry] = index["results"]
    assert entry["dataset"] == {
        "name": "scala-en", "type": "EuroEval/scala-en", "config": "en", "split": "test",
    }  # fmt: skip
    assert entry["metrics"][0]["type"] == "matthews_correlation"
    assert entry["metrics"][0]["args"]["delta"] == 3.02
    assert entry["source"]["url"].endswith(f"lab/r-results/tree/{results.tag}")
    # the Hub's own reader takes it
    from huggingface_hub import ModelCard

    loaded = ModelCard(text).data.eval_results
    assert loaded is not None and loaded[0].metric_value == entry["metrics"][0]["value"]


def test_another_draw_of_the_adapter_is_told_nothing() -> None:
    adapter = manifests()["dpo-es"]
    assert benchmarks.benchmark_results(adapter, [results_manifest()]) == []


def test_the_heat_map_has_what_has_a_delta(tmp_path: Path) -> None:
    found = results_manifest()
    assert figures.captions_of(found)["deltas.png"]
    figures.draw(found, tmp_path)
    assert (tmp_path / "deltas.png").read_bytes().startswith(b"\x89PNG")
    stats = {**found.stats, "deltas": [{**found.stats["deltas"][0], "delta": None}]}
    assert "deltas.png" not in figures.captions_of(found.model_copy(update={"stats": stats}))


def test_one_tidy_table_over_scores_deltas_and_win_rates() -> None:
    found = tidy([manifests()["dpo-all"], results_manifest(), manifests()["judge"]])
    kinds = {one.metric for one in found}
    assert {"mcc", "macro_f1", "mcc delta", "win_rate"} <= kinds
    delta = next(one for one in found if one.metric == "mcc delta")
    assert (delta.model, delta.against, delta.evaluation) == ("dpo-all", "policy", "scala-en")
    assert delta.by == "EuroEval 17.0.0, openai, zero-shot"
    won = next(one for one in found if one.metric == "win_rate")
    assert won.against == "policy" and won.by == manifests()["judge"].stats["judge"]
    assert won.ci_low is not None and won.value is not None
    assert won.ci_low <= won.value <= (won.ci_high or 0)
    fingerprints = {one.fingerprint for one in found}
    assert manifests()["judge"].fingerprint in fingerprints
