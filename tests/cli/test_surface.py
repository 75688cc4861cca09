"""Names that commands take, tables that people read, and servers that end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import typer

from factory.artifacts.manifest import Manifest, Rows
from factory.cli import app, tables
from factory.cli.reproduce import _without_curves
from factory.cli.results import _by_language, _text, results_table
from factory.errors import InputError, RecipeError
from factory.execution.diff import Change
from factory.execution.run import blocked, select
from factory.localhub.launcher import HubFullError, _failure, running
from factory.pairs.pair import Best, Pair
from factory.planning.plan import State, plan
from factory.reports.results import Result, together
from tests.conftest import FACTORY, Cli
from tests.planning.test_plan import by_name, demo, lock_of, walked
from tests.support.terminal import clean_environment
from tests.support.tiny_recipe import RECIPE

STEPS = ["prompts", "pair", "dpo[all]", "dpo[es]", "arena"]


@pytest.mark.parametrize(
    ("only", "until", "chosen"),
    [
        ([], "dpo", STEPS[:4]),
        ([], "dpo[all]", STEPS[:3]),
        (["dpo", "pair"], None, STEPS[1:4]),
        (["dpo[es]"], None, ["dpo[es]"]),
        ([], None, STEPS),
    ],
)
def test_the_name_of_a_stage_means_all_its_steps(
    only: list[str], until: str | None, chosen: list[str]
) -> None:
    assert select(STEPS, only, until) == chosen
    with pytest.raises(RecipeError, match="dpoo"):
        select(STEPS, ["dpoo"], None)


def test_a_blocked_step_that_was_asked_for_is_an_error_with_the_knob() -> None:
    recipe = demo()
    steps = plan(recipe, lock_of(recipe), walked(recipe, lock_of(recipe), left={"pair": {"es": 2}}))
    assert by_name(steps)["dpo[es]"].state is State.BLOCKED
    assert blocked(steps, ["dpo[all]"]) is None
    error = blocked(steps, [step.name for step in steps])
    assert error is not None and error.exit_code == 1
    assert error.what.startswith("dpo[es] is blocked: 2 of 12 left, 4 needed")
    assert "dpo.min_pairs" in error.fix


def test_why_few_pairs_are_left_and_what_changes_it() -> None:
    rows = Rows(into=6, out=0, dropped={"none_to_choose": 6})
    figures = {"answers": 24, "passed_over": {"chosen": {"unfinished": 24, "empty": 0}}}
    assert Pair().shortage(rows, figures) == (
        "6 prompts: no answer may be chosen (24 of 24 cut off)",
        "raise generate.max_tokens or set pair.keep.chosen.finished: false",
    )
    assert "best.keep.finished: false" in Best().shortage(rows, figures)[1]
    few = Rows(into=6, out=1, dropped={"margin_below": 5})
    assert Pair().shortage(few, {}) == (
        "5 prompts: margin below", "change pair.drop.margin_below"
    )  # fmt: skip


def result(model: str, language: str, metric: str, value: float, **more: object) -> Result:
    fields = {
        "evaluation": "org/r-arena", "ci_low": value - 5, "ci_high": value + 5, "against": "policy",
        "by": "reward", "significant": value > 60, "note": "", "repo": "r", "fingerprint": "f",
    }  # fmt: skip
    return Result(model, language, metric=metric, value=value, **{**fields, **more})  # type: ignore[arg-type]


def test_results_are_models_by_languages_and_fit_80_columns() -> None:
    from rich.console import Console

    codes = ("all", "en", "da", "mt", "ga", "es")
    rows = [
        result(model, code, metric, 50 + n + 20 * (model == "dpo-all"))
        for metric in ("win_rate", "win_rate_in_language")
        for model in ("dpo-all", "sft-all")
        for n, code in enumerate(codes)
    ]
    title, header, lines, rest = _by_language(rows, None)
    assert title == "win rate against policy on org/r-arena, by reward"
    assert header == ["model", *codes] and "win_rate_in_language" in rest
    assert lines[0][:3] == ["dpo-all", "70.0 ±5.0*", "71.0 ±5.0*"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(title, header, lines))
    text = console.export_text()
    assert "70.0 ±5.0*" in text and max(map(len, text.splitlines())) <= 80
    assert _text(header, lines, "csv").splitlines()[0] == "model,all,en,da,mt,ga,es"
    assert _text(header, lines, "md").splitlines()[1].startswith("| --- | ---:")
    assert r"dpo-all & 70.0 $\pm$5.0* &" in _text(header, lines, "latex")


def of(row: Result, **more: object) -> Result:
    return replace(row, of_answers=True, version="v1", questions=f"q-{row.language}", **more)  # type: ignore[arg-type]


def test_several_collections_are_one_table_by_the_same_judge_alone() -> None:
    """Row 23 of the field's methods: models by languages, with intervals."""
    codes = ("all", "en", "da")
    ours = [of(result("dpo-all", code, "win_rate", 55)) for code in codes]
    theirs = [
        replace(of(result("dpo-all", code, "win_rate", 65)), evaluation="org/s-arena")
        for code in codes
    ]
    gpt = [of(result("dpo-all", "en", "win_rate", 99, by="gpt"))]
    rows, left_out = together({"one": [*ours, *gpt], "two": theirs}, "win_rate")
    assert left_out == ["win_rate by gpt (one alone)"]
    title, header, lines, _ = _by_language(rows, None)
    assert title == "win rate against policy on the same questions, by reward"
    assert header == ["model", *codes]
    assert lines == [
        ["one: dpo-all", *["55.0 ±5.0"] * 3], ["two: dpo-all", *["65.0 ±5.0*"] * 3],
    ]  # fmt: skip
    assert "{lrrr}" in _text(header, lines, "latex")

    with pytest.raises(InputError, match=r"no judge or benchmark is in all collections \(one: gpt"):
        together({"one": gpt, "two": theirs}, "win_rate")
    other = [replace(row, version="v2") for row in theirs]
    with pytest.raises(InputError, match="one and two were judged by reward in different versions"):
        together({"one": ours, "two": other}, "win_rate")
    other = [replace(row, questions="x") if row.language == "da" else row for row in theirs]
    with pytest.raises(InputError, match="one and two were asked different questions in da"):
        together({"one": ours, "two": other}, "win_rate")
    # of other languages, the row over all of them is another figure
    fewer = [
        replace(row, questions="en only") if row.language == "all" else row
        for row in theirs
        if row.language != "da"
    ]
    rows, left_out = together({"one": ours, "two": fewer}, "win_rate")
    assert left_out == ["figures over all languages, which differ"]
    kept = {(row.model, row.language) for row in rows}
    assert ("two: dpo-all", "en") in kept and ("two: dpo-all", "all") not in kept


def test_several_judges_are_told_apart() -> None:
    rows = [of(result("dpo", "en", "win_rate", 55, by=by)) for by in ("reward", "gpt")]
    title, header, lines, _ = _by_language(rows, None)
    assert title == "win rate against policy on org/r-arena"
    assert header == ["model", "judged by", "en"] and [line[1] for line in lines] == [
        "reward",
        "gpt",
    ]


def test_tables_of_a_judge_and_an_audit_fit_80_columns() -> None:
    from rich.console import Console

    rate = {"rate": 54.2, "low": 40.6, "high": 67.2, "phi": -0.16}
    row = {
        "model": "dpo-all-at-0.25", "language": "es", "won": 214, "tied": 145, "lost": 113,
        "unparseable": 27, "shown": "54.2 % [40.6, 67.2] no difference shown",
        "mean_reward_model": 1.25, "mean_reward_reference": -1.25, "in_language": rate,
        "lc_minimal_chars": rate | {"rate": None, "flag": "length alone tells who won"},
        "style_controlled": rate, "bounds": {"worst": 31.2, "best": 68.8},
        "consistency": {"same_share": 80.0}, "jury_mean": rate,
        "judges": {"reward": rate, "qwen": rate, "people": rate},
        "finish_rates": {"answers": 472, "model": 99.1, "reference": 90.2,
                         "shown": "+8.9 [-1.2, +18.9] no difference shown"},
        **{f"{k}_pass_rate_{s}": 97.3 for k in ("line", "word") for s in ("model", "reference")},
    }  # fmt: skip
    audited = {
        "spread": 0.0155, "length_chars": -0.18, "offset": -0.0331, "scale": 0.76,
        "agreement": {"en": -0.1}, "pairs": 200, "pairs_right": 101,
        "blind": ["does not find the better answer of 200 pairs", "measures length"],
    }  # fmt: skip
    agreement = {"first": "reward", "second": "qwen", "language": "es", "compared": 300,
                 "share": 71.0, "kappa": 0.412}  # fmt: skip
    stats = {
        "comparisons": [row], "judge": "a jury of reward, qwen, people", "judge_revision": None,
        "notes": ["reward: training reward (not independent)"], "seen_in_training": {},
        "judge_blind": {"es": ["reward: does not find the better answer"]},
        "agreement": [agreement], "audit": {"by_language": {"es": audited}},
    }  # fmt: skip
    manifest = cast(Manifest, SimpleNamespace(stats=stats))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.comparison_table(manifest), tables.doubts_table(manifest))
    console.print(*tables.jury_tables(manifest), tables.audit_table(manifest))
    console.print(tables.finish_table(manifest))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for figure in ("214 / 145 / 113", "-1.25", "31.2 to 68.8", "97, 97", "0.41", "101 of 200",
                   "54.2 [40.6, 67.2]", "dpo-all-at-0.25", "length alone tells"):  # fmt: skip
        assert figure in text


def test_a_curve_is_one_line_of_a_diff() -> None:
    points = [Change("figures", f"curve.{n}.loss", n, n + 1) for n in range(50)]
    other = Change("fields", "lr", 1, 2)
    [curve, field] = _without_curves([*points, other])
    assert curve[:2] == ("figures", "curve: 50 values differ")
    assert field == ("fields", "lr", "1", "2")


def test_short_helps_are_whole_at_80_columns() -> None:
    group = typer.main.get_command(app)
    shown = {
        name: command.get_short_help_str(limit=66)
        for part in (group, group.commands["hub"])  # type: ignore[attr-defined]
        for name, command in part.commands.items()  # type: ignore[attr-defined]
    }
    assert not {name: text for name, text in shown.items() if text.endswith("...")}


def test_a_recipe_stands_for_its_collection(factory: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("name: tiny", "name: tiny\nseed: 2"))
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    done = factory("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "(step 1 of 1)" in done.stdout
    slug = re.search(
        r"^Collection: (local/croco-tiny-[0-9a-f]{24}) in the local hub of", done.stdout, re.M
    )
    assert slug is not None, done.stdout
    assert "127.0.0.1" not in done.stdout
    listed = factory("hub", "ls")
    assert listed.stdout.splitlines() == [slug[1], "  datasets/local/tiny-prompts"]
    assert factory("hub", "export", "tiny.tar", "tiny.yaml").returncode == 0
    again = factory("run", "tiny.yaml")
    assert "Nothing to do" in again.stdout and "Rows" not in again.stdout
    for name in ("tiny.yaml", "local/tiny-prompts", slug[1]):
        refused = factory("reproduce", name)
        assert "every step was read from files" in refused.stderr, refused.stderr
    card = factory("card", "local/tiny-prompts").stdout
    assert "factory reproduce local/tiny-prompts\n" in card


def test_a_signal_ends_hub_serve_with_its_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = subprocess.Popen(
        [*FACTORY, "hub", "serve"], cwd=tmp_path, env=clean_environment(FACTORY_HOME=str(home)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "http" in process.stdout.readline()
    until = time.monotonic() + 30
    while running(home / "hub") is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    process.stdout.close()
    assert running(home / "hub") is None


def test_a_full_disk_and_another_host_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.localhub import launcher

    (tmp_path / "server.log").write_text("lines\nof a log\n")
    full = os.statvfs_result((4096, 4096, 9, 0, 0, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    error = _failure(tmp_path, "it ended")
    assert isinstance(error, HubFullError) and "no space is left" in str(error)
    assert "\n" not in str(error) and "free some space" in error.fix
    (tmp_path / "lease.json").write_text(json.dumps({"host": "login-2", "pid": 7}))
    taken = launcher._taken(tmp_path)
    assert "process 7 on host login-2" in str(taken) and "\n" not in str(taken)
