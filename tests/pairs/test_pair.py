"""pair and best from artifacts at rest to artifacts at rest."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.manifest import Rows
from factory.artifacts.schemas import SCHEMAS, SELDOM
from factory.artifacts.tables import pick_rows, read_slice
from factory.errors import InputError, RecipeError
from factory.pairs.config import MinOf, Sigma, parse
from factory.pairs.pair import Best, Pair
from factory.planning.lock import Lock
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.reports.cards.figures import ANATOMY, draw_anatomy
from factory.sampling.generate import Generate
from factory.sampling.sources import Prompts
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.stage import StageContext
from tests.support.builders import demo, lock_of
from tests.support.pools import Pools, job_of, read, scope, write

CODES = ("da", "en", "es")


def drawn(seed: int, prompts: int = 12, n: int = 8) -> dict[str, Pools]:
    """Pools in three languages, with failed scores, cut answers, wrong labels and empty texts."""
    dice = random.Random(seed)

    def answer(code: str, name: str, k: int) -> tuple[Any, ...]:
        odd = {
            "finish_reason": dice.choice(["stop"] * 5 + ["length"]),
            "detected_language": dice.choice([code] * 5 + [None, "en"]),
        }
        reward = None if dice.random() < 0.15 else dice.randint(-8, 8) / 2
        text = "" if dice.random() < 0.05 else f"{code} {name} {k} " + "word " * dice.randint(0, 9)
        return reward, text, odd

    return {
        code: {
            f"p{number}": [answer(code, f"p{number}", k) for k in range(n)]
            for number in range(prompts)
        }
        for code in CODES
    }


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["prompt_id"]: row for row in rows}


SPEC = SliceSpec("pair", "all_lang", None, ())

STAGES = [
    Pair(),
    Pair(rejected="min"),
    Pair(rejected="q1", pool="both"),
    Pair(chosen=Sigma(sigma=1), rejected=Sigma(sigma=-1), pool="both"),
    Pair(rejected=MinOf(min_of=3)),
    Pair(rejected="min", length_control=True),
    Pair(length_control=True, share=0.7, first=5),
    Pair(pool="both", share={"es": 0.5, "da": 0.9}, drop={"length_gap_above": 0.5}),
    Best(first={"es": 3}, keep={"finished": True, "language": "match", "reward_above": -2}),
    Pair(pool="all_lang", normalize="zscore", prompt_language="random"),
    Pair(
        pool="both",
        drop={"margin_below": 1, "margin_above": 5, "std_below": 1, "duplicates": True,
              "chosen_below_quantile": 0.2},
        budget={"tokens": 12},
        keep={"rejected": {"finished": True, "language": "match", "empty": False}},
    ),
    Best(),
    Best(pool="both", drop={"chosen_below_quantile": 0.5}, budget={"tokens": 9, "over": "keep"}),
]  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A stage that ran on `drawn`, where it did, and what it reported."""

    stage: Pair | Best
    root: Path
    job: Job
    pools: dict[str, Pools]
    outcome: Outcome


@pytest.fixture(
    scope="module", params=STAGES, ids=lambda s: f"{s.name} {s.identity_fields(SPEC)} {s.pool}"
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    stage, root, pools = request.param, tmp_path_factory.mktemp("ran"), drawn(1)
    write(root, pools, {code: [*pools[code], "nobody answered"] for code in CODES})
    job = job_of(root, stage, CODES)
    return Ran(stage, root, job, pools, stage.run(job))


def test_conservation_in_is_out_and_dropped_with_a_reason_at_every_stage(ran):
    stage, job, outcome = ran.stage, ran.job, ran.outcome
    names = [spec.name for spec in job.slices]
    assert list(outcome.rows) == names == list(outcome.stats["by_slice"])
    for name, rows in outcome.rows.items():
        assert rows.balanced()
        assert rows.into == 13
        assert rows.dropped["no_samples"] == 1
        assert rows.out == len(read(ran.root, stage, name))
    assert outcome.determinism == "exact"
    by_slice = {name: (outcome.stats["by_slice"][name], outcome.rows[name]) for name in names}
    draw_anatomy(job.out / ANATOMY, by_slice)
    assert (job.out / "anatomy.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_in_order_with_ids_of_their_own_and_where_they_come_from(ran):
    stage, pools, seen = ran.stage, ran.pools, []
    for spec in ran.job.slices:
        rows = read(ran.root, stage, spec.name)
        assert rows
        assert [row["prompt_id"] for row in rows] == sorted(row["prompt_id"] for row in rows)
        seen += [row["id"] for row in rows]
        assert list(rows[0]) == [n for n in SCHEMAS[stage.kind].names if n not in SELDOM]
        for row in rows:
            for side, text, reward in sides(stage, row):
                language, k = row[f"{side}language"], row[f"{side}k"]
                was_reward, was_text, odd = pools[language][row["prompt_id"]][k]
                assert (text, reward) == (was_text, was_reward)
                if side != "rejected_":
                    assert text and odd == {"finish_reason": "stop", "detected_language": language}
            asked = row.get("prompt_language") or row["language"]
            assert row["prompt"] == [{"role": "user", "content": f"{row['prompt_id']} in {asked}"}]
    assert len(set(seen)) == len(seen)


def sides(stage: Pair | Best, row: dict[str, Any]) -> list[tuple[str, str, float]]:
    if isinstance(stage, Best):
        return [("", row["completion"][0]["content"], row["reward"])]
    return [
        (f"{side}_", row[side][0]["content"], row[f"reward_{side}"])
        for side in ("chosen", "rejected")
    ]


def test_the_same_job_leaves_the_same_bytes(ran):
    files = {path: path.read_bytes() for path in ran.job.out.rglob("*.*")}
    assert ran.stage.run(ran.job) == ran.outcome
    assert {path: path.read_bytes() for path in ran.job.out.rglob("*.*")} == files


# the defects of the published script, by name


def test_malformed_line_does_not_shift_alignment(tmp_path):
    """Languages meet by prompt_id. A line that cannot be read is counted, and a prompt that one
    language lacks is missing there and moves nobody else's."""
    source = tmp_path / "p.jsonl"
    source.write_text('{"id": "a", "prompt": "A"}\n{"id": "b", "pro\n{"id": "c", "prompt": "C"}\n')
    stage = Prompts(source="p.jsonl")
    [spec] = stage.plan_slices(StageContext(("da",), {}, {}))
    job = Job("prompts", 0, (spec,), {spec.needs[0]: Place(source)}, tmp_path, tmp_path,
              lambda *_: None)  # fmt: skip
    counts = stage.run(job).rows["da"]
    assert (counts.into, counts.out, counts.balanced()) == (3, 2, True)
    assert read_slice(tmp_path, "da", "prompts").column("prompt_id").to_pylist() == ["a", "c"]

    pools: dict[str, Pools] = {
        code: {
            name: [(number + k, f"{code} {name} {k}") for k in range(3)]
            for number, name in enumerate("abcd")
            if not (code == "da" and name == "b")
        }
        for code in ("da", "en")
    }
    write(tmp_path, pools)
    pair = Pair(pool="all_lang")
    pair.run(job_of(tmp_path, pair, ("da", "en")))
    rows = by_id(read(tmp_path, pair, "all_lang"))
    assert set(rows) == set("abcd")
    for name, row in rows.items():
        for side in ("prompt", "chosen", "rejected"):
            assert f"{name}" in row[side][0]["content"].split()
        assert row["pool_size"] == (3 if name == "b" else 6)
    assert rows["b"]["prompt_language"] == "en"


def test_duplicate_prompts_stay_separate(tmp_path):
    """The same text under two ids: two prompts, two pools, two pairs."""
    write(tmp_path, {"da": {"q": [(1.0, "x"), (0.0, "y")], "q-2": [(1.0, "x"), (0.0, "y")]}})
    stage = Pair()
    stage.run(job_of(tmp_path, stage, ("da",)))
    rows = read(tmp_path, stage, "da")
    assert [(row["id"], row["pool_size"]) for row in rows] == [
        ("pair/da/q", 2), ("pair/da/q-2", 2),
    ]  # fmt: skip


def test_failed_score_is_missing_never_a_number(tmp_path):
    pool = [(2.0, "best"), (None, "failed"), (1.0, "middle"), (0.0, "low")]
    write(tmp_path, {"da": {"p": pool}})
    stage = Pair()
    outcome = stage.run(job_of(tmp_path, stage, ("da",)))
    [row] = read(tmp_path, stage, "da")
    assert (row["pool_size"], row["pool_mean"], row["score_rejected"]) == (3, 1.0, 0.0)
    assert outcome.stats["by_slice"]["da"]["unscored"] == 1


def test_language_offset_does_not_change_all_lang_pairs_when_normalised(tmp_path):
    plain = drawn(4)
    moved = {
        code: {
            name: [(r + 10 if r is not None and code == "en" else r, *rest) for r, *rest in pool]
            for name, pool in by_prompt.items()
        }
        for code, by_prompt in plain.items()
    }
    found = {}
    for normalize in ("zscore", "none"):
        stage = Pair(pool="all_lang", normalize=normalize)
        for name, pools in (("plain", plain), ("moved", moved)):
            root = tmp_path / normalize / name
            write(root, pools)
            stage.run(job_of(root, stage, CODES))
            found[normalize, name] = [
                (row["prompt_id"], row["chosen"], row["rejected"])
                for row in read(root, stage, "all_lang")
            ]
    assert found["zscore", "plain"] == found["zscore", "moved"]
    assert found["none", "plain"] != found["none", "moved"]


# what a recipe may ask for


def test_the_prompt_of_a_cross_lingual_pair_is_where_it_was_asked_to_be(tmp_path):
    write(tmp_path, drawn(5, prompts=40))
    found = {}
    for where in ("chosen", "rejected", "random"):
        stage = Pair(pool="all_lang", prompt_language=where)
        stage.run(job_of(tmp_path, stage, CODES))
        found[where] = read(tmp_path, stage, "all_lang")
    for where in ("chosen", "rejected"):
        assert all(r["prompt_language"] == r[f"{where}_language"] for r in found[where])
    spoken = Counter(row["prompt_language"] for row in found["random"])
    assert set(spoken) == set(CODES)
    stage = Pair(pool="all_lang", prompt_language="random")
    stage.run(job_of(tmp_path, stage, CODES, seed=1))
    assert read(tmp_path, stage, "all_lang") != found["random"]


def test_another_language_moves_no_random_prompt_but_those_it_takes(tmp_path):
    write(tmp_path, drawn(6, prompts=60))
    stage = Pair(pool="all_lang", prompt_language="random")
    found = []
    for codes in (CODES[:2], CODES):
        stage.run(job_of(tmp_path, stage, codes))
        found.append(
            {r["prompt_id"]: r["prompt_language"] for r in read(tmp_path, stage, "all_lang")}
        )
    both = found[0].keys() & found[1].keys()
    assert all(found[1][name] in (found[0][name], "es") for name in both)


def test_a_pair_over_the_budget_is_dropped_or_kept_knowingly(tmp_path):
    long = {"conversation": 50}
    write(tmp_path, {"da": {"a": [(1.0, "x", long), (0.0, "y")], "b": [(1.0, "z"), (0.0, "w")]}})
    dropping = Pair(budget={"tokens": 49})
    outcome = dropping.run(job_of(tmp_path, dropping, ("da",)))
    assert outcome.rows["da"] == Rows(into=2, out=1, dropped={"over_budget": 1})
    keeping = Pair(budget={"tokens": 49, "over": "keep"})
    outcome = keeping.run(job_of(tmp_path, keeping, ("da",)))
    assert outcome.rows["da"].out == 2
    assert outcome.stats["by_slice"]["da"]["over_budget"] == 1
    assert outcome.stats["by_slice"]["da"]["longest"] == 50


def test_figures_are_those_of_the_rows(tmp_path):
    write(tmp_path, drawn(7))
    stage = Pair(pool="both")
    outcome = stage.run(job_of(tmp_path, stage, CODES))
    for name, figures in outcome.stats["by_slice"].items():
        rows = read(tmp_path, stage, name)
        margins = [row["score_chosen"] - row["score_rejected"] for row in rows]
        assert figures["mean_margin"] == pytest.approx(sum(margins) / len(rows))
        gaps = [row["chosen_tokens"] - row["rejected_tokens"] for row in rows]
        assert figures["token_gap"] == pytest.approx(sum(gaps) / len(rows))
        assert sum(figures["margins"]["margin"]) == len(rows)
        assert sum(figures["scores"]["pool"]) == figures["answers"] - figures["unscored"]
        assert sum(mix["rows"] for mix in figures["languages"]) == len(rows)
        spoken = Counter((r["prompt_language"], r["chosen_language"], r["rejected_language"])
                         for r in rows)  # fmt: skip
        assert {tuple(mix.values())[:3]: mix["rows"] for mix in figures["languages"]} == spoken


def test_answers_to_a_prompt_that_is_not_there_are_an_error(tmp_path):
    write(tmp_path, drawn(8, prompts=3), {code: ["p0", "p1"] for code in CODES})
    stage = Pair()
    with pytest.raises(InputError, match="prompts that are not there"):
        stage.run(job_of(tmp_path, stage, CODES))


def test_texts_are_those_of_the_rows_whatever_file_and_batch_they_lie_in(tmp_path, monkeypatch):
    monkeypatch.setattr("factory.artifacts.tables.PART_BYTES", 1000)
    monkeypatch.setattr("factory.artifacts.tables._BATCH", 3)
    write(tmp_path, {"da": {"p": [(float(k), f"answer {k}") for k in range(40)]}})
    files = list((tmp_path / "samples" / "data" / "da").glob("*.parquet"))
    assert len(files) > 2
    dice = random.Random(3)
    for rows in ([], [0], [39, 0, 39, 7], [dice.randrange(40) for _ in range(100)]):
        found = pick_rows(tmp_path / "samples", "da", "response", rows)
        assert found.to_list() == [f"answer {row}" for row in rows]


def test_nothing_to_pair_leaves_an_empty_table(tmp_path):
    write(tmp_path, {"da": {}}, {"da": ["a", "b"]})
    for stage in (Pair(), Best()):
        outcome = stage.run(job_of(tmp_path, stage, ("da",)))
        assert outcome.rows["da"] == Rows(into=2, out=0, dropped={"no_samples": 2})
        assert read(tmp_path, stage, "da") == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chosen": "min"}, "one of max, {sigma: -2}"),
        ({"rejected": "max"}, "one of min, q1, {sigma: -2}, {min_of: 5}"),
        ({"rejected": {"sigma": "x"}}, "number"),
        ({"rejected": {"sigmaa": -2}}, "one of min"),
        ({"rejected": {"min_of": 0}}, "greater than or equal to 1"),
        ({"chosen": {"sigma": -1}, "rejected": {"sigma": 1}}, "does not lie below"),
        ({"normalize": "zscore"}, "normalize is for pool: all_lang or both"),
        ({"prompt_language": "random"}, "prompt_language is for pool: all_lang or both"),
        ({"length_control": True, "pool": "both"}, "length_control is for pool: in_lang"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"first": {"es": 0}}, "es: 0 is no whole number of 1 or more"),
        ({"share": {"es": 1.5}}, "es: 1.5 is no share, over 0 and at most 1"),
        ({"drop": {"chosen_below_quantile": 2}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(fields, said):
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate(fields)
    assert said in caught.value.errors()[0]["msg"]


def test_a_wrong_point_is_an_error_with_its_line():
    with pytest.raises(RecipeError) as caught:
        load("demo", ["stages.pair.rejected=lowest"])
    assert "stages.pair.rejected: it is one of min, q1" in caught.value.what


# identity


def marks(*overrides: str, lock: Lock | None = None) -> dict[str, str]:
    recipe = demo(*overrides)
    steps = plan(recipe, lock or lock_of(recipe), Inventory())
    return {f"{s.name} {made.spec.name}": made.fingerprint for s in steps for made in s.slices}


def test_defaults_spelt_out_and_another_pool_beside_change_no_slice_that_is_there():
    plain = marks("stages.best=null", "stages.sft=null")
    spelt = marks(
        "stages.best=null", "stages.sft=null",
        "stages.pair.chosen=max", "stages.pair.rejected={sigma: -2}", "stages.pair.gold=false",
        "stages.pair.drop={duplicates: false}", "stages.pair.length_control=false",
    )  # fmt: skip
    assert spelt == plain
    beside = marks("stages.pair.pool=both", "stages.best={}", "stages.sft=null")
    assert {key: beside[key] for key in plain} == plain
    assert set(beside) - set(plain) == {
        "pair all_lang", "best en", "best es", "best fr",
    }  # fmt: skip


def test_what_is_for_the_cross_lingual_pool_alone_changes_no_other_slice():
    both = marks("stages.pair.pool=both")
    for override in ("normalize=zscore", "prompt_language=rejected", "prompt_language=random"):
        found = marks("stages.pair.pool=both", f"stages.pair.{override}")
        assert {key for key in both if both[key] != found[key]} == {"pair all_lang"}


def test_the_seed_counts_where_something_is_drawn():
    def moved(*overrides: str) -> set[str]:
        one, other = marks(*overrides), marks(*overrides, "seed=1")
        # generate is drawn too: see past it by what else the slices hold
        recipes = [demo(*overrides, f"seed={seed}") for seed in (0, 1)]
        seeds = [
            {
                f"{s.name} {made.spec.name}": made.identity.get("seed")
                for s in plan(recipe, lock_of(recipe), Inventory())
                for made in s.slices
            }
            for recipe in recipes
        ]
        assert one.keys() == other.keys()
        return {key for key in seeds[0] if seeds[0][key] != seeds[1][key] and "pair" in key}

    assert moved("stages.pair.pool=both") == set()
    assert moved("stages.pair.pool=both", "stages.pair.prompt_language=random") == {"pair all_lang"}
    assert moved("stages.pair.rejected={min_of: 5}") == {"pair en", "pair es", "pair fr"}


def test_adapters_are_trained_on_single_languages_or_on_the_cross_lingual_pairs_by_name():
    recipe = demo("stages.pair.pool=both", "stages.dpo.each=[all, es, all_lang]")
    specs = {spec.name: spec for stage, spec in recipe.slices() if stage.name == "dpo"}
    read_by = {
        name: [need.slice for need in spec.needs if getattr(need, "role", "") == "pairs"]
        for name, spec in specs.items()
    }
    assert read_by == {"all": ["en", "es", "fr"], "es": ["es"], "all_lang": ["all_lang"]}
    assert specs["all_lang"].language is None
    with pytest.raises(RecipeError, match="of single languages"):
        demo("stages.pair.pool=all_lang", "stages.dpo.each=all")


# strategies by name


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("max:-2", {"chosen": "max", "rejected": {"sigma": -2.0}}),
        ("+1:min", {"chosen": {"sigma": 1.0}, "rejected": "min"}),
        ("max:q1", {"chosen": "max", "rejected": "q1"}),
        ("max:min_of_5", {"chosen": "max", "rejected": {"min_of": 5}}),
        ("icr", {"chosen": "max", "rejected": "min", "length_control": True}),
        ("max:-2@all_lang-zscore", {"chosen": "max", "rejected": {"sigma": -2.0},
                                    "pool": "all_lang", "normalize": "zscore"}),
    ],
)  # fmt: skip
def test_a_strategy_is_named_in_a_word(text, fields):
    assert parse(text) == fields


def test_strategies_side_by_side(tmp_path):
    from factory.pairs import compare
    from factory.reports.cards import figures
    from tests.support.pools import scope

    write(tmp_path, drawn(9, prompts=30))
    own = Pair(pool="both")
    found = compare.strategies(own, ["max:-1", "max:-2@all_lang", "max:-2"])
    rows = compare.compare(found, scope(CODES, own), job_of(tmp_path, own, CODES))
    assert [(row["strategy"], row["slice"]) for row in rows] == [
        *(("recipe", name) for name in (*CODES, "all_lang")),
        *(("max:-1", name) for name in CODES),
        ("max:-2@all_lang", "all_lang"),
        *(("max:-2", name) for name in CODES),
    ]
    same = [row for row in rows if row["strategy"] in ("recipe", "max:-2@all_lang", "max:-2")]
    assert {row["overlap"] for row in same} == {1.0}
    totals = compare.totals(rows)
    assert [row["strategy"] for row in totals] == [
        "recipe",
        "max:-1",
        "max:-2@all_lang",
        "max:-2",
    ]
    assert 0 < totals[1]["overlap"] < 1
    assert totals[1]["mean_margin"] < totals[3]["mean_margin"]
    assert totals[3]["cross"] == 0 < totals[2]["cross"]
    figures.draw_comparison(tmp_path / "pairs.png", totals)
    assert (tmp_path / "pairs.png").stat().st_size > 1000
    for odd in ("max", "max:max", "max:-2@everything", "-2:+2"):
        with pytest.raises(RecipeError):
            compare.strategies(own, [odd])


def test_a_pool_of_all_languages_without_a_prompt_in_two_is_refused(tmp_path):
    pools = drawn(3, prompts=3)
    apart = {code: {f"{code}-{name}": pool for name, pool in pools[code].items()} for code in CODES}
    write(tmp_path, apart)
    with pytest.raises(InputError, match="no prompt has one id in two languages"):
        Pair(pool="both").run(job_of(tmp_path, Pair(pool="both"), CODES))
    assert Pair().run(job_of(tmp_path, Pair(), CODES)).rows.keys() == set(CODES)


def test_answers_of_somebody_who_counted_nothing_are_paired_and_compared(tmp_path):
    from factory.pairs import compare
    from factory.reports.cards import figures
    from tests.support.pools import scope

    unknown = {"n_tokens": None, "conversation": None, "finish_reason": "unknown"}
    pool = [(float(k), f"answer {k}", unknown) for k in range(6)]
    cut_off = [*pool, (9.0, "best but cut", unknown | {"finish_reason": "length"})]
    write(tmp_path, {"en": {"p": pool, "q": cut_off}})
    job = job_of(tmp_path, Pair(), ("en",))
    assert Pair().run(job).rows["en"] == Rows(into=2, out=2)
    assert {row["chosen"][0]["content"] for row in read(tmp_path, Pair(), "en")} == {"answer 5"}
    found = compare.strategies(Pair(), ["max:min"])
    totals = compare.totals(compare.compare(found, scope(("en",), Pair()), job))
    assert [(row["rows"], row["chosen_tokens"]) for row in totals] == [(2, None)] * 2
    assert totals[1]["mean_margin"] == 5.0
    figures.draw_comparison(tmp_path / "pairs.png", totals)


def test_there_is_nothing_to_compare_before_there_are_scores(factory):
    done = factory("pairs", "compare", "smoke", "--strategies", "max:-1")
    assert done.returncode == 1
    assert "is not made yet" in done.stderr
    assert "--until" in done.stderr
    done = factory("pairs", "compare", "smoke", "--strategies", "max:-1@al_lang")
    assert "did you mean 'all_lang'" in done.stderr


# loadable as they are


@pytest.mark.slow
def test_trainers_take_both_sets_as_they_are(tmp_path: Path) -> None:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from factory.execution.builtin_models import POCKET

    write(tmp_path, drawn(10))
    for stage in (Pair(pool="both"), Best(pool="both")):
        stage.run(job_of(tmp_path, stage, CODES))
    model = tmp_path / "model"
    model.mkdir()
    POCKET["local/tiny-random-llama"].build(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    shared = {
        "output_dir": str(tmp_path / "trained"), "max_steps": 1, "use_cpu": True,
        "per_device_train_batch_size": 2, "report_to": "none", "bf16": False,
    }  # fmt: skip
    trainers = {"pair": (DPOTrainer, DPOConfig), "best": (SFTTrainer, SFTConfig)}
    for name, (trainer, config) in trainers.items():
        for code in ("da", "all_lang"):
            files = str(tmp_path / "out" / name / "data" / code / "*.parquet")
            rows = load_dataset("parquet", data_files=files, split="train",
                                cache_dir=str(tmp_path / "cache"))  # fmt: skip
            made = trainer(
                model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
                args=config(**shared),
                train_dataset=rows,
                processing_class=tokenizer,
            )
            assert made.train().training_loss > 0


def test_arrow_allocates_with_malloc():
    """Its own allocator would hold on to 40 MB more (benchmarks/pairing.py)."""
    code = "import factory, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "system"


def test_rows_of_an_older_artifact_are_filled_in(tmp_path):
    import pyarrow.parquet as pq

    write(tmp_path, drawn(11))
    stage = Pair()
    stage.run(job_of(tmp_path, stage, CODES))
    root = tmp_path / "out" / "pair"
    [file] = (root / "data" / "da").glob("*.parquet")
    whole = pq.ParquetFile(file).read()
    pq.write_table(whole.drop_columns(["id", "chosen_tokens"]), file)
    assert read_slice(root, "da", "pairs").column("id").null_count == len(whole)


def sourced(seed: int) -> dict[str, Pools]:
    """Pools of a policy, a teacher that is better now and then, and a person."""
    dice = random.Random(seed)
    kinds = [(0, "me/policy"), (1, "me/policy"), (1_000_000, "org/teacher"), (-1, "gold")]

    def answers(name: str) -> list[tuple[Any, ...]]:
        return [
            (dice.randint(0, 99) / 9, f"{name} by {source} {k}", {"k": k, "source": source})
            for k, source in kinds
        ]

    return {"en": {f"p{number}": answers(f"p{number}") for number in range(30)}}


def test_3_the_best_of_several_teachers_is_chosen_prompt_by_prompt(tmp_path):
    pools = sourced(3)
    write(tmp_path, pools)
    stage = Best(gold=True)
    prompts = Prompts(source="p-{language}.jsonl", columns={"gold": "theirs"})
    generate = Generate(also={"teacher": 1})
    of = job_of(tmp_path, stage, ["en"], generate=generate, prompts=prompts)
    figures = stage.run(of).stats["by_slice"]["en"]
    rows = read(tmp_path, stage, "en")
    for row in rows:
        _, text, columns = max(pools["en"][row["prompt_id"]], key=lambda answer: answer[0])
        assert row["completion"][0]["content"] == text and row["source"] == columns["source"]
    counts = Counter(row["source"] for row in rows)
    assert set(counts) == {"me/policy", "org/teacher", "gold"}
    assert figures["sources"]["chosen"] == counts
    assert figures["off_policy"]["chosen"] == pytest.approx(1 - counts["me/policy"] / 30)


def test_answers_of_others_are_chosen_over_the_policys_own(tmp_path):
    pools = sourced(4)
    write(tmp_path, pools)
    keep = {"chosen": {"source": "others"}, "rejected": {"source": "own"}}
    stage = Pair(keep=keep, rejected="min")
    of = job_of(tmp_path, stage, ["en"], generate=Generate(also={"teacher": 1}))
    outcome = stage.run(of)
    rows, expected = read(tmp_path, stage, "en"), 0
    assert all(row["chosen_source"] == "org/teacher" for row in rows)  # gold stays out
    assert all(row["rejected_source"] == "me/policy" and row["rejected_k"] < 2 for row in rows)
    for answers in pools["en"].values():
        own, other = answers[:2], answers[2]
        expected += any(one[0] < other[0] for one in own)
    assert len(rows) == expected == outcome.rows["en"].out < 30
    figures = outcome.stats["by_slice"]["en"]
    assert figures["off_policy"] == {"chosen": 1.0, "rejected": 0.0}
    assert figures["passed_over"]["chosen"]["other_source"] == 60


def test_79_a_share_and_the_first_of_the_pairs_are_nested_and_counted(tmp_path):
    write(tmp_path, drawn(5, prompts=200, n=3))
    every = Pair(rejected="min", keep={"chosen": {}})

    def ids(**knobs: Any) -> tuple[set[str], Any]:
        stage = every.model_copy(update=knobs)
        outcome = stage.run(job_of(tmp_path, stage, CODES))
        assert all(rows.balanced() for rows in outcome.rows.values())
        return {row["id"] for code in CODES for row in read(tmp_path, stage, code)}, outcome

    whole, _ = ids()
    half, outcome = ids(share=0.5)
    third, _ = ids(share=0.3)
    assert third < half < whole and 0.4 < len(half) / len(whole) < 0.6
    assert sum(rows.dropped["beyond_share"] for rows in outcome.rows.values()) == len(whole - half)
    some, outcome = ids(first={"es": 7}, share={"da": 0.5})
    of = {code: {name for name in some if name.startswith(f"pair/{code}/")} for code in CODES}
    assert of["es"] == set(sorted(n for n in whole if n.startswith("pair/es/"))[:7])
    assert of["da"] == {name for name in half if name.startswith("pair/da/")}
    assert of["en"] == {name for name in whole if name.startswith("pair/en/")}
    assert (
        outcome.rows["es"].dropped["beyond_first"] > 0
        and "beyond_first" not in outcome.rows["en"].dropped
    )


def test_quotas_name_languages_of_the_recipe():
    stage = Pair(first={"fr": 5})
    with pytest.raises(RecipeError, match="first names 'fr', no language of the recipe"):
        stage.plan_slices(scope(CODES, stage))


def test_129_a_pair_stands_twice_under_the_reward_that_is_asked_for(tmp_path):
    pools = {"en": {"a": [(0.0, "bad"), (10.0, "good")], "b": [(5.0, "so"), (7.5, "fine")]}}
    write(tmp_path, pools)
    stage = Pair(rejected="min", reward_augmented=True, keep={"chosen": {}})
    outcome = stage.run(job_of(tmp_path, stage, ["en"]))
    assert outcome.rows["en"].out == 4 and outcome.rows["en"].balanced()
    rows = read(tmp_path, stage, "en")
    said = [
        (r["id"], r["prompt"][0]["content"].split(" on a ")[0].rsplit(" ", 1)[1],
         r["chosen"][0]["content"], r["rejected"][0]["content"])
        for r in rows
    ]  # fmt: skip
    assert said == [
        ("pair/en/a", "10", "good", "bad"),
        ("pair/en/a/lower", "1", "bad", "good"),
        ("pair/en/b", "7.8", "fine", "so"),
        ("pair/en/b/lower", "5.5", "so", "fine"),
    ]
    assert [r["prompt"][1] for r in rows[:2]] == [{"role": "user", "content": "a in en"}] * 2
    assert (rows[1]["score_chosen"], rows[1]["score_rejected"], rows[1]["chosen_k"]) == (0, 10, 0)
    assert outcome.stats["by_slice"]["en"]["mean_margin"] == 6.25  # of the pairs, each once


def test_177_sides_of_unequal_length_are_dropped_with_every_rule(tmp_path):
    write(tmp_path, drawn(6, prompts=60))
    for rule in ({}, {"rejected": "min"}, {"chosen": Sigma(sigma=1), "rejected": {"min_of": 3}}):
        stage = Pair(**rule, drop={"length_gap_above": 0.3}, keep={"rejected": {"empty": True}})
        dropped = stage.run(job_of(tmp_path, stage, CODES)).rows["es"].dropped
        assert dropped["length_gap_above"] > 0
        for row in read(tmp_path, stage, "es"):
            sizes = [len(row[side][0]["content"]) for side in ("chosen", "rejected")]
            assert max(sizes) - min(sizes) <= 0.3 * max(sizes)


def test_177_length_control_evens_the_sides_of_every_rule_out(tmp_path):
    dice = random.Random(8)

    def answer() -> tuple[float, str]:
        words = dice.randint(1, 60)
        return dice.gauss(0, 1) + words / 10, "word " * words + str(dice.random())

    write(tmp_path, {"en": {f"p{n}": [answer() for _ in range(12)] for n in range(60)}})
    rules = ({}, {"rejected": "q1"}, {"chosen": {"sigma": 1}, "rejected": {"min_of": 4}})
    for rule in (*rules, {"rejected": "min"}):
        gaps = []
        for controlled in (False, True):
            stage = Pair(**rule, length_control=controlled)
            figures = stage.run(job_of(tmp_path, stage, ["en"])).stats["by_slice"]["en"]
            chars = figures["mean_chars"]
            gaps.append(abs(chars["chosen"] - chars["rejected"]))
        assert figures["alpha"] > 0 and gaps[1] < 0.1 * gaps[0], rule


def test_183_wrong_answers_are_compared_with_worse_ones_alone(tmp_path):
    write(tmp_path, {"en": {"a": [(9.0, "right"), (4.0, "near"), (1.0, "far")]}})
    keep = {side: {"reward_below": 5.0} for side in ("chosen", "rejected")}
    stage = Pair(rejected="min", keep=keep)
    outcome = stage.run(job_of(tmp_path, stage, ["en"]))
    [row] = read(tmp_path, stage, "en")
    assert [row[side][0]["content"] for side in ("chosen", "rejected")] == ["near", "far"]
    passed = outcome.stats["by_slice"]["en"]["passed_over"]
    assert passed["chosen"]["reward_too_high"] == passed["rejected"]["reward_too_high"] == 1
