"""The pages over HTTP: who may read them, where they lead, and what they show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.artifacts.workdir import ProgressNotes, Work
from tests.conftest import clean_environment, run_factory
from tests.pages.conftest import HTML, Story, links
from tests.support.tiny_recipe import RECIPE

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


def test_links_of_a_card_to_the_public_hub_lead_to_what_is_here(story: Story) -> None:
    with story.reader() as client:
        text = client.get(SAMPLES).text
        shelf = f"/collections/{story.slug}"
        for path in (shelf, f"{shelf}/results", "/datasets/local/story-prompts"):
            assert f'href="{path}"' in text.partition("<h1>generate</h1>")[2]
            assert client.get(path).status_code == 200
        assert 'href="https://huggingface.co/org/model"' in text  # not here


def test_an_error_keeps_names_as_they_are_written(story: Story) -> None:
    door = httpx.get(story.connection.url, headers=HTML).text
    assert "This hub needs a token: set HF_TOKEN." in door
    with story.reader() as reader:
        missing = reader.get("/datasets/local/story-space-Big").text
        assert "<h1>There is no dataset local/story-space-Big on this hub</h1>" in missing
        bare = reader.get("/spaces/local/story-space/manifest/main").text
        assert "<h1>local/story-space has no manifest (factory.json)</h1>" in bare


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
        # of many rows the first, of many versions the branches
        fresh = [link for link in fresh if "row=" not in link or "row=0" in link]
        fresh = [link for link in fresh if "fp-" not in link or "story-pair" in link]
        seen.update(fresh)
        todo += fresh
    assert len(seen) > 60
    assert "/spaces/local/story-space" in seen and f"{PAIRS}/discussions/1" in seen
    for page in ("viewer", "read", "manifest", "commits", "tree", "blob"):
        assert any(f"/{page}/" in path for path in seen), page


def test_addresses_of_the_public_hub_lead_to_the_same_here(page: Page, story: Story) -> None:
    for path, shown, hidden in (
        ("/", "In no collection", "/datasets/local/story-pair"),
        ("/datasets", "/datasets/local/story-pair", "/spaces/local"),
        ("/models", "Models on this hub", "/datasets/local"),
        ("/spaces", "/spaces/local/story-space", "/datasets/local"),
        ("/local", "/spaces/local/story-space", "In no collection"),
        ("/collections", story.slug, "/datasets/local/story-pair"),
        ("/collections/local", story.slug, "In no collection"),
    ):
        for address in (path, path if path == "/" else f"{path}/"):
            text = page(address)
            assert shown in text and hidden not in text, address
    assert "index.html" in page("/spaces/local/story-space/tree/main/")
    with story.reader() as reader:
        assert reader.get("/nobody").status_code == 404
        astray = reader.get(f"{story.connection.url}//evil.example/")
        assert astray.headers["location"] == "/"


def test_the_address_that_the_client_prints_of_a_pull_request_opens(
    page: Page, story: Story
) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=story.connection.url, token=story.connection.token)
    made = api.upload_file(path_or_fileobj=b"a note", path_in_repo="note.txt", create_pr=True,
                           repo_id="local/story-judge", repo_type="dataset")  # fmt: skip
    assert made.pr_url is not None
    path = made.pr_url.removeprefix(story.connection.url)
    assert "note.txt" in page(path) and "note.txt" not in page(f"{JUDGED}/tree/main")
    assert path in page(JUDGED)


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
    either = page(f"{SAMPLES}/viewer?table=en&filter=chosen&filter=rejected")
    assert "Yeast eats" in either and "Wind." in either and "4 matches" in either
    one = page(f"{SAMPLES}/viewer?table=en&column=k")
    assert "Because of yeast." not in one and "Columns (1 of 12)" in one
    assert "finish_reason" in page(f"{SAMPLES}/viewer?table=en&row=3")


def test_another_language_is_shown_with_the_same_columns_and_filters(page: Page) -> None:
    here = "filter=cut+off&column=k&column=response"
    text = page(f"{SAMPLES}/viewer/main?table=en&{here}")
    [danish] = [link for link in links(text) if "table=da" in link]
    there = page(danish)
    assert "fordi dejen hæver" in there and "1 match" in there and "Columns (2 of 12)" in there


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


def test_what_differs_between_two_tags_is_listed_by_field_and_row(
    page: Page, story: Story, tmp_path: Path
) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=story.connection.url, token=story.connection.token)
    repo, file = "local/story-score", "data/en/part-00000.parquet"
    rows = pq.read_table(api.hf_hub_download(repo, file, repo_type="dataset", cache_dir=tmp_path))
    changed = rows.to_pylist()[1:]
    changed[0]["reward"] = 9.5
    changed.append({**changed[-1], "k": 7})
    pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), tmp_path / "en.parquet")
    recorded = json.loads(
        Path(
            api.hf_hub_download(repo, "factory.json", repo_type="dataset", cache_dir=tmp_path)
        ).read_text()
    )
    recorded |= {"seed": 43, "fingerprint": "0123456789ab"}
    content = (tmp_path / "en.parquet").read_bytes()
    files = {file: content, "factory.json": json.dumps(recorded).encode()}
    adds = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(repo, adds, repo_type="dataset", commit_message="Score again")
    api.create_tag(repo, tag="fp-0123456789ab", repo_type="dataset")
    old = {tag.name for tag in api.list_repo_refs(repo, repo_type="dataset").tags} - {
        "fp-0123456789ab"
    }
    text = page(f"/datasets/{repo}/compare?old={old.pop()}&new=fp-0123456789ab")
    assert "6 the same, 1 changed, 1 gone, 1 new" in text
    for part in ("<del>42</del>", "<ins>43</ins>", "<ins>9.5</ins>", "bread 0", "sleep 7", file):
        assert part in text, part
    assert "The two are the same." in page(f"/datasets/{repo}/compare?old=main&new=main")


def test_the_board_leads_to_the_reader(page: Page) -> None:
    text = page("/-/board")
    assert "62.0" in text and "53 to 71" in text
    everywhere, english, benchmark = re.findall(
        r'<td>(<(?:a|span)[^>]*class="(?!none)[^"]*">)', text
    )
    assert everywhere.startswith("<span"), "no page holds the verdicts of all languages"
    [verdicts], [scores] = links(english), links(benchmark)
    assert verdicts.endswith("read/main?slice=en%2Ftuned") and "honey" in page(verdicts)
    shown = page(scores)
    assert "1 match" in shown and "61" in shown and "58.5" not in shown


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
    tokens, bearer = "/api/local/tokens", {"Authorization": f"Bearer {story.connection.token}"}
    made = reader.post(tokens, headers=bearer, json={"create": "anna", "role": "write"})
    with story.reader(made.json()["token"]) as anna:  # of the other opinion
        fields = {"slice": "en", "prompt": "bread", "mark": "wrong", "to": "/"}
        assert anna.post(mark, data=fields, headers=origin).status_code == 303
    both = reader.get(f"{PAIRS}/read/main?n=1").text
    assert ">marked right<" in both and ">marked wrong by anna<" in both
    assert 'class="set"' in both.partition("The chosen answer")[0]
    recipe = tmp_path / "audit.yaml"
    recipe.write_text(
        "name: audit\norg: local\ndescription: Marks.\nlanguages: [en]\nlicense: apache-2.0\n"
        "models: {}\nstages:\n  preferences: {source: local/story-pair-marks, languages: [en]}\n"
    )
    done = run_factory("run", str(recipe), home=story.home)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = reader.get("/datasets/local/audit-preferences/viewer?table=en").text
    assert "3 rows" in rows and "Yeast eats" in rows and "bread-2" in rows
    assert rows.index("Wind.") < rows.index("The pull of the Moon")  # they changed places
    fields = {"slice": "en", "prompt": "bread", "mark": "none", "to": "/"}
    assert reader.post(mark, data=fields, headers=origin).status_code == 303
    kept = reader.get(f"{PAIRS}/read/main?n=1").text
    assert "marked right" not in kept and "marked wrong by anna" in kept


def test_a_mark_is_of_one_pair_not_of_another_version(
    story: Story, reader: httpx.Client, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=story.connection.url, token=story.connection.token)
    repo, file = "local/story-pair", "data/da/part-00000.parquet"
    table = pq.read_table(api.hf_hub_download(repo, file, repo_type="dataset", cache_dir=tmp_path))
    rows = table.to_pylist()
    rows[0]["rejected"] = [{"role": "assistant", "content": "Et andet svar."}]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "da.parquet")
    api.create_branch(repo, branch="later", repo_type="dataset")
    api.upload_file(path_or_fileobj=tmp_path / "da.parquet", path_in_repo=file, repo_id=repo,
                    repo_type="dataset", revision="later")  # fmt: skip
    pages = {at: f"{PAIRS}/read/{at}?slice=da&n=1" for at in ("main", "later")}
    for at, verdict in (("main", "right"), ("later", "wrong")):
        fields = {"slice": "da", "prompt": "bread", "mark": verdict, "to": "/"}
        origin = {"Origin": story.connection.url}
        assert "marked" not in reader.get(pages[at]).text
        assert reader.post(f"/-/mark{PAIRS}/{at}", data=fields, headers=origin).status_code == 303
    assert "marked right" in reader.get(pages["main"]).text
    assert "marked wrong" in reader.get(pages["later"]).text
    api.delete_branch(repo, branch="later", repo_type="dataset")


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
    before = work / "processes-1.log"  # of an earlier attempt
    before.write_text("an older story\n")
    (work / "holder").write_text("process 1 on another.machine")
    os.utime(before, (1, 1))
    assert "an older story" not in page("/-/live")
    (work / "processes.log").write_text("step 3\nerror: nan in layer 7\n")
    text = page("/-/live")
    assert "processes.log" in text and "error: nan in layer 7" in text


def test_a_step_that_a_defect_ended_shows_its_log(story: Story, page: Page, tmp_path: Path) -> None:
    """Of a program with a defect in it, run as a person runs it."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    broken = (
        "from factory.sampling.sources import Prompts; from factory.cli import main\n"
        "def row(*given): raise ZeroDivisionError('a wire came loose')\n"
        "Prompts.row = row; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken, "run", str(tmp_path / "tiny.yaml")],
        env=clean_environment(FACTORY_HOME=str(story.home)), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    log = re.search(r"the log at \S+/(\S+\.log)", done.stderr)
    text = page("/-/live").partition("<h2>prompts")[2].partition("</article>")[0]
    assert log and f"<h3>{log[1]}</h3>" in text and "in row" in text, done.stderr
    assert text.count("ZeroDivisionError: a wire came loose") == 2  # as its error and in the log


def test_a_submission_shows_its_steps_and_the_log_of_a_task_that_failed(
    story: Story, page: Page
) -> None:
    folder = story.home / "slurm" / "local-mine" / "2"
    for name in ("ends", "logs"):
        (folder / name).mkdir(parents=True)
    job = {"id": "71", "kind": "array", "script": "generate.sh", "tasks": 4}
    steps = [
        {"step": step, "fingerprint": mark, "file": step, "jobs": [job]}
        for step, mark in (
            ("prompts", "a" * 12),
            ("generate", "b" * 12),
            ("score", "c" * 12),
            ("pair", "d" * 12),
        )
    ]
    record = {"number": 2, "recipe": "mine", "org": "local", "site": "lumi", "created": "2026",
              "directory": str(folder), "steps": steps}  # fmt: skip
    (folder / "submission.json").write_text(json.dumps(record))
    (story.home / "work" / "local" / ("a" * 12) / "artifact").mkdir(parents=True)
    for step in ("prompts", "score"):
        (folder / "logs" / f"{step}-array-71_0.log").write_text("cancelled\n")
    (folder / "ends" / "prompts-array.0").write_text("143 node-2")  # its other tasks did the rest
    (folder / "ends" / "generate-array.0").write_text("0 node-1")
    (folder / "ends" / "generate-array.3").write_text("137 node-7")
    (folder / "logs" / "generate-array-71_3.log").write_text("loading\nkilled: out of memory\n")
    text = page("/-/live")
    for part in ("mine on lumi", "1 task failed", "exit code 137 on node-7", "out of memory"):
        assert part in text, part
    assert "node-1" not in text and "node-2" not in text
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(?:<[^>]+>)?([\w ]+)', text)
    assert rows == [("prompts", "done"), ("generate", "1 task failed"), ("score", "begun"),
                    ("pair", "waiting")]  # fmt: skip


@pytest.mark.parametrize(
    "what", ["", "local/story-pair", "local/story-space", "{slug}", "{url}/-/board"]
)
def test_hub_open_prints_a_link_that_opens_the_page(story: Story, what: str) -> None:
    named = what.format(slug=story.slug, url=story.connection.url)
    options = ["--no-browser", "--no-wait"]
    done = run_factory("hub", "open", *([named] if named else []), *options, home=story.home)
    assert done.returncode == 0, done.stderr
    link = re.search(r"http://\S+", done.stdout)
    assert link and f"ssh -L {story.connection.url.rpartition(':')[2]}:127.0.0.1" in done.stdout
    with httpx.Client(headers=HTML, follow_redirects=True, timeout=30) as client:
        opened = client.get(link[0])
    assert opened.status_code == 200
    path = opened.url.path
    assert path.endswith(named.removeprefix(story.connection.url) or "/")


def test_hub_ls_names_spaces(story: Story) -> None:
    done = run_factory("hub", "ls", home=story.home)
    shelf = done.stdout.partition(f"{story.slug}\n")[2].partition("in no collection")[0]
    assert "  spaces/local/story-space\n" in shelf, done.stdout + done.stderr
    assert done.stdout.count("story-space") == 1


def test_hub_open_of_what_is_not_there_says_so(story: Story) -> None:
    done = run_factory("hub", "open", "local/nothing", "--no-wait", home=story.home)
    assert done.returncode == 1 and "no collection or repo 'local/nothing'" in done.stderr


def test_a_run_leaves_its_progress_and_its_error_for_onlookers(tmp_path: Path) -> None:
    work = Work(tmp_path / "0123456789ab")
    work.path.mkdir()
    notes = ProgressNotes(work, {"step": "generate"})
    notes(0, 0, "loading")
    assert work.notes() == {"step": "generate", "done": 0, "total": 0, "unit": "loading",
                            "rate": None, "left": None}  # fmt: skip
    notes(1, 10, "shards", 50)  # within two seconds: not written
    assert work.notes()["unit"] == "loading"
    notes.written = 0.0
    notes.started -= 10
    notes(6, 10, "shards", 500)
    assert work.notes()["left"] == pytest.approx(8, rel=0.1)
    assert work.notes()["rate"] == pytest.approx(50, rel=0.1)
    notes.failed("out of memory")
    assert work.notes()["error"] == "out of memory" and work.notes()["done"] == 6
