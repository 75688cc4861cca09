"""The pages in a real browser: light, dark and narrow, by keyboard, and with hostile contents."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pages.conftest import Story
from tests.support.browser import Browser, chromium

EVIL = "local/evil"
WIDE = 10_000
_SCRIPT = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
_CARD = f"""# Card {_SCRIPT}

<div style="position:fixed;inset:0" onclick="alert(1)">over all</div>
<iframe src="https://evil.example"></iframe><form action="https://evil.example"><input></form>
<svg><script>document.title='run'</script></svg><style>body {{ display: none }}</style>

[out](javascript:document.title='run') [up](../../../../-/login) [data](data:text/html,x)
![tracker](https://evil.example/pixel.png) ![here](figure.svg) \u202egnp.exe

| a | b |
|---|---|
| {_SCRIPT} | 1 |
"""
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" onload="document.title=1">'
    "<script>document.title='run'</script></svg>"
)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


# What a keyboard or a screen reader does not get to, by what is wrong with it.
OUT_OF_REACH = {
    "no tab stop": "[...document.querySelectorAll('a, button, input, select, summary')]"
    ".filter(e => e.type != 'hidden' && e.tabIndex < 0).length",
    "no label": "[...document.querySelectorAll('input, select')]"
    ".filter(e => e.type != 'hidden' && !e.labels.length).length",
    "scrolls only by mouse": "[...document.querySelectorAll('.wide, pre')]"
    ".filter(e => e.scrollWidth > e.clientWidth && e.tabIndex != 0).length",
    "a key twice": "(k => k.length - new Set(k).size)"
    "([...document.querySelectorAll('[accesskey]')].map(e => e.accessKey))",
    "no name": "[...document.querySelectorAll('a, button')]"
    ".filter(e => !e.textContent.trim() && !e.getAttribute('aria-label')).length",
}


@pytest.fixture(scope="module")
def evil(story: Story) -> Iterator[str]:
    """A repo of somebody who means no good."""
    from huggingface_hub import CommitOperationAdd, HfApi

    texts = [_SCRIPT, "\u202eright to left\u202c", "x" * 2**20, "\x00\x1b[31m", "مرحبا بالعالم"]
    files = {
        "README.md": _CARD.encode(),
        "figure.svg": _SVG.encode(),
        "page.html": f"<h1>{_SCRIPT}</h1>".encode(),
        "data/rows/part-0.parquet": _parquet(
            pa.table({"<b>text</b>": texts, "n": range(len(texts))})
        ),
        "data/wide/part-0.parquet": _parquet(pa.table({f"c{n}": [n] for n in range(WIDE)})),
        "data/torn/part-0.parquet": b"PAR1 and nothing after it",
        "factory.json": b'{"repo": "../../x"}',
    }
    api = HfApi(endpoint=story.connection.url, token=story.connection.token)
    api.create_repo(EVIL, repo_type="dataset")
    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(EVIL, added, repo_type="dataset", commit_message=f"Add {_SCRIPT}")
    yield f"/datasets/{EVIL}"
    api.delete_repo(EVIL, repo_type="dataset")


@pytest.fixture(scope="module")
def browser(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        window.open(story.connection.url + story.invitation(), 1200, 800, "light")
        yield window


def test_every_page_is_whole_in_light_dark_and_narrow(
    story: Story, browser: Browser, evil: str
) -> None:
    pages = [
        "/", f"/collections/{story.slug}", f"/collections/{story.slug}/results", "/-/board",
        "/-/live", "/datasets/local/story-pair", "/datasets/local/story-pair/read/main",
        "/datasets/local/story-judge/read/main", "/datasets/local/story-generate/viewer/main",
        "/datasets/local/story-generate/viewer/main?row=1", "/datasets/local/story-pair/tree/main",
        "/datasets/local/story-pair/manifest/main", "/datasets/local/story-pair/commits/main",
        "/datasets/local/story-pair/compare", "/datasets/local/story-pair/blob/main/README.md",
        evil, f"{evil}/viewer/main?table=rows", f"{evil}/viewer/main?table=wide",
        f"{evil}/viewer/main?table=rows&row=2", f"{evil}/tree/main", f"{evil}/blob/main/page.html",
        f"{evil}/commits/main", f"{evil}/blob/main/figure.svg",
    ]  # fmt: skip
    browser.log()
    for path in pages:
        browser.open(story.connection.url + path, 1200, 800, "light", script=True)
        assert browser.log() == [], path
        assert "run" not in browser.asks("document.title").split(), path
        for width, scheme in itertools.product((1200, 390), ("light", "dark")):
            browser.show(width, 800, scheme)
            assert browser.asks("document.documentElement.scrollWidth") <= width, (path, width)
            paper = browser.asks("getComputedStyle(document.body).backgroundColor")
            assert (paper == "rgb(20, 23, 26)") is (scheme == "dark"), path
        for what, script in OUT_OF_REACH.items():
            assert browser.asks(script) == 0, (path, what)
    asked = [a for a in browser.requested() if not a.startswith(story.connection.url)]
    assert asked == []


def test_a_name_of_a_model_stays_on_one_line(story: Story, browser: Browser) -> None:
    for path in (f"/collections/{story.slug}/results", "/-/board"):
        browser.open(story.connection.url + path, 390, 800, "light", script=True)
        name = "document.querySelector('.heat tbody th').firstChild"
        browser.asks(f"{name}.textContent = 'dpo-all-of-them'")
        browser.asks("document.querySelector('.heat').style.width = '1px'")
        lines = f"(r => (r.selectNodeContents({name}), r.getClientRects().length))"
        assert browser.asks(f"{lines}(document.createRange())") == 1, path


def test_a_hostile_card_and_hostile_rows_are_only_text(story: Story, evil: str) -> None:
    with story.reader() as reader:
        card = reader.get(evil).text
        for bad in ("<script", "onerror", "onclick", "style=", "<iframe", "<style",
                    "evil.example/pixel", "\u202e", 'href="/-/login', 'href="javascript',
                    'href="data:'):  # fmt: skip
            assert bad not in card.partition('<article class="prose">')[2], bad
        assert "figure.svg" in card and "/-/files/" in card
        began = reader.get(f"{evil}/viewer/main?table=rows")
        assert len(began.text) < 100_000 and "more characters" in began.text
        assert "\\u202e" in began.text and "مرحبا" in began.text
        assert began.elapsed.total_seconds() < 5
        wide = reader.get(f"{evil}/viewer/main?table=wide")
        assert "of 10,000" in wide.text and len(wide.text) < 100_000
        assert "9,999" in reader.get(f"{evil}/viewer/main?table=wide&column=c9999").text.replace(
            "9999", "9,999"
        )
        torn = reader.get(f"{evil}/viewer/main?table=torn")
        assert torn.status_code == 400 and "cannot be read" in torn.text
        assert reader.get(f"{evil}/manifest/main").status_code == 404
        raw = reader.get(f"/-/files/datasets/{EVIL}/main/page.html")
        assert "sandbox" in raw.headers["content-security-policy"]
        assert raw.headers["content-disposition"].startswith("attachment")
        for path in ("%00", "..%2f..%2fhub.sqlite", "a" * 2000, "%ff", "\\"):
            for page in ("tree", "blob", "viewer", "manifest", "read", "commits"):
                assert reader.get(f"{evil}/{page}/{path}").status_code in (400, 404, 422), path
            assert reader.get(f"/-/files/datasets/{EVIL}/main/{path}").status_code in (404, 422)
        for query in ("start=99999999999", "row=99999999999999999999", "search=%00", "n=-1",
                      "filter=x", "column=nothing", "table=../x", "start=٣"):  # fmt: skip
            assert reader.get(f"{evil}/viewer/main?table=rows&{query}").status_code in (200, 404)


def test_all_is_reached_by_keyboard(story: Story, browser: Browser) -> None:
    """With keys that are pressed, and no script in the page."""
    address = f"{story.connection.url}/datasets/local/story-pair/read/main"
    browser.open(address, 1200, 800, "light", script=False)
    assert browser.log() == [] and browser.height() > 500
    before = browser.address()
    browser.press("ALT", "n")  # the next prompt
    assert browser.address() != before and "/read/main" in browser.address()
    browser.open(address, 1200, 800, "light", script=True)
    keys = browser.asks("[...document.querySelectorAll('[accesskey]')].map(e => e.accessKey)")
    assert {"n", "1", "r", "w"} <= set(keys)
    browser.press("TAB")
    focused = "document.activeElement.textContent.trim()"
    names = [browser.asks(focused)]
    for _ in range(40):
        browser.press("TAB")
        names.append(browser.asks(focused))
    assert len(set(names)) > 10 and not any(name is None for name in names)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.asks(outline) != "none", "where the keyboard is can be seen"
    browser.open(f"{story.connection.url}/", 1200, 800, "light", script=True)
    for _ in range(60):
        browser.press("TAB")
        if (
            browser.asks("document.activeElement.getAttribute('href')")
            == f"/collections/{story.slug}"
        ):
            break
    browser.press("ENTER")
    assert browser.address().endswith(f"/collections/{story.slug}")


def test_a_reader_without_a_cookie_meets_the_door(story: Story, tmp_path: Path) -> None:
    answer = httpx.get(f"{story.connection.url}/-/files/models/a/b/main/x.png")
    assert answer.status_code == 401 and "www-authenticate" not in answer.headers
