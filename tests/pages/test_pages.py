"""The pages over HTTP: who may read them, where they lead, and what they show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import run_factory
from tests.pages.conftest import HTML, Story, links

Page = Callable[[str], str]
PAIRS = "/datasets/local/story-pair"
SAMPLES = "/datasets/local/story-generate"
_INLINE = re.compile(r"<[a-z][^<>]*\s(style|on\w+)=")
JUDGED = "/datasets/local/story-judge"


def test_a_link_signs_in_once_with_a_cookie_that_scripts_cannot_read(story: Story) -> None:
    link = story.connection.url + story.invitation()
    first = httpx.get(f"{link}&to={PAIRS}")
    cookie = first.headers["set-cookie"].lower()
    assert first.status_code == 303 and first.headers["location"] == PAIRS
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert httpx.get(link).status_code == 401
    assert story.connection.token not in cookie


@pytest.mark.parametrize(
    "to", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(story: Story, to: str) -> None:
    link = story.connection.url + story.invitation()
    answer = httpx.get(httpx.URL(link).copy_merge_params({"to": to}))
    assert answer.headers["location"] == "/"


def test_nobody_reads_without_signing_in(story: Story) -> None:
    for path in ("/", PAIRS, f"/collections/{story.slug}", "/-/live", f"{SAMPLES}/viewer"):
        answer = httpx.get(story.connection.url + path, headers=HTML)
        assert answer.status_code == 401 and "factory hub open" in answer.text
        assert "story-pair" not in answer.text.replace(path, "")
    for cookie in ("", "x", "a.b.c", "é.9.1"):
        headers = {**HTML, "Cookie": f"factory-00000000={cookie}".encode()}
        assert httpx.get(story.connection.url, headers=headers).status_code == 401


def test_a_token_that_is_revoked_reads_no_page(story: Story) -> None:
    bearer = {"Authorization": f"Bearer {story.connection.token}"}
    url = f"{story.connection.url}/api/local/tokens"
    token = httpx.post(url, headers=bearer, json={"create": "brief"}).json()["token"]
    with story.reader(token) as client:
        assert client.get("/").status_code == 200
        httpx.post(url, headers=bearer, json={"revoke": "brief"})
        assert client.get("/").status_code == 401


def test_a_token_can_be_given_by_hand_but_from_no_other_page(story: Story) -> None:
    url, fields = story.connection.url, {"token": story.guest, "to": PAIRS}
    answer = httpx.post(f"{url}/-/login", data=fields, headers={"Origin": url})
    assert answer.status_code == 303 and answer.headers["location"] == PAIRS
    for origin in ("http://127.0.0.1:1", "null", ""):
        refused = httpx.post(f"{url}/-/login", data=fields, headers={"Origin": origin})
        assert refused.status_code == 403


def test_a_page_shows_only_what_its_reader_may_read(story: Story) -> None:
    with story.reader() as owner, story.reader(story.guest) as guest:
        assert "local/secret" in owner.get("/").text
        assert "local/secret" not in guest.get("/").text
        assert owner.get("/datasets/local/secret").status_code == 200
        for path in ("", "/tree/main", "/blob/main/README.md", "/commits/main", "/compare"):
            assert guest.get(f"/datasets/local/secret{path}").status_code == 404
        assert guest.get("/-/files/datasets/local/secret/main/README.md").status_code == 404
        assert guest.get("/-/live").status_code == 403
        assert guest.get(PAIRS).status_code == 200


def test_clients_read_json_where_browsers_read_pages(story: Story) -> None:
    bearer = {"Authorization": f"Bearer {story.connection.token}"}
    for path in ("/", "/nothing/here", "/collections/x"):
        answer = httpx.get(story.connection.url + path, headers={**bearer, "Accept": "*/*"})
        assert answer.headers["content-type"] == "application/json"


def test_every_link_leads_somewhere_and_no_page_holds_a_script(reader: httpx.Client) -> None:
    seen, todo = {"/"}, ["/"]
    while todo:
        path = todo.pop()
        answer = reader.get(path)
        assert answer.status_code == 200, path
        if "html" not in answer.headers["content-type"]:
            continue
        policy = answer.headers["content-security-policy"]
        if not path.endswith("/results"):  # which has its own, in the page
            assert "default-src 'none'" in policy and "unsafe" not in policy, path
            assert "<script" not in answer.text and not _INLINE.search(answer.text), path
        fresh = [link for link in links(answer.text) if link not in seen and "/-/mark/" not in link]
        # of many rows and languages the first few
        fresh = [link for link in fresh if "row=" not in link or "row=0" in link]
        seen.update(fresh)
        todo += fresh
    assert len(seen) > 60
    for page in ("viewer", "read", "manifest", "commits", "tree", "blob"):
        assert any(f"/{page}/" in path for path in seen), page


def test_a_collection_shows_its_line_and_every_note(page: Page, story: Story) -> None:
    text = page(f"/collections/{story.slug}")
    assert '<svg class="lineage"' in text
    for step in ("prompts", "generate", "score", "pair", "arena", "judge"):
        assert f"{step}: " in text and f"/datasets/local/story-{step}" in text


def test_rows_are_paged_searched_and_filtered(page: Page) -> None:
    text = page(f"{SAMPLES}/viewer?table=en")
    assert "8 rows, from 1 to 8" in text and "Because of yeast." in text
    assert "Because of yeast." not in page(f"{SAMPLES}/viewer?table=da")
    found = page(f"{SAMPLES}/viewer?table=en&search=BECAUSE OF")
    assert "1 match" in found and "Because of yeast." in found
    cut = page(f"{SAMPLES}/viewer?table=en&filter=cut off")
    assert "warm air rises" in cut and "Because of yeast." not in cut
    spoken = page(f"{SAMPLES}/viewer?table=en&filter=other language")
    assert "Fordi gæren" in spoken and "warm air" not in spoken
    chosen = page(f"{SAMPLES}/viewer?table=en&filter=chosen")
    assert "Yeast eats" in chosen and "Drink coffee" not in chosen and "2 matches" in chosen
    one = page(f"{SAMPLES}/viewer?table=en&column=k")
    assert "Because of yeast." not in one and "Columns (1 of 11)" in one
    assert "finish_reason" in page(f"{SAMPLES}/viewer?table=en&row=3")


def test_a_conversation_is_searched_too(page: Page) -> None:
    text = page(f"{PAIRS}/viewer?table=en&search=tides")
    assert "1 match" in text and "user: What causes the tides?" in text


def test_the_reader_shows_a_pool_best_first(page: Page) -> None:
    text = page(f"{PAIRS}/read/main?slice=en&n=1")
    places = [text.index(part) for part in ("Yeast eats", "Because of yeast", "warm air", "Fordi")]
    assert places == sorted(places)
    assert 'class="side chosen"' in text and 'class="side rejected"' in text
    assert "cut off" in text and "Danish" in text
    assert "slice=da&n=1" in text  # the same prompt in the other language
    assert "gave no pair" in page(f"{PAIRS}/read/main?slice=en&n=3")
    assert "Hvorfor hæver" in page(f"{PAIRS}/read/main?slice=da&n=1")


def test_compared_answers_stand_side_by_side_with_every_verdict(page: Page) -> None:
    text = page(f"{JUDGED}/read/main")
    for part in ("It does not spoil", "hardly any microbe", "tuned first", "base first",
                 "The second answer says why", "org/reward", "scores 1.2 and 0.7"):  # fmt: skip
        assert part in text
    lost = page(f"{JUDGED}/read/main?filter=lost")
    assert "change shape" in lost and "honey" not in lost
    assert "change shape" in page(f"{JUDGED}/read/main?filter=other language")
    assert "honey" not in page(f"{JUDGED}/read/main?filter=cut off")
    apart = page(f"{JUDGED}/read/main?filter=judges disagree")
    assert "honey" in apart and "change shape" not in apart


def test_what_differs_between_two_tags_is_told_by_field_and_row(
    page: Page, story: Story, reader: httpx.Client
) -> None:
    tags = [name for name in links(page(PAIRS)) if "revision=fp-" in name]
    text = page(f"{PAIRS}/compare?old=main&new={tags[0].partition('=')[2]}")
    assert "the same" in text


def test_the_board_leads_to_the_reader(page: Page) -> None:
    text = page("/-/board")
    assert "62.0" in text and "53 to 71" in text and "slice=en/tuned" in text


def test_marks_are_preferences_that_a_recipe_reads(
    story: Story, reader: httpx.Client, tmp_path: Path
) -> None:
    origin = {"Origin": story.connection.url}
    mark = f"/-/mark{PAIRS}/main"
    for prompt, verdict in (("bread", "right"), ("tides", "wrong")):
        fields = {"slice": "en", "prompt": prompt, "mark": verdict, "to": f"{PAIRS}/read/main"}
        assert reader.post(mark, data=fields).status_code == 403
        assert reader.post(mark, data=fields, headers=origin).status_code == 303
    with story.reader(story.guest) as guest:
        assert guest.post(mark, data=fields, headers=origin).status_code == 403
    assert "marked right" in reader.get(f"{PAIRS}/read/main?n=1").text
    recipe = tmp_path / "audit.yaml"
    recipe.write_text(
        "name: audit\norg: local\ndescription: Marks.\nlanguages: [en]\nlicense: apache-2.0\n"
        "models: {}\nstages:\n  preferences: {source: local/story-pair-marks, languages: [en]}\n"
    )
    done = run_factory("run", str(recipe), home=story.home)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = reader.get("/datasets/local/audit-preferences/viewer?table=en").text
    assert "2 rows" in rows and "Yeast eats" in rows
    assert rows.index("Wind.") < rows.index("The pull of the Moon")  # they changed places
    fields = {"slice": "en", "prompt": "bread", "mark": "none", "to": "/"}
    assert reader.post(mark, data=fields, headers=origin).status_code == 303
    assert "marked" not in reader.get(f"{PAIRS}/read/main?n=1").text


def test_what_is_under_way_is_read_from_the_work_directories(story: Story, page: Page) -> None:
    work = story.home / "work" / "local" / "0123456789ab"
    (work / "checkpoints").mkdir(parents=True)
    (work / "inputs").write_text("x")
    notes = {"step": "dpo[da]", "recipe": "mine", "done": 3, "total": 12, "unit": "steps",
             "rate": 250.0, "left": 60.0}  # fmt: skip
    (work / "progress.json").write_text(json.dumps(notes))
    log = [{"step": n, "loss": 0.7 - n / 10, "rewards/accuracies": 0.5 + n / 10} for n in (1, 2, 3)]
    (work / "checkpoints" / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n{half")
    text = page("/-/live")
    for part in ("dpo[da]", "3 of 12 steps", "250 tokens a second", "about 60 s left", "0.400",
                 "0.800", 'http-equiv="refresh"', "running"):  # fmt: skip
        assert part in text, part
    (work / "progress.json").write_text(json.dumps({**notes, "error": "the loss is not finite"}))
    assert "the loss is not finite" in page("/-/live")
