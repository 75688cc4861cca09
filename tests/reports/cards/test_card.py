"""Cards: every stage's renders, and its header is what the Hub reads."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import yaml
from huggingface_hub import RepoCard

from factory.artifacts.manifest import InputRecord, License, Manifest, Rows
from factory.errors import InputError
from factory.planning.plan import plan
from factory.planning.stages import STAGES
from factory.reports.benchmarks import benchmark_results
from factory.reports.cards import card
from factory.reports.results import tidy
from factory.reports.win_rates import comparisons, judge_blind, win_rates
from factory.rewards.rankings import cell
from tests.support.builders import by_name, demo, done, imported, lock_of, manifest_of, walked
from tools.golden import HERE
from tools.golden import manifests as kept

LANGUAGES = ("en", "es", "fr")
TEMPLATE = {
    "template_hash": "0123456789abcdef",
    "leading_bos": 1,
    "stop_ids": [2],
    "stop_tokens": ["<|im_end|>"],
    "example": "<|im_start|>user\nHello<|im_end|>\n",
}
TRAINED = {
    "trained_on": 30, "held_out": 6, "steps": 15,
    "curve": [{"loss": 0.6931, "epoch": 0.1}, {"loss": 0.41, "epoch": 1.0}],
    "final": {"eval_loss": 0.5, "eval_rewards/accuracies": 0.75},
}  # fmt: skip
STEP = {"step": 1, "loss": 0.6931, "grad_norm": 1.5, "learning_rate": 1e-4}
REWARDS = {"rewards/accuracies": 0.5, "rewards/margins": 0.1, "logps/chosen": -40.0}
GAP = {"max": 1e-5, "mean": 1e-6}
DRAWN = {
    "answers": 32, "empty": 0, "in_language": 20, "other_language": 4, "mean_tokens": 21.25,
    "repetition": 0.125, "distinct": 30,
}  # fmt: skip
ADAPTED = {
    **TRAINED,
    "seconds": 12.5,
    "batching": {"micro_batch": 4, "processes": 1, "accumulation": 2},
    "alarms": [],
    "curve": [{**STEP, **REWARDS, "step": n} for n in range(1, 9)],
    "held_out_curve": [{"step": n, "eval_loss": 0.6} for n in (4, 8)],
    "chain": {"load_on": "local/SmolLM2-135M-Instruct-Q4_1", "revision": "a" * 40,
              "start": "policy", "reference": "policy", "loss": "sigmoid"},
    "probe": {"prompts": 16, "dtype": "float32", "tolerance": 1e-3, "applied": True,
              "base": {"max": 0.5, "mean": 0.1}, "merged": GAP,
              "engine": {"name": "transformers 5", **GAP}},
    "behaviour": {
        "prompts": 16, "held_out": 6, "n": 2, "temperature": 1.0, "max_tokens": 40,
        "base": {**DRAWN, "finished": 31}, "tuned": {**DRAWN, "finished": 12},
        "log_prob_of_base": {"base": -1.5, "tuned": -2.75},
        "log_prob_of_tuned": {"base": -3.0, "tuned": -1.0},
        "forgotten": 1.25, "moved": 2.0,
    },
}  # fmt: skip
STACKED = {
    **ADAPTED["chain"],  # type: ignore[dict-item]
    "start": "local/demo-sft-es",
    "start_revision": "fp-0123456789ab",
    "reference": "local/demo-sft-es",
}
FOUND = {
    "answers": 72,
    "unscored": 1,
    "passed_over": {"chosen": {"unfinished": 5, "empty": 0}, "rejected": {}},
    "mean_tokens": {"chosen": 31.25, "rejected": 40.0},
    "token_gap": -8.75,
    "longest": 99,
    "mean_margin": 1.5,
    "languages": [{"prompt_language": "en", "chosen_language": "en", "rejected_language": "en",
                   "rows": 12}],
}  # fmt: skip
MIX = [
    {"prompt_language": "es", "chosen_language": "es", "rejected_language": "en", "rows": 9},
    {"prompt_language": "fr", "chosen_language": "fr", "rejected_language": "fr", "rows": 3},
]
NO_HELD_OUT = {**ADAPTED, "held_out": 0, "final": {}, "held_out_curve": []}
STATS: dict[str, dict[str, Any]] = {
    "reward": TRAINED,
    "sft[all]": {
        **ADAPTED,
        "chain": {k: ADAPTED["chain"][k] for k in ("load_on", "revision", "start")},  # type: ignore[index]
    },
    "dpo[all]": ADAPTED,
    "online[all]": NO_HELD_OUT,
    "rl[all]": NO_HELD_OUT | {
        "published": {"by": "win_rate", "of": "0.5", "held_out": 2,
                      "each": {"0.5": {"win_rate": 0.75}, "last": {"win_rate": 0.5}}},
    },
    "merge": {
        "search": {"prompts": 3,
                   "tried": [{"weights": {"dpo[all]": 0.5, "org/a|b@v1": 0.5}, "reward": 0.25}]},
        "merged": [{"step": "dpo[all]", "repo": "local/a|b", "revision": "fp-0", "weight": 0.5}],
        "chain": {"load_on": "local/x", "revision": "a" * 40, "start": "policy"},
        "probe": ADAPTED["probe"],
    },
    "dpo[es]": NO_HELD_OUT | {"chain": STACKED, "alarms": ["the loss rose from 0.7 to 9"]},
    "generate": {
        "by_language": {
            code: {"samples": 12, "tokens": 99, "finished": 10, "cut_off": 2, "in_language": 9}
            for code in LANGUAGES
        }
    },
    "translate": {
        "by_language": {
            "de": {"asked": 12, "kept": 3, "cut_off": 0, "unlabelled": 1, "length_ratio": 1.1,
                   "compared": 6, "chrf_kept": None, "chrf_all": 12.345678},
        }
    },
    "translate_pairs": {
        "by_language": {
            "de": {
                "asked": 12, "kept": 3, "cut_off": 0, "unlabelled": 0,
                "quality": {"n": 2, "p5": 40.5, "p25": 41.0, "p50": 50.0, "p75": 59.0, "p95": 60.0},
            },
        }
    },
    "score": {
        "by_language": {
            "en": {"scored": 11, "without_reward": 1, "tokens": 9, "mean": 0.123456, "std": 2.0},
            "es": {"scored": 12, "without_reward": 0, "tokens": 9, "mean": -1.0, "std": 0.0},
            "fr": {"scored": 0, "without_reward": 12, "tokens": 9},
        }
    },
    "pair": {
        "by_slice": {
            "en": FOUND,
            "es": {**FOUND, "mean_margin": 0.5, "over_budget": 2},
            "fr": {key: FOUND[key] for key in ("answers", "unscored", "passed_over")},
            "all_lang": {**FOUND, "languages": MIX},
        }
    },
    "best": {
        "by_slice": {
            code: {
                **{key: FOUND[key] for key in ("answers", "unscored", "mean_tokens", "longest")},
                "passed_over": {"chosen": {"wrong_language": 9}},
            }
            for code in LANGUAGES
        }
    },
    "arena": {
        "by_slice": {
            f"{code}/{label}": {"answers": 12, "tokens": 9, "cut_off": 1, "in_language": 11}
            for code in LANGUAGES
            for label in ("policy", "dpo-all")
        }
        | {
            "es/dpo-es": {"answers": 12, "tokens": 9, "cut_off": 0, "in_language": 12,
                          "other_language": 0, "line_pass_rate": 0.75},
        }
    },
    "transfer": {
        "matrix": [
            {"reward_model": "reward", "language": "es", **cell([1.0, 0.0, None], [0.0, 1.0, 0.0])}
        ]
    },
    "judge": {
        "judge": "local/demo-reward",
        "notes": ["training reward (not independent)"],
        "comparisons": [
            {"model": "dpo-all", "reference": "policy", "language": "all", "won": 20, "tied": 3,
             "lost": 13, "unparseable": 0, "mean_reward_model": 0.5, "mean_reward_reference": 0.25,
             "win_rate": {"rate": 59.7}, "shown": "59.7 % [45.1, 72.9] no difference shown"},
            {"model": "dpo-es", "reference": "policy", "language": "es", "won": 0, "tied": 0,
             "lost": 0, "unparseable": 12},
        ],
    },
}  # fmt: skip


def manifests() -> dict[str, Manifest]:
    """One of every step of the demo, and an imported model."""
    recipe = demo(
        "stages.merge={}",
        "stages.dedup={}",
        "stages.translate_pairs={model: policy, languages: [de], quality: {least: 40}}",
        "stages.online={each: all}",
        "stages.rl={each: all, rewards: {model: 1.0, language: 0.5}}",
        "stages.transfer={pairs: {es: pairs.jsonl}}",
        "stages.euroeval={benchmarks: {en: [scala-en]}}",
        "stages.pair.pool=both",
        "stages.pair.rejected={min_of: 5}",
        "stages.pair.prompt_language=random",
        "stages.pair.normalize=zscore",
        "stages.pair.budget={tokens: 90, over: keep}",
    )
    lock = lock_of(recipe)
    steps = plan(recipe, lock, walked(recipe, lock))
    found = {"import": imported()}
    for name, step in by_name(steps).items():
        left = {"es": 5} if name in ("pair", "prompts") else {}
        stats = STATS.get(name) or (kept()[name].stats if name == "euroeval" else None)
        made = manifest_of(recipe, lock, step, done(steps), left, stats=stats)
        with_template = step.stage.name in ("generate", "sft", "dpo", "online", "rl")
        found[name] = made.model_copy(update={"template": TEMPLATE}) if with_template else made
    return found


MANIFESTS = manifests()


def header_of(text: str) -> dict[str, Any]:
    """The metadata block, found as the Hub finds it."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found, "no front matter"
    data = yaml.safe_load(found[1])
    assert RepoCard(text).data.to_dict() == data
    return data


def tables(text: str) -> list[list[str]]:
    """Every table, as its lines."""
    return [block.strip().splitlines() for block in re.findall(r"(?:^\|.*\n?)+", text, re.M)]


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def check_tables(text: str) -> None:
    """Every row of every table has as many cells as the row under its head."""
    for table in tables(text):
        assert re.fullmatch(r"[|:-]+", table[1]), table[:2]
        assert {columns(line) for line in table} == {columns(table[1])}, "\n".join(table)


def test_a_card_of_an_adapter_shows_what_it_draws_beside_its_base():
    text = card.render(MANIFESTS["dpo[all]"])
    assert "2 answers to each of 16 prompts (6 held out), at temperature 1" in text
    assert "| ended by themselves | 31 of 32 | 12 of 32 |" in text
    assert "| in their prompt's language, of those that can be told | 20 of 24 | 20 of 24 |" in text
    assert "| log-probability of the base's answers, nats a token | -1.500 | -2.750 |" in text
    assert "lost 1.25 nats a token" in text


def test_a_win_rate_in_a_language_that_the_judge_is_blind_in_says_so():
    """On the card, in the table of results and for the page: the audit of the same reward."""
    verdicts, scores = MANIFESTS["judge"], MANIFESTS["score"]
    reads = next(iter(verdicts.slices.values())).inputs
    audited = {"fr": {"blind": []}, "es": {"blind": ["accuracy: it prefers the worse answer"]}}
    seeing = scores.model_copy(update={"stats": {"audit": {"by_language": audited}}})
    found = judge_blind(reads, [seeing])
    assert found == {"es": ["accuracy: it prefers the worse answer"]}
    other = [r.model_copy(update={"digest": "0" * 64}) if r.role == "judge" else r for r in reads]
    assert judge_blind(other, [seeing]) == {}, "another reward was audited"
    blind = verdicts.model_copy(update={"stats": {**verdicts.stats, "judge_blind": found}})
    by_language = {row.language: row.blind for row in win_rates(blind)}
    said = "the judge is suspect here: accuracy: it prefers the worse answer"
    assert by_language["es"] == (said,)
    assert by_language["all"] == ("the judge is suspect in es",)
    assert f"; **{said}** |" in card.render(blind)
    assert all(said in row.note for row in tidy([blind]) if row.language == "es")


def test_there_is_a_card_for_every_stage():
    assert {stage.name for stage in STAGES} <= {m.stage for m in MANIFESTS.values()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_card_renders_and_its_tables_are_whole(name):
    manifest = MANIFESTS[name]
    text = card.render(manifest)
    header_of(text)
    check_tables(text)
    assert f"# {manifest.repo}\n" in text
    assert "{{" not in text and "{%" not in text
    assert text.endswith("\n") and "\n\n\n" not in text
    for line, after in pairwise(text.splitlines()):
        if line.startswith("|") and not after.startswith("|"):
            assert after == "", "a table ends with an empty line"
        if after.startswith("## ") or after.startswith("```python"):
            assert line == "", f"{after} stands apart"
    for slice_name, record in manifest.slices.items() if manifest.stage != "import" else ():
        lost = ", ".join(f"{reason} {n}" for reason, n in record.rows.dropped.items()) or "0"
        assert f"| {slice_name} | {record.rows.into} | {record.rows.out} | {lost} |" in text


@pytest.mark.parametrize(
    "name",
    ["prompts", "translate", "questions", "preferences", "generate", "score", "pair", "best"],
)
def test_a_dataset_has_one_config_a_language(name):
    header = header_of(card.render(MANIFESTS[name]))
    codes = ["en"] if name == "preferences" else list(LANGUAGES)
    codes = ["de"] if name == "translate" else codes
    codes += {"pair": ["all_lang"], "prompts": ["de"]}.get(name, [])  # beside the translation
    default = {"default": True}
    assert header["configs"] == [
        {
            "config_name": code,
            **(default if code == codes[0] else {}),
            "data_files": [{"split": "train", "path": f"data/{code}/*.parquet"}],
        }
        for code in codes
    ]
    assert header["task_categories"][0] == "text-ranking" if name == "score" else "text-generation"
    labelled = name in ("score", "pair", "best")
    assert header.get("annotations_creators") == (["machine-generated"] if labelled else None)
    assert header["size_categories"] == ["n<1K"]
    assert header["tags"][:2] == ["croco-factory", f"croco-{name}"]
    assert header["license"] == "apache-2.0"
    assert "base_model" not in header


@pytest.mark.parametrize("name", ["arena", "judge"])
def test_models_are_below_the_language_that_they_answer_in(name):
    configs = header_of(card.render(MANIFESTS[name]))["configs"]
    assert [config["config_name"] for config in configs] == list(LANGUAGES)
    assert configs[0]["data_files"][0]["path"] == "data/en/**/*.parquet"


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**8, "100M<n<1B")],
)
def test_the_size_class_is_the_hubs(rows, size):
    manifest = MANIFESTS["prompts"]
    slices = {"en": manifest.slices["en"].model_copy(update={"rows": Rows(into=rows, out=rows)})}
    assert card.header(manifest.model_copy(update={"slices": slices}))["size_categories"] == [size]


@pytest.mark.parametrize("name", ["dpo[all]", "dpo[es]"])
def test_an_adapter_names_its_base_and_how_to_load_it(name):
    manifest = MANIFESTS[name]
    text = card.render(manifest)
    header = header_of(text)
    assert header["base_model"] == "local/SmolLM2-135M-Instruct-Q4_1"
    assert header["base_model_relation"] == "adapter"
    assert header["library_name"] == "peft"
    assert header["pipeline_tag"] == "text-generation"
    assert "configs" not in header
    assert f'from_pretrained(base, "{manifest.repo}", revision="{manifest.tag}")' in text


def test_a_reward_model_is_a_finetuned_classifier():
    header = header_of(card.render(MANIFESTS["reward"]))
    assert header["base_model"] == "local/SmolLM2-135M-Instruct-Q4_1"
    assert header["base_model_relation"] == "finetune"
    assert header["pipeline_tag"] == "text-classification"


def test_an_imported_model_says_what_it_was_unpacked_from():
    text = card.render(MANIFESTS["import"])
    header = header_of(text)
    assert (header["base_model"], header["base_model_relation"]) == ("org/small", "quantized")
    assert "`small.gguf`" in text and "of the recipe ``" not in text
    assert "language" not in header


def test_random_weights_are_said_to_mean_nothing():
    fields = {"origin": {"built_by": "factory.pocket"}, "base_model": None, "relation": None}
    text = card.render(MANIFESTS["import"].model_copy(update={"fields": fields}))
    assert "Random weights" in text
    assert "base_model" not in header_of(text)


def test_the_card_of_verdicts_says_who_judged_and_that_it_is_not_independent():
    text = card.render(MANIFESTS["judge"])
    assert "judged by local/demo-reward: training reward (not independent)." in text
    assert "59.7 % [45.1, 72.9] no difference shown" in text
    assert "no verdict could be read" in text


CONTROLLED = "44.0 % [30.0, 61.0], phi +1.20, 14 points from the raw win rate"


def asked_a_model() -> dict[str, object]:
    """Figures of a language model as judge, of which little could be read."""
    rate = {"rate": 58.3, "low": 40.0, "high": 75.0, "comparisons": 12, "questions": 12}
    row = {
        "model": "dpo-es", "reference": "policy", "language": "es", "category": "all",
        "won": 6, "tied": 2, "lost": 4, "unparseable": 8, "seen_in_training": 2,
        "verdicts": {"asked": 40, "unparseable": 18, "identical": 1, "cut": 3},
        "bounds": {"worst": 35.0, "best": 80.0}, "win_rate": rate, "macro": rate,
        "shown": "58.3 % [40.0, 75.0] no difference shown",
        "in_language": {**rate, "rate": 41.7},
        "lc_minimal_chars": {
            "rate": 44.0, "low": 30.0, "high": 61.0, "phi": 1.2, "mean_difference": 210.0,
            "flag": "14 points from the raw win rate",
        },
        "consistency": {
            "both": 10, "same": 7, "decided": 16, "first": 12, "same_share": 70.0,
            "first_share": 75.0,
        },
        "line_pass_rate_model": 90.0, "line_pass_rate_reference": None,
    }  # fmt: skip
    seen = {"questions": 20, "prompts": 100, "seen": 2, "ids": ["q1", "q7"]}
    return {
        "judge": "org/chat", "judge_revision": "0123456789abcdef0123", "judge_kind": "llm",
        "orders": "both", "notes": [],
        "template": {"name": "ties", "hash": "feedfacefeedface", "ties": True, "text": "Say [[A]]"},
        "comparisons": [row], "by_category": [{**row, "category": "hard_prompt"}],
        "seen_in_training": {"es/dpo-es": seen}, "engines": {},
    }  # fmt: skip


def test_the_card_of_verdicts_shows_what_else_could_explain_a_win_rate():
    text = card.render(MANIFESTS["judge"].model_copy(update={"stats": asked_a_model()}))
    for said in (
        "judged by org/chat at `0123456789abcde`.",
        "Every question was judged in both orders",
        "| dpo-es | Spanish | 6 | 2 | 4 | 8 |",
        f"| dpo-es | Spanish | 41.7 % | {CONTROLLED} | 35.0 % to 80.0 % | 70.0 % | 75.0 % |",
        "| 90.0 % |  |",
        "Mean over languages of dpo-es: 58.3 % [40.0, 75.0].",
        "| dpo-es | hard_prompt | 6 | 2 | 4 |",
        "40 verdicts, 18 of them unreadable. 1 questions have identical answers; 3 have",
        "**2 of 20 questions are among the prompts of training**: 2 of es/dpo-es (q1, q7).",
        "template of the judge: ties (`feedfacefeedface`)",
        "Say [[A]]",
    ):
        assert said in text, said


def test_cards_say_of_a_served_judge_that_it_is_not_pinned():
    stats = {**asked_a_model(), "judge_revision": None, "served": "not pinned", "cut_by": "chars"}
    judge = kept()["judge"].model_copy(update={"stats": stats})
    text = card.render(judge)
    assert "judged by org/chat, a served model, not pinned." in text
    assert "whose tokenizer is not known: cut by chars, each counted as a token." in text
    found = comparisons(kept()["dpo-es"], [kept()["arena"], judge])
    text = card.render(kept()["dpo-es"], found)
    assert "org/chat, served, not pinned, asked with the template ties" in text


def test_an_adapters_card_shows_the_same_of_what_judges_found_of_it():
    judge = kept()["judge"].model_copy(update={"stats": asked_a_model()})
    found = comparisons(kept()["dpo-es"], [kept()["arena"], judge])
    text = card.render(kept()["dpo-es"], found)
    rate = "58.3 % [40.0, 75.0] no difference shown"
    assert "Against the base model, judged by org/chat (verdicts: " in text
    assert f"| Spanish | 6 | 2 | 4 | 8 | {rate} |" in text
    assert f"| Spanish | 41.7 % | {CONTROLLED} | 35.0 % to 80.0 % | 70.0 % |" in text
    assert "Judged by org/chat at 0123456789abcde, asked with the template ties." in text
    assert "**2 of the questions above are among the prompts of training**" in text


def test_the_card_of_pairs_shows_the_rule_and_its_anatomy():
    text = card.render(MANIFESTS["pair"])
    assert "rejected the lowest of 5 drawn at random among those below it" in text
    assert "standard deviations of their language; its prompts are in a random language" in text
    assert "](anatomy.png)" in text
    assert "| en | 12 | 1.5 | 31.25 | 40 | -8.75 | 99 |" in text
    assert "| fr | 12 |  |  |  |  |  |" in text, "a slice without pairs has no figures"
    assert "| en | 72 | 1 | unfinished 5 | 0 |" in text
    assert "| es | es | en | 9 | 75.0 % |" in text
    assert "2 conversations of `es` are longer than 90 tokens and are included" in text


def test_the_card_of_croco_names_its_rule():
    recipe = demo()
    lock = lock_of(recipe)
    steps = plan(recipe, lock, walked(recipe, lock))
    step = by_name(steps)["pair"]
    stats = {"by_slice": dict.fromkeys(LANGUAGES, FOUND)}
    text = card.render(manifest_of(recipe, lock, step, done(steps), stats=stats))
    assert "Chosen is the highest score of its prompt's answers" in text
    assert "rejected the one nearest to mean -2 standard deviations among those below it" in text


def test_whether_a_second_run_gives_equal_bytes_is_said():
    exact = MANIFESTS["pair"]
    assert "the same bytes" in card.render(exact)
    other = exact.model_copy(update={"determinism": "distribution"})
    assert "another draw of the same distribution" in card.render(other)


@pytest.mark.parametrize("name", kept())
def test_the_card_of_a_real_run_is_the_golden_one(name):
    expected = (HERE / f"{name}.md").read_text(encoding="utf-8")
    assert card.render(kept()[name]) == expected, "python -m tools.golden renders them anew"


def elsewhere(name: str) -> Manifest:
    """A manifest of the real run as if it had been made for a hub that all may read."""
    text = kept()[name].dump().replace("local/", "acme/")
    return Manifest.model_validate_json(text)


def test_what_it_was_made_from_is_linked_at_its_revision():
    text = card.render(elsewhere("dpo-es"))
    [base] = [r for r in elsewhere("dpo-es").models if r.role == "base"]
    assert f"](https://huggingface.co/acme/tiny-random-llama/tree/{base.revision})" in text
    [read] = [r for r in elsewhere("dpo-es").slices["es"].inputs if r.role == "pairs"]
    assert f"](https://huggingface.co/datasets/acme/smoke-pair/tree/{read.tag})" in text
    assert header_of(text)["datasets"] == ["acme/smoke-pair"]


def test_what_no_public_hub_has_is_named_but_not_linked():
    assert "huggingface.co/local" not in card.render(kept()["dpo-es"])


def test_everything_upstream_is_cited_and_nothing_else():
    text = card.render(kept()["dpo-es"])
    for key in ("croco", "dpo", "lora", "trl", "peft", "sweetspot", "transformers"):
        assert f"{{{key}," in text
    for key in ("vllm", "euroeval", "icr", "skywork"):
        assert f"{{{key}," not in text


def test_examples_are_rows_of_the_data_and_stand_in_the_manifest():
    manifest = kept()["pair"]
    assert [(s.slice, s.row) for s in manifest.samples] == [("en", 0), ("es", 4), ("fr", 8)]
    text = card.render(manifest)
    assert manifest.samples[2].cells["prompt"][0]["content"] in text


def test_a_training_and_rewards_are_shown_where_they_were_drawn():
    assert "](curve.png)" in card.render(kept()["reward"])
    assert "](rewards.png)" in card.render(kept()["score"])
    assert ".png" not in card.render(kept()["judge"])


def test_a_licence_with_terms_of_its_own_is_named_and_linked():
    other = License(id="other", name="My Terms", link="https://example.org/t")
    text = card.render(MANIFESTS["pair"].model_copy(update={"license": other}))
    header = header_of(text)
    assert (header["license"], header["license_name"]) == ("other", "my-terms")
    assert header["license_link"] == "https://example.org/t"
    assert "[My Terms](https://example.org/t)" in text


def test_a_notice_that_a_licence_asks_for_is_on_the_card_and_a_persons_reason_too():
    stated = License(id="llama3.1", because="we asked Meta")
    text = card.render(MANIFESTS["dpo[es]"].model_copy(update={"license": stated}))
    assert "Built with Llama." in text
    assert "Set by a person, because: we asked Meta" in text


def test_a_collections_note_says_what_a_reader_wants_first():
    margins = [s["mean_margin"] for s in kept()["pair"].stats["by_slice"].values()]
    mean = sum(margins) / len(margins)
    assert card.note(kept()["pair"], "fp-1") == f"pair: 48 rows, mean margin {mean:.3g}, fp-1"
    accuracy = kept()["dpo-all"].stats["final"]["eval_rewards/accuracies"]
    assert f"held-out accuracy {accuracy:.0%}" in card.note(kept()["dpo-all"], "fp-1")
    overall = kept()["judge"].stats["comparisons"][0]
    assert f"dpo-all {overall['shown']}; dpo-es " in card.note(kept()["judge"], "fp-1")
    assert "% cut off, fp-1" in card.note(kept()["generate"], "fp-1")
    rows = kept()["prompts"].rows().out
    assert card.note(kept()["prompts"], "fp-1") == f"prompts: {rows} rows, fp-1"
    assert all(len(card.note(manifest, "fp-1")) <= card.NOTE for manifest in kept().values())


@pytest.mark.parametrize("name", ["generate", "score", "pair", "dpo-es"])
def test_what_somebody_else_made_has_a_card_that_says_so(name):
    made = kept()[name]
    source = InputRecord(
        role="source", digest="e" * 64, source="acme/rows@main", revision="b" * 40, license="mit"
    )
    slices = {
        key: record.model_copy(update={"inputs": [*record.inputs[1:], source]})
        for key, record in made.slices.items()
    }
    fields = {"from": {"source": "acme/rows@main", "columns": {"prompt": "question"}}}
    taken = made.model_copy(
        update={"fields": fields, "stats": {}, "samples": [], "slices": slices, "template": None}
    )
    text = card.render(taken)
    header_of(text)
    check_tables(text)
    assert "Not made by the factory" in text
    assert "(https://huggingface.co/datasets/acme/rows/tree/" + "b" * 40 in text
    assert "| from.columns.prompt | question |" in text
    assert "## Training" not in text
    assert card.note(taken, "fp-1").startswith(f"{made.step}: ")


def test_rows_that_were_taken_over_are_said_to_be():
    made = kept()["generate"]
    record = made.slices["es"].model_copy(update={"taken_over": {"org/old@fp-9": 24}})
    text = card.render(made.model_copy(update={"slices": {**made.slices, "es": record}}))
    assert "24 rows of es were reused from `org/old@fp-9`" in text


def test_the_manifest_of_another_version_is_told_as_such():
    old = kept()["pair"]
    with pytest.raises(InputError, match="lacks what its card shows"):
        card.render(old.model_copy(update={"stats": {}}))
    adapter = kept()["merge"].model_copy(update={"stage": "dream"})
    with pytest.raises(InputError, match="no card for a 'dream'"):
        card.render(adapter)


def test_rows_of_a_stage_without_a_section_have_a_card():
    text = card.render(kept()["pair"].model_copy(update={"stage": "dream", "stats": {}}))
    assert "Rows of the kind `pairs`, as the stage `dream` leaves them." in text


def test_without_a_license_the_header_has_none():
    manifest = MANIFESTS["pair"].model_copy(update={"license": None})
    assert "license" not in header_of(card.render(manifest))


def test_the_same_manifest_gives_the_same_card():
    read = Manifest.model_validate_json(MANIFESTS["dpo[es]"].dump())
    assert card.render(read) == card.render(MANIFESTS["dpo[es]"])


def test_the_card_of_a_translation_lays_it_beside_what_people_wrote():
    text = card.render(MANIFESTS["translate"])
    assert "| German | 12 | 3 | 0 | 1 | 1.1 |" in text
    assert "| German | 6 | 12.35 | none |" in text
    assert header_of(text)["language"] == ["de"]


def test_the_line_pass_rate_is_on_the_card_of_the_arena_where_there_is_one():
    text = card.render(MANIFESTS["arena"])
    assert "| es/dpo-es | 12 | 0 | 12 | 0 | 75.0 % |" in text
    assert "| en/policy | 12 | 1 | 11 |  |  |" in text, "made before these were counted"


def test_the_word_pass_rate_is_a_column_where_a_language_has_one():
    manifest = MANIFESTS["arena"]
    assert "WPR" not in card.render(manifest)
    slices = {**manifest.stats["by_slice"]}
    slices["es/dpo-es"] = {**slices["es/dpo-es"], "word_pass_rate": 0.5}
    slices["en/policy"] = {**slices["en/policy"], "word_pass_rate": None}
    text = card.render(manifest.model_copy(update={"stats": {"by_slice": slices}}))
    assert "(LPR) | word pass rate (WPR) |\n|---|---|---|---|---|---|---|\n" in text
    assert "| es/dpo-es | 12 | 0 | 12 | 0 | 75.0 % | 50.0 % |\n" in text
    assert "| en/policy | 12 | 1 | 11 |  |  |  |\n" in text
    assert "WPR is the share of these without an English word" in text


def test_a_language_without_rows_has_no_config_unless_there_is_no_other():
    manifest = kept()["pair"]
    none = manifest.slices["es"].model_copy(update={"rows": Rows(into=4, out=0, dropped={"x": 4})})
    less = manifest.model_copy(update={"slices": {**manifest.slices, "es": none}})
    names = [config["config_name"] for config in card.header(less)["configs"]]
    assert "es" not in names and "en" in names
    alone = manifest.model_copy(update={"slices": {"es": none}})
    assert [config["config_name"] for config in card.header(alone)["configs"]] == ["es"]


@pytest.mark.parametrize("name", kept())
def test_no_table_is_wider_than_the_page_of_a_card(name):
    found = comparisons(kept()[name], kept().values())
    scored = benchmark_results(kept()[name], kept().values())
    text = card.render(kept()[name], found, scored)
    assert not [line for line in text.splitlines() if line.startswith("|") and line.count("|") > 9]


def test_a_card_links_papers_and_names_languages_and_what_reproduces_it():
    text = card.render(kept()["dpo-all"])
    assert "](https://arxiv.org/abs/2605.26293)" in text
    assert "in English, Spanish and French: DPO" in text
    assert "factory reproduce local/smoke-dpo-all --from 'dpo[all]'\n" in text
    assert "factory report local/smoke-dpo-all\n" in text
    changed, _, default = text.partition("<details><summary>Settings at their defaults</summary>")
    assert "| lr | 0.0002 |" in changed and "| beta | 0.1 |" not in changed
    assert "| beta | 0.1 |" in default
    assert "factory run" not in text


def test_rows_of_a_file_are_not_read_again_on_another_machine():
    text = card.render(kept()["prompts"])
    assert "read a file that is not published" in text
    assert "factory reproduce local/smoke-prompts\n" in text


def test_the_device_and_the_commit_of_the_code_are_named():
    made = {"python": "3.11.7", "device": "NVIDIA H200", "commit": "0123456789ab"}
    text = card.render(kept()["dpo-all"].model_copy(update={"environment": made}))
    assert "python 3.11.7, on NVIDIA H200. The code is at commit `0123456789ab`." in text
