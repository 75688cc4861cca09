"""The results page: what it says of manifests, that it loads nothing, that nothing breaks it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory.artifacts.manifest import Manifest
from factory.artifacts.resources import shipped
from factory.reports.formatting import figure
from factory.reports.page import page
from factory.reports.page.charts import rates
from factory.reports.page.gather import PublishedStep, gather
from factory.reports.page.lineage import Chain, choose
from factory.reports.page.lineage_graph import Node, arrange, draw, graph
from factory.reports.page.svg import Scale, over
from factory.reports.results import tidy
from factory.reports.win_rates import JudgedModel, Rate, WinRateRow, judge_of
from tests.conftest import Cli
from tests.reports.cards.test_hostile import EVIL, poisoned, words
from tests.reports.test_questions import rows_of_a_run
from tests.support.builders import imported, with_stats
from tests.support.pages import every, name, parse, told
from tools.golden import HERE, manifests

KEPT = {name: one for name, one in manifests().items() if one.recipe == "smoke"}  # one collection
SLUG = "lab/croco-smoke-0123456789abcdef01234567"
STYLE = shipped("cards/report/style.css").read_text()
SECTIONS = ["results", "questions", "samples", "rewards", "training", "line", "rows", "cost", "use"]


def rendered(found: list[Manifest], slug: str | None = SLUG, hub: str | None = None) -> str:
    return page.render(gather(choose(found), "CroCo smoke", slug, hub))


def text_of(*found: Manifest) -> str:
    return told(parse(rendered(list(found))))


@cache
def golden() -> str:
    return rendered(list(KEPT.values()))


def test_the_page_says_what_the_manifests_say() -> None:
    text = told(parse(golden()))
    for said in (
        f"{len(KEPT)} artifacts in English, Spanish, French and German",
        f"dpo-all against the base model: {KEPT['judge'].stats['comparisons'][0]['shown']}",
        "training reward (not independent)",
        "translate cut off 6 100 % 6 of 6 rows 6",
        "33 rows, 9 optimizer steps, 3 rows held out",
        f"factory reproduce {SLUG}",
        f'load_dataset("local/smoke-pair", "en", split="train", revision="{KEPT["pair"].tag}")',
        "Describe a forest in autumn in one or two sentences.",
        "score 0.340 English 16 tokens",
        f"local/tiny-random-llama {KEPT['dpo-es'].models[0].revision[:12]}",
        "@article{croco,",
    ):
        assert said in text, said


def test_the_same_manifests_in_any_order_give_the_same_bytes() -> None:
    shuffled = list(KEPT.values())
    random.Random(7).shuffle(shuffled)
    assert rendered(shuffled) == golden()


def test_it_is_html_whose_links_and_headings_hold() -> None:
    tree = parse(golden())
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    links = [one.get("href") for one in every(tree, "a")]
    inside = [link.removeprefix("#") for link in links if link.startswith("#")]
    assert len(inside) > len(SECTIONS)
    assert set(inside) <= set(ids)
    for one in tree.iter():
        if by := one.get("aria-labelledby"):
            assert by in ids
    levels = [int(name(one)[1]) for one in every(tree, "h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for head in every(tree, "th"):
        assert head.get("scope") in ("row", "col")
    for drawing in every(tree, "svg"):
        hidden = drawing.get("aria-hidden") or drawing.get("overflow") or drawing.get("viewBox")
        assert drawing.get("role") in ("img", "group") or hidden


def test_nothing_is_loaded_from_anywhere() -> None:
    tree = parse(golden())
    assert not list(every(tree, "img", "iframe", "object", "embed", "source", "base"))
    assert [one.get("href") for one in every(tree, "link")] == ["data:,"]
    for one in tree.iter():
        assert not {"src", "srcset", "data", "poster", "style", "xlink:href"} & set(one.attrib)
        assert not any(key.startswith("on") for key in one.attrib)
        assert "url(" not in "".join(one.attrib.values())
    assert "url(" not in STYLE and "@import" not in STYLE
    policy = next(one.get("content") for one in every(tree, "meta") if one.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_repos_are_links_where_others_can_reach_them() -> None:
    moved = [m.model_copy(update={"repo": m.repo.replace("local/", "lab/")}) for m in KEPT.values()]
    found = [one.get("href") for one in every(parse(rendered(moved)), "a")]
    assert f"https://huggingface.co/datasets/lab/smoke-pair/tree/{KEPT['pair'].tag}" in found
    elsewhere = rendered(moved, hub="https://hub.lab.example")
    assert "https://hub.lab.example/lab/smoke-dpo-es/tree/fp-" in elsewhere
    assert "--at https://hub.lab.example" in elsewhere
    assert '<a href="http' not in rendered(moved, hub="http://127.0.0.1:4000")
    assert '<a href="http' not in golden(), "no public hub has a repo of local/"


def test_a_page_of_nothing_says_so_in_sentences() -> None:
    text = page.render(gather(Chain(()), "CroCo nothing"))
    empty = [told(one) for one in every(parse(text), "p") if one.get("class") == "empty"]
    assert len(empty) == 16
    assert all(said.endswith(".") for said in empty)


def test_quality_of_translations_stands_by_language() -> None:
    translate = KEPT["translate"]
    stats = dict(next(iter(translate.stats["by_language"].values())))
    stats |= {"quality": {"n": 6, "p5": 11.5, "p50": 40.25}, "compared": 6, "chrf_kept": 33.75}
    moved = translate.model_copy(
        update={"stats": {**translate.stats, "by_language": {"de": stats}}}
    )
    text = " ".join(re.sub(r"<[^>]+>", " ", rendered([KEPT["prompts"], moved])).split())
    assert "translate German 11.5 – 40.25 – – 33.75 6" in text
    assert "Quality of translations" not in rendered([KEPT["prompts"]])


def test_it_begins_with_what_was_done_to_what() -> None:
    lead = next(told(p) for p in every(parse(golden()), "p") if p.get("class") == "lead")
    pairs = KEPT["pair"].rows().out
    assert lead == (
        f"tiny-random-llama was tuned with supervised fine-tuning and DPO on {pairs} preference "
        "pairs of its own answers in English, Spanish and French, chosen by the rewards of "
        "smoke-reward. local/smoke-reward compared the answers of 2 tuned models with those of the "
        "base model, to 30 held-out questions."
    )


def test_results_come_before_bookkeeping() -> None:
    ids = [one.get("id") for one in every(parse(golden()), "section")]
    assert ids.index("results") < ids.index("questions") < ids.index("line") < ids.index("cost")


def test_questions_are_read_with_both_answers_and_verdicts(home: Path) -> None:
    from factory.reports.page import source

    at_rest(home, KEPT)
    for key, folder in (("arena", "arena"), ("judge", "verdicts")):
        (home / "rows").mkdir(exist_ok=True)
        place = home / "work" / "local" / key / "artifact" / "data"
        if key == "arena":
            rows_of_a_run(home / "rows")
        (home / "rows" / folder / "data").rename(place)
    read = source.directory(home)
    text = page.render(gather(choose(read.manifests), read.title, questions=read.questions))
    [section] = [one for one in every(parse(text), "section") if one.get("id") == "questions"]
    folds = [told(one) for one in every(section, "summary")]
    assert folds == ["English 10 questions", "Spanish 10 questions", "French 10 questions"]
    spanish = list(every(section, "details"))[1]
    articles = [told(one) for one in every(spanish, "article")]
    assert len(articles) == 10
    assert "es q03? base model Swedish 7 tokens policy to q03" in articles[3]
    assert "dpo-es won, tuned first unreadable, base first" in articles[3]
    assert "dpo-all to q03" in articles[3]


def test_each_artifact_alone_is_a_page() -> None:
    for manifest in (*KEPT.values(), imported()):
        parse(rendered([manifest]))
        parse(rendered([manifest.model_copy(update={"stats": {}, "samples": []})]))


# Ways out of an attribute, an element, a style or a script of a page.
OUT = [
    '"><script>alert(1)</script>', "</style><script>alert(1)</script>", "' onmouseover='alert(1)",
    "</title></svg><img src=x onerror=alert(1)>", "-->", "]]>", "{{ r.made }}{% raw %}",
]  # fmt: skip


JUNK = [
    None, True, False, 0, -1, 7, 10**400, float("nan"), float("inf"), 1e300, "", "x", [], [1],
    ["a", None], {}, {"a": 1}, {"edges": [1, 2]}, [{}], {"edges": [2, 1], "pool": [1]},
    {"edges": ["a", "b"], "pool": ["z"]},
]  # fmt: skip


def spoiled(value: Any, chance: random.Random, share: float) -> Any:
    """`value` with something else in the place of some of what is in it."""
    if chance.random() < share:
        return chance.choice(JUNK)
    if isinstance(value, dict):
        return {key: spoiled(one, chance, share) for key, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one, chance, share) for one in value[:6]]
    return value


def test_whatever_stands_under_stats_a_page_comes_of_it() -> None:
    """A manifest promises nothing of its figures: another version of the factory wrote others."""
    for seed in range(120):
        chance = random.Random(seed)
        manifest = KEPT[chance.choice(["score", "pair", "dpo-all", "reward", "judge", "arena"])]
        share = chance.choice([0.02, 0.05, 0.1, 0.3])
        stats = {key: spoiled(one, chance, share) for key, one in manifest.stats.items()}
        text = rendered([with_stats(manifest, **stats)])
        assert "nan" not in re.findall(r"\w+", text.lower().split("<main>")[1])


def hostile(text: str) -> list[Manifest]:
    found = []
    for one in (KEPT[key] for key in ("score", "pair", "dpo-es", "arena", "judge")):
        sides = {"chosen": [{"role": text, "content": text}], "rejected": text}
        made = poisoned(one, text)
        cells = {**made.samples[0].cells, **sides, "prompt_language": text, "chosen_language": text}
        stats = {**made.stats, "alarms": [text], "curve": one.stats.get("curve", [])}
        if "audit" in stats:
            audited = stats["audit"]["by_language"]["en"]
            audited = {**audited, "blind": [text], "readings": [text]}
            stats["audit"] = {"by_language": {text: audited}}
            stats["by_language"] = {text: stats["by_language"]["en"]}
        if "by_slice" in stats:
            stats["by_slice"] = {f"{text}/{text}x": next(iter(stats["by_slice"].values()))}
        samples = [made.samples[0].model_copy(update={"cells": cells})]
        said = {"samples": samples, "languages": [text], "repo": f"{one.repo}{text}"}
        found.append(made.model_copy(update={**said, "stats": stats}))
    return found


@cache
def calm() -> set[tuple[str, tuple[str, ...]]]:
    return shape("calm")


def shape(text: str) -> set[tuple[str, tuple[str, ...]]]:
    tree = parse(rendered(hostile(text)))
    return {(name(one), tuple(sorted(one.keys()))) for one in tree.iter()}


@settings(max_examples=3, deadline=None)
@given(words)
@example(" ".join([*OUT, *EVIL]))
@example("".join(reversed(OUT)))
@example("javascript:alert(1)")
@example("")
def test_no_text_becomes_a_part_of_the_page(text: str) -> None:
    found = rendered(hostile(text), slug=f"lab/{text}", hub=f"https://hub.example/{text}")
    tree = parse(found)
    scripts = list(every(tree, "script"))
    assert len(scripts) == 1 and "".join(scripts[0].itertext()).strip().startswith("(function")
    assert len(list(every(tree, "style"))) == 1
    for one in tree.iter():
        allowed = {key for tag, keys in calm() if tag == name(one) for key in keys} | {"lang"}
        assert (name(one), ()) in calm() or allowed, name(one)
        assert set(one.keys()) <= allowed
        assert re.fullmatch(r"#made-\d+|#[a-z-]+|https://[\w.:/-]*", one.get("href", "#a")) or (
            one.get("href") == "data:,"
        )
    unseen = {c for c in found if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen <= {"\n", "\u200c", "\u200d"}


def test_text_has_its_language_and_takes_its_own_direction() -> None:
    pair = KEPT["pair"]
    cells = {
        **pair.samples[0].cells,
        "prompt": [{"role": "user", "content": "ما هي عاصمة الدنمارك؟"}],
        "chosen": [{"role": "assistant", "content": "כותרת\nكوبنهاغن"}],
        "prompt_language": "ar",
        "chosen_language": "he",
    }
    samples = [pair.samples[0].model_copy(update={"cells": cells})]
    text = rendered([pair.model_copy(update={"samples": samples})])
    assert '<p class="turn" dir="rtl" lang="ar">ما هي عاصمة الدنمارك؟</p>' in text
    assert '<p dir="rtl" lang="he">כותרת\nكوبنهاغن</p>' in text


# ---- which artifacts belong together ------------------------------------------------------------


def read_from(manifest: Manifest, repo: str, other: Manifest) -> Manifest:
    """`manifest` as it would be had it read another artifact of a repo."""
    read_so = manifest.model_copy(deep=True)
    for record in read_so.slices.values():
        for n, read in enumerate(record.inputs):
            if read.repo == repo:
                digest = other.slices[read.slice].digest if read.slice else read.digest
                record.inputs[n] = read.model_copy(update={"tag": other.tag, "digest": digest})
    return read_so


def newer(manifest: Manifest, fingerprint: str, day: int) -> Manifest:
    return manifest.model_copy(
        update={"fingerprint": fingerprint, "created": f"2026-12-{day:02}T00:00:00+00:00"}
    )


def test_what_was_made_from_an_older_draw_is_left_out_and_named() -> None:
    pair = newer(KEPT["pair"], "b" * 12, 1)
    without = [manifest for key, manifest in KEPT.items() if key != "pair"]
    for found in ([*KEPT.values(), pair], [*without, pair]):  # the older pairs may be gone
        chain = choose(found)
        assert {one.step for one in chain.left_out} >= {
            "dpo[all]", "dpo[es]", "merge", "arena", "judge",
        }  # fmt: skip
    assert pair in chain.manifests and KEPT["pair"] not in chain.manifests
    assert KEPT["sft-all"] in chain.manifests
    text = text_of(*KEPT.values(), pair)
    assert "Not on this page: arena (local/smoke-arena at fp-" in text


def test_the_newest_line_is_shown_whole() -> None:
    pair = newer(KEPT["pair"], "b" * 12, 1)
    dpo = newer(read_from(KEPT["dpo-es"], pair.repo, pair), "c" * 12, 2)
    chain = choose([*KEPT.values(), pair, dpo])
    assert pair in chain.manifests and dpo in chain.manifests
    order = [one.repo for one in chain.manifests]
    for one in chain.manifests:
        for record in one.slices.values():
            for read in record.inputs:
                assert read.repo not in order or order.index(read.repo) < order.index(one.repo)


def test_another_recipe_that_went_on_does_not_push_its_rows_into_this_page() -> None:
    """A collection may hold repos of another recipe, whose newest artifact is not what was read."""
    theirs = {"prompts", "generate", "score"}
    found = [
        m.model_copy(update={"recipe": "base"}) if key in theirs else m for key, m in KEPT.items()
    ]
    gone_on = newer(KEPT["generate"], "d" * 12, 9).model_copy(update={"recipe": "base"})
    chain = choose([*found, gone_on], "smoke")
    assert not chain.left_out
    assert gone_on not in chain.manifests


# ---- the picture --------------------------------------------------------------------------------


def reached(nodes: dict[str, list[str]], start: str) -> set[str]:
    found, waiting = set(), [start]
    while waiting:
        for read in nodes[waiting.pop()]:
            if read not in found:
                found.add(read)
                waiting.append(read)
    return found


def test_arrows_that_are_left_out_are_implied_by_others() -> None:
    made = [PublishedStep(n, m) for n, m in enumerate(choose(KEPT.values()).manifests, 1)]
    nodes = {node.key: list(node.reads) for node in graph(made).values()}
    for one in made:
        mine = reached(nodes, f"made {one.manifest.repo}")
        for record in one.manifest.slices.values():
            for read in record.inputs:
                assert read.repo is None or f"made {read.repo}" in mine
        drawn = nodes[f"made {one.manifest.repo}"]
        for read in drawn:
            others = set().union(*(reached(nodes, other) for other in drawn if other != read))
            assert read not in others
    assert nodes["made local/smoke-pair"] == ["made local/smoke-score"]


def test_no_two_boxes_of_the_picture_touch_and_all_are_inside() -> None:
    made = [PublishedStep(n, m) for n, m in enumerate(choose(KEPT.values()).manifests, 1)]
    picture = parse(f"<!doctype html><title>x</title>{draw(made)}")
    [svg] = every(picture, "svg")
    wide, high = float(svg.get("width")), float(svg.get("height"))
    sides = ("x", "y", "width", "height")
    boxes = [tuple(float(one.get(side)) for side in sides) for one in every(svg, "rect")]
    assert len(boxes) == len(graph(made)) > len(KEPT)
    for x, y, w, h in boxes:
        assert x >= 0 and x + w <= wide and y >= 0 and y + h <= high
    for n, (x, y, w, h) in enumerate(boxes):
        for a, b, c, d in boxes[:n]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
    links = {one.get("href") for one in every(svg, "a")}
    assert links == {one.anchor and f"#{one.anchor}" for one in made}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 11), max_size=4), max_size=12), st.integers(0, 4))
def test_any_line_can_be_drawn_without_two_boxes_that_touch(
    reads: list[set[int]], outside: int
) -> None:
    nodes = {
        str(n): Node(
            key=str(n),
            label=str(n),
            family="outside" if n < outside else "data",
            reads=[str(read) for read in sorted(found) if read < n and n >= outside],
        )
        for n, found in enumerate(reads)
    }
    placed = arrange(nodes)
    assert set(nodes) <= set(placed)
    columns: dict[int, list[Node]] = {}
    for node in placed.values():
        columns.setdefault(node.column, []).append(node)
        assert all(placed[read].column == node.column - 1 for read in node.reads)
        assert node.y > -1e-6
    for column in columns.values():
        for above, below in pairwise(sorted(column, key=lambda node: node.y)):
            assert above.y + above.high < below.y


# ---- drawings -----------------------------------------------------------------------------------


finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(finite, min_size=1), st.integers(2, 8), st.booleans())
def test_a_scale_holds_its_values_and_its_ticks_lie_on_it(
    values: list[float], most: int, whole: bool
) -> None:
    scale = over(values)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    ticks = scale.ticks(most, whole)
    assert ticks == sorted(ticks)
    assert len(ticks) <= most + 1
    if whole:
        assert all(tick == int(tick) for tick in ticks)


def test_win_rates_stand_where_they_are_and_only_clear_ones_are_coloured() -> None:
    rates = {"en": (70.0, 55.0, 85.0), "es": (50.0, 31.7, 66.7), "fr": (20.0, 5.0, 49.0)}
    comparisons = [
        {
            "model": "dpo-all", "reference": "policy", "language": code, "won": 1, "tied": 2,
            "lost": 3, "unparseable": 0, "shown": "so",
            "win_rate": {"rate": rate, "low": low, "high": high},
        }
        for code, (rate, low, high) in rates.items()
    ]  # fmt: skip
    tree = parse(rendered([with_stats(KEPT["judge"], comparisons=comparisons)]))
    lines = [
        one for one in every(tree, "svg") if "against the base model" in one.get("aria-label", "")
    ]
    assert [one.get("class") for one in lines] == ["plot better", "plot even", "plot worse"]
    points = [next(x.get("x") for x in every(one, "svg") if x.get("overflow")) for one in lines]
    assert points == ["70%", "50%", "20%"]
    reach = [
        [x.get("x1") for x in every(one, "line") if x.get("class") == "reach"] for one in lines
    ]
    assert reach[1] == ["31.7%", "31.7%", "66.7%"]
    [matrix] = [one for one in every(tree, "table") if "by model and language" in told(one)]
    cells = [(one.get("class"), told(one)) for one in every(matrix, "td")]
    assert cells == [("u2", "70.0"), ("flat", "50.0"), ("d2", "20.0")]
    assert "1 won, 2 tied, 3 lost" in told(lines[0])


def test_win_rates_are_drawn_over_as_much_as_they_need_with_50_in_the_middle() -> None:
    def scale(*ends: float) -> tuple[float, float]:
        rows = tuple(
            WinRateRow("dpo", "policy", "en", 0, 0, 0, 0, "",
                    {"win_rate": Rate(end, min(end, 50), max(end, 50))})
            for end in ends
        )  # fmt: skip
        judge = judge_of(KEPT["judge"])
        drawn = rates([JudgedModel("judge", "dpo", "policy", judge, None, rows)])
        return drawn.low, drawn.high

    assert scale() == scale(50.0) == scale(59.0, 45.0) == (40, 60)
    assert scale(60.0) == (30, 70)
    assert scale(52.0, 3.0) == scale(100.0) == (0, 100)


def test_what_else_could_explain_a_win_rate_is_shown_where_it_is_known() -> None:
    judge = KEPT["judge"]
    kept = ("model", "reference", "language", "won", "tied", "lost", "win_rate", "shown")
    bare = {key: judge.stats["comparisons"][0][key] for key in kept}
    stats = {key: judge.stats[key] for key in ("judge", "notes")} | {"comparisons": [bare]}
    text = text_of(judge.model_copy(update={"stats": stats}))
    assert "Checks of these win rates" not in text
    row = bare | {
        "won": 13, "tied": 4, "lost": 13, "unparseable": 3,
        "win_rate": {"rate": 50.0, "low": 31.7, "high": 66.7},
        "in_language": {"rate": 41.25},
        "lc_minimal_chars": {"rate": 48.5, "flag": "separable"},
        "bounds": {"worst": 30.0, "best": 60.0},
        "consistency": {"same_share": 75.0},
    }  # fmt: skip
    seen = {"en/dpo-all": {"prompts": 12, "questions": 10, "seen": 2}}
    text = text_of(with_stats(judge, comparisons=[row], seen_in_training=seen))
    assert "All languages 50.0 41.2 48.5 separable 3 30.0, 60.0 75 %" in text
    assert "No verdict could be read for 3 of 33 questions" in text
    assert "with all of them lost it would be 30.0, with all of them won 60.0." in text
    assert "2 questions of this comparison are among the prompts of training" in text


def test_benchmark_differences_are_a_table_by_language() -> None:
    delta = {
        "model": "dpo-all", "reference": "policy", "dataset": "scala-en", "language": "en",
        "task": "grammar", "metric": "mcc", "value": 12.5, "reference_value": 9.25, "delta": 3.25,
        "low": 1.0, "high": 5.5, "significant": True, "why": "",
    }  # fmt: skip
    unknown = {
        **delta, "language": "es", "dataset": "scala-es", "delta": None, "low": None,
        "high": None, "significant": None, "why": "policy was not evaluated on it",
    }  # fmt: skip
    unsure = {**delta, "language": "fr", "dataset": "scala-fr", "low": -1.0, "significant": False}
    fewer = {**delta, "language": "de", "dataset": "errors-de", "metric": "errors"}
    scores = [{"dataset": "errors-de", "metric": "errors", "lower_is_better": True}]
    missing = [{"slice": "es/dpo-all", "dataset": "mlsum-es", "why": "no record"}]
    stats = {"deltas": [delta, unknown, unsure, fewer], "tool_version": "17.0.0", "backend": "hf",
             "missing": missing, "scores": scores}  # fmt: skip
    results = KEPT["arena"].model_copy(
        update={"kind": "results", "stage": "euroeval", "step": "euroeval", "stats": stats}
    )
    tree = parse(rendered([results]))
    [table] = [one for one in every(tree, "table") if one.get("class") == "heat"]
    assert "Language grammar English +3.2 Spanish – French +3.2 German +3.2" in told(table)
    assert "(EuroEval 17.0.0, hf)" in told(table)
    said = [one.get("title") for one in every(table, "span") if one.get("title")]
    assert said[0] == "scala-en, mcc: 9.25 before, 12.5 after, difference [+1.0, +5.5]"
    assert "1 benchmark without a score mlsum-es of es/dpo-all: no record" in told(tree)
    assert said[1].endswith("; policy was not evaluated on it")
    assert [one.get("class") for one in every(table, "td")] == ["u2", "none", "flat", "d2"]


# ---- colours ------------------------------------------------------------------------------------


def themes() -> list[dict[str, str]]:
    blocks = re.findall(r"\{([^{}]*--paper:[^{}]*)\}", STYLE)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block)) for block in blocks]
    return [theme for theme in found if theme]


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_every_theme() -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, and 1.4.11: 3 to 1 for what a drawing is made of."""
    found = themes()
    assert len(found) == 4  # light, dark, dark by hand, print
    assert found[1] == found[2]
    for theme in found:
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "chosen", "rejected", "judged"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
            for ink in ("margin", "reward"):
                assert contrast(theme[ink], theme[ground]) >= 3, (ink, ground)
        assert contrast(theme["warn"], theme["warn-wash"]) >= 4.5


# ---- the command --------------------------------------------------------------------------------


def at_rest(home, kept: dict[str, Manifest]) -> None:
    for key in kept:
        place = home / "work" / "local" / key / "artifact"
        place.mkdir(parents=True)
        (place / "factory.json").write_bytes((HERE / f"{key}.json").read_bytes())


def test_a_home_is_reported_without_any_hub(factory: Cli, home) -> None:
    at_rest(home, KEPT)
    done = factory("report", str(home), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["path"] == "croco-smoke.html" and len(said["shown"]) == len(KEPT)
    text = (home.parent / "croco-smoke.html").read_text()
    assert text == rendered(list(KEPT.values()), slug=None)
    assert not (home / "hub").exists()


def test_a_recipe_of_which_there_is_nothing_is_an_error_with_its_fix(factory: Cli) -> None:
    done = factory("report", "smoke")
    assert done.returncode == 1
    assert "smoke holds no artifact with a manifest\n  fix: make one with" in done.stderr


def test_to_know_a_directory_no_client_of_a_hub_is_imported() -> None:
    code = "import sys, factory.reports.page.source as s; s.has_artifacts(s.Path('.')); "
    code += "print([m for m in sys.modules if m.startswith('huggingface_hub')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_scale_of_one_value_has_a_middle() -> None:
    assert Scale(1, 1).at(1) == 50
    assert Scale(1, 1).ticks() == [1]


def test_the_word_pass_rate_stands_beside_the_line_pass_rate_where_there_is_one():
    arena = KEPT["arena"]
    assert "word pass rate:" not in text_of(arena)
    slices = {
        name: {**figures, "word_pass_rate": 0.5 if name.startswith("es/") else None}
        for name, figures in arena.stats["by_slice"].items()
    }
    text = text_of(with_stats(arena, by_slice=slices))
    assert "; word pass rate: 50 % → 50 %" in text


def test_reward_models_are_compared_by_language_on_the_page_and_in_the_table() -> None:
    transfer = manifests()["transfer"]
    [row] = transfer.stats["matrix"]
    cells = [
        {**row, "reward_model": "reward-es", "language": "es", "share": 0.25, "low": 0.1,
         "high": 0.5},
        {**row, "reward_model": "other", "language": "fr", "share": None},
    ]  # fmt: skip
    several = with_stats(transfer, matrix=[row, *cells])
    text = text_of(several)
    assert "Reward models by language" in text and "reward-es" in text
    assert f"{100 * row['share']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
    assert "25.0 [10.0, 50.0]" in text
    table = {(one.model, one.language): one for one in tidy([several])}
    assert table["reward-es", "es"].value == 25 and table["reward-es", "es"].significant is False
    assert table["other", "fr"].value is None
    assert table[row["reward_model"], row["language"]].value == 100 * row["share"]
    assert "Reward models by language" not in golden()


def test_what_adapters_draw_stands_with_their_training() -> None:
    """As the card has it, beside the curves."""
    side = {"answers": 32, "finished": 30, "distinct": 32, "in_language": 20, "other_language": 3}
    drawn = {"prompts": 16, "n": 2, "base": side, "tuned": {**side, "finished": 4}}
    text = text_of(with_stats(KEPT["dpo-all"], behaviour=drawn))
    assert "ended by themselves 30 of 32 4 of 32" in text


def test_what_was_judged_on_the_way_of_a_training_is_drawn() -> None:
    assert "Checkpoints" not in golden()
    judge = KEPT["judge"]
    rows = judge.stats["comparisons"]
    mine = next(row for row in rows if (row["model"], row["language"]) == ("dpo-es", "es"))
    half = {**mine, "model": "dpo-es-at-0.5"}
    tree = parse(rendered([with_stats(judge, comparisons=[*rows, half])]))
    said = [told(one) for one in every(tree, "title")]
    rate = figure(mine["win_rate"]["rate"])
    for share in ("50%", "100%"):
        assert any(f"win rate {rate} after {share} of the steps" in one for one in said)
    lead = told(tree).partition("Win rates")[0]
    assert "dpo-es against the base model" in lead and "dpo-es-at-0.5" not in lead
