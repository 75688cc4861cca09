"""The whole line in fifteen languages and ten scripts on the tiny model, its cards and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from factory.artifacts.manifest import Manifest, read_manifest
from tests.conftest import run_factory
from tests.support.browser import chromium

pytestmark = pytest.mark.slow  # a run of 11 steps

CODES = ["ar", "el", "he", "hi", "ja", "ka", "ko", "ru", "th", "uk", "zh", "en", "da", "mt", "ga"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("languages") / "home"
    done = run_factory("run", "smoke-languages", home=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def artifacts(home: Path) -> dict[str, tuple[Path, Manifest]]:
    folders = [path.parent for path in home.glob("work/local/*/artifact/factory.json")]
    return {manifest.step: (f, manifest) for f in folders for manifest in [read_manifest(f)]}


def test_57_every_language_goes_through_the_whole_line(home: Path) -> None:
    made = artifacts(home)
    for step, rows in {"prompts": 3, "generate": 6, "score": 6, "questions": 1}.items():
        slices = made[step][1].slices
        assert {code: slices[code].rows.out for code in CODES} == dict.fromkeys(CODES, rows)
    answers = made["arena"][1].stats["by_slice"]
    assert {name.partition("/")[0] for name in answers} == set(CODES)
    latin = {"en", "da", "mt", "ga"}
    why = {name[:2]: figures.get("no_word_pass_rate") for name, figures in answers.items()}
    assert {code for code in CODES if why[code] == "latin_script"} == latin
    assert list(made["translate"][1].slices) == ["pt-BR"]


def test_cards_state_languages_as_the_hub_does(home: Path) -> None:
    made = artifacts(home)
    heads = {
        step: yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
        for step, (folder, _) in made.items()
    }
    assert heads["pair"]["language"] == CODES and "language_bcp47" not in heads["pair"]
    assert heads["translate"]["language"] == ["pt"]
    assert heads["translate"]["language_bcp47"] == ["pt-BR"]
    text = (made["pair"][0] / "README.md").read_text("utf-8")
    assert "Arabic, Greek, Hebrew, Hindi, Japanese, Georgian, Korean" in text


def test_the_page_sets_arabic_and_hebrew_from_the_right(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run_factory("report", "smoke-languages", "--to", str(page), home=home)
    assert done.returncode == 0, done.stderr
    with chromium(tmp_path / "profile") as browser:
        browser.open(page, 390, 800, "light")
        turns = browser.asks(
            "[...document.querySelectorAll('p.turn')].map("
            "p => [p.lang, getComputedStyle(p).direction, p.textContent])"
        )
        found = {code: direction for code, direction, _ in turns}
        assert found == {code: "rtl" if code in ("ar", "he") else "ltr" for code in CODES}
        assert browser.asks("document.documentElement.scrollWidth") <= 390
        assert not browser.log()


def test_tables_name_every_language(home: Path) -> None:
    done = run_factory("results", "smoke-languages", "--json", home=home)
    assert done.returncode == 0, done.stderr
    rows = json.dumps(json.loads(done.stdout))
    assert all(f'"{code}"' in rows for code in CODES)
