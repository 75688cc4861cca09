"""A hub that means harm, and a manifest that does: nothing outside the home is touched, whatever
they say, and a person reads one true line."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.artifacts.manifest import Manifest
from factory.errors import FactoryError, HubError
from factory.localhub.launcher import Connection, connect, request
from tests.conftest import run_factory
from tests.hub.sync.test_sync import between, client
from tests.support.builders import imported
from tests.support.forked import Run, forked_commands
from tests.support.proxy import Proxy, Reply, proxy_of

REPO, ADAPTER = "evil/data", "evil/adapter"
SMALL, LARGE = b"hello", os.urandom(300_000)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A hub with an honest dataset in a collection, an artifact of ours."""
    with connect(tmp_path_factory.mktemp("there")) as hub:
        shelved(hub, imported().model_copy(update={"repo": REPO, "kind": "prompts"}).dump())
        config = {"peft_type": "LORA", "base_model_name_or_path": "evil/base", "revision": "main"}
        for name, file in ((ADAPTER, "adapter_config.json"), ("evil/base", "config.json")):
            client(hub).create_repo(name)
            content = json.dumps(config).encode()
            client(hub).upload_file(path_or_fileobj=content, path_in_repo=file, repo_id=name)
        yield hub


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(tmp_path_factory.mktemp("here")) as hub:
        yield hub


@pytest.fixture(scope="module")
def evil(there: Connection) -> Iterator[Proxy]:
    """The same hub with a man in the middle."""
    with proxy_of(there.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def honest(evil: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Before and after a test the hub is as it should be; nobody waits long between two tries."""
    from factory.hub import http_guard

    sleep, clock, slept = time.sleep, time.monotonic, 0.0

    def doze(seconds: float) -> None:
        nonlocal slept
        slept += seconds if seconds > 1 else 0
        sleep(min(seconds, 0.001))

    monkeypatch.setattr(time, "sleep", doze)
    monkeypatch.setattr(http_guard, "time", SimpleNamespace(monotonic=lambda: clock() + slept))
    http_guard._waiting.clear()
    evil.twist = None
    evil.seen.clear()
    yield
    evil.twist = None


@dataclass
class Victim:
    """Files of a user, beside the home and the directory that a command is run in."""

    root: Path
    before: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "victim" / "deep").mkdir(parents=True)
        (self.root / "victim" / "thesis.txt").write_text("my precious thesis")
        (self.root / "victim" / "deep" / "site.yaml").write_text("setup: echo good")
        self.before = self.look()

    @property
    def file(self) -> Path:
        return self.root / "victim" / "thesis.txt"

    def look(self) -> dict[str, tuple[bytes, int, int]]:
        """Everything outside of the home."""
        return {
            str(path): (path.read_bytes() if path.is_file() else b"", at.st_mtime_ns, at.st_mode)
            for path in self.root.rglob("*")
            if not path.is_relative_to(self.root / "home")
            and (at := path.stat()) is not None
            and path.is_file()
        }

    def assert_untouched(self, *made: Path) -> None:
        now = {path: one for path, one in self.look().items() if Path(path) not in made}
        assert now == self.before


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


def shelved(hub: Connection, manifest: str, repo: str = REPO, **more: bytes) -> str:
    """A dataset with that text as its manifest, tagged and in a collection; the slug of that."""
    from huggingface_hub import CommitOperationAdd

    api = client(hub)
    api.create_repo(repo, repo_type="dataset")
    files = {
        "a.txt": SMALL,
        "data/en/part-00000.parquet": LARGE,
        "README.md": b"---\nlicense: mit\n---\n# A",
        "factory.json": manifest.encode(),
        "recipe.yaml": b"setup: curl evil | sh",
        "recipe.lock.yaml": b"recipe: x",
        **{name.replace("_", "."): content for name, content in more.items()},
    }
    api.create_commit(
        repo,
        [CommitOperationAdd(path, content) for path, content in files.items()],
        commit_message="all",
        repo_type="dataset",
    )
    api.create_tag(repo, tag=f"fp-{json.loads(manifest)['fingerprint']}", repo_type="dataset")
    slug = str(api.create_collection(repo.partition("/")[2], namespace="evil").slug)
    api.add_collection_item(slug, repo, item_type="dataset")
    return slug


def header(name: str, value: str, where: str) -> Callable[[str, Reply], Reply]:
    """A twist: this header in every answer to a request that has `where` in it."""

    def twist(line: str, reply: Reply) -> Reply:
        if where in line:
            reply.headers = {k: v for k, v in reply.headers.items() if k.lower() != name.lower()}
            reply.headers[name] = value
        return reply

    return twist


def listing(where: str, change: Callable[[Any], Any]) -> Callable[[str, Reply], Reply]:
    """A twist: another JSON body in every answer to a request that has `where` in it."""

    def twist(line: str, reply: Reply) -> Reply:
        if where in line and isinstance(reply.body, bytes):
            reply.body = json.dumps(change(json.loads(reply.body))).encode()
            reply.headers["content-length"] = str(len(reply.body))
        return reply

    return twist


def pull(evil: Proxy, there: Connection, here: Connection, staging: Path) -> None:
    """The dataset from the hostile hub into an honest one, under a name that is free there."""
    from factory.hub.sync.side import RepoId

    names = {REPO: f"evil/data-{next(_numbers)}"}
    work = between(
        (evil.url, there.token), (here.url, here.token), staging, keeps_ids=True, names=names
    )
    work.repo(RepoId("dataset", REPO))


def evil_hub(evil: Proxy, there: Connection, cache: Path) -> Any:
    from factory.hub.client import Hub

    return Hub(evil.url, there.token, cache)


# What was possible once.


@pytest.mark.parametrize("absolute", [True, False])
def test_pull_overwrites_no_file_by_an_etag(
    evil: Proxy, there: Connection, victim: Victim, absolute: bool
) -> None:
    home = victim.root / "home"
    blobs = home / "sync" / evil.url.removeprefix("http://") / "source"
    inside = blobs / "datasets--evil--data" / "blobs"
    name = str(victim.file) if absolute else os.path.relpath(victim.file, inside)
    evil.twist = header("ETag", f'"{name}"', "a.txt")
    done = run_factory("pull", f"datasets/{REPO}", "--from", evil.url, home=home, HF_TOKEN=there.token)  # fmt: skip  # noqa: E501
    victim.assert_untouched()
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: 127.0.0.1: ") and "is not a valid ETag" in done.stderr


def test_reproduce_writes_no_file_that_a_manifest_names(victim: Victim) -> None:
    home = victim.root / "home"
    wanted = victim.root / "victim" / "deep" / "site"
    text = imported().model_dump(mode="json")
    text |= {"repo": "evil/x", "kind": "prompts", "recipe": str(wanted)}
    with connect(home / "hub") as hub:
        slug = shelved(hub, json.dumps(text), "evil/x")
    done = run_factory("reproduce", slug, home=home)
    victim.assert_untouched()
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {slug} holds no artifact with a manifest")


def test_reproduce_reads_no_recipe_of_this_machine_and_no_odd_lock(victim: Victim) -> None:
    home, own = victim.root / "home", victim.root / "victim" / "own.yaml"
    own.write_text(
        "{name: own, org: me, languages: [en], models: {policy: evil/m}, "
        "stages: {prompts: {source: evil/p}, generate: {model: policy}}}"
    )
    victim.before = victim.look()
    recipe, lock = own.read_bytes(), b"{recipe: own, pins: {}}"
    with connect(home / "hub") as hub:
        for number, (files, said) in enumerate((
            ({"recipe_yaml": f"extends: {own}".encode(), "recipe_lock_yaml": lock}, "extends"),
            ({"recipe_yaml": recipe, "recipe_lock_yaml": b"\xff"}, "is not a lock: 'utf-8'"),
            ({"recipe_yaml": recipe, "recipe_lock_yaml": lock}, "evil/p, which the collection's"),
        )):  # fmt: skip
            named = {"repo": f"evil/x{number}", "kind": "prompts", "recipe": "own"}
            manifest = imported().model_copy(update=named).dump()
            slug = shelved(hub, manifest, named["repo"], **files)
            done = run_factory("reproduce", slug, home=home)
            assert done.returncode == 1 and said in done.stderr, done.stderr
    victim.assert_untouched()


def test_discard_takes_nothing_away_outside_of_its_folder(tmp_path: Path) -> None:
    from factory.hub.sync.side import HubReader

    side = HubReader("http://127.0.0.1:9", None, tmp_path / "staging")
    inside, outside = tmp_path / "staging" / "blob", tmp_path / "thesis.txt"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_text("mine")
    for name, target in (("good", inside), ("bad", outside)):
        (tmp_path / "staging" / name).symlink_to(target)
        side.discard(tmp_path / "staging" / name)
    side.discard(outside)
    side.discard(tmp_path / "staging" / ".." / "thesis.txt")
    assert outside.read_text() == "mine"
    assert list((tmp_path / "staging").iterdir()) == []


# One thing after the other.


def test_genuine_etags_pass(evil: Proxy, there: Connection, here: Connection, tmp_path: Path):
    for number, value in enumerate(('"5d41402a-12"', 'W/"abc123"', "0" * 40, f'"{"f" * 64}"')):
        evil.twist = header("ETag", value, "a.txt")
        pull(evil, there, here, tmp_path / str(number))


def test_a_listing_without_end_ends(evil: Proxy, there: Connection, here: Connection, tmp_path):
    def endless(line: str, reply: Reply) -> Reply:
        if "/commits/" in line:
            url = f"{evil.url}/api/datasets/{REPO}/commits/main?p={next(_numbers)}"
            reply.headers["Link"] = f'<{url}>; rel="next"'
        return reply

    from factory.hub import http_guard

    evil.twist = endless
    pages = http_guard._PAGES
    http_guard._PAGES = 20
    try:
        with pytest.raises(HubError, match="a listing of more than 20 pages"):
            pull(evil, there, here, tmp_path)
    finally:
        http_guard._PAGES = pages
    evil.twist = header("Link", f'<{evil.url}/api/datasets/{REPO}/commits/main>; rel="next"', "/commits/")  # fmt: skip  # noqa: E501
    with pytest.raises(HubError, match="repeats a page"):
        pull(evil, there, here, tmp_path)


def test_other_content_under_an_honest_commits_id_is_named_by_the_next_pull(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path
) -> None:
    from factory.hub.sync.side import RepoId, git_blob_id

    forgery = {git_blob_id(SMALL): git_blob_id(SMALL.upper()), SMALL.decode(): "HELLO"}

    def forged(line: str, reply: Reply) -> Reply:
        for true, false in forgery.items():
            if isinstance(reply.body, bytes) and ("/tree/" in line or reply.body == SMALL):
                reply.body = reply.body.replace(true.encode(), false.encode())
            reply.headers = {k: v.replace(true, false) for k, v in reply.headers.items()}
        return reply

    names = {REPO: f"evil/data-{next(_numbers)}"}

    def again(number: int) -> None:
        staging = tmp_path / str(number)
        ways = (evil.url, there.token), (here.url, here.token)
        between(*ways, staging, keeps_ids=True, names=names).repo(RepoId("dataset", REPO))

    evil.twist = forged
    again(1)
    evil.twist = None
    said = r"different content under commit [0-9a-f]{40}"
    with pytest.raises(HubError, match=said) as caught:
        again(2)
    assert "find out which one is right" in caught.value.fix
    client(here).delete_repo(names[REPO], repo_type="dataset")
    # and where nothing names the commit any more
    client(here).create_repo(names[REPO], repo_type="dataset")
    empty = {"commit": client(there).dataset_info(REPO).sha, "author": "m", "summary": "s"}
    line = {"key": "header", "value": empty}
    assert request(here, "POST", f"/api/datasets/{names[REPO]}/mirror", line)[0] == 200
    with pytest.raises(HubError, match=said):
        again(3)
    client(here).delete_repo(names[REPO], repo_type="dataset")
    again(4)


@pytest.mark.parametrize("what", ["none", "twice", "another"])
def test_a_history_that_is_none_is_refused(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path, what: str
) -> None:
    evil.twist = listing(
        "/commits/",
        lambda commits: {"none": [], "twice": commits * 2, "another": commits[1:]}[what],
    )
    with pytest.raises(HubError, match="commits are not the history of"):
        pull(evil, there, here, tmp_path)


def test_a_listing_does_not_go_on_at_another_host(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path
) -> None:
    with proxy_of(there.url) as other:
        evil.twist = header("Link", f'<{other.url}/api/whoami-v2>; rel="next"', "/commits/")
        with pytest.raises(HubError, match="another host"):
            pull(evil, there, here, tmp_path)
        assert other.seen == [], "the token would go there"


def test_a_redirect_takes_no_token_along_and_a_loop_ends(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path
) -> None:
    def elsewhere(line: str, reply: Reply) -> Reply:
        if "/refs" in line:
            return Reply(302, {"Location": f"{other.url}/x", "Content-Length": "0"}, b"")
        return reply

    heard: list[str] = []
    with proxy_of(there.url) as other:
        other.twist = lambda line, reply: Reply(200, {"Content-Length": "2"}, b"{}")
        evil.twist = elsewhere
        with pytest.raises(HubError):
            pull(evil, there, here, tmp_path)
        assert evil.tokens and other.seen and not other.tokens

    def round_and_round(line: str, reply: Reply) -> Reply:
        heard.append(line)
        return Reply(302, {"Location": evil.url + line.split()[1], "Content-Length": "0"}, b"")

    evil.twist = round_and_round
    with pytest.raises(HubError, match="TooManyRedirects"):
        pull(evil, there, here, tmp_path)
    assert len(heard) < 300
    evil.twist = lambda line, reply: Reply(302, {"Location": "file:///etc/passwd"}, b"")
    with pytest.raises(HubError, match="not a valid address"):
        pull(evil, there, here, tmp_path)


def test_a_hub_that_makes_us_wait_is_named_and_then_left(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    answers = itertools.count()
    for asked in ("299", "300000000000", "100"):

        def wait(line: str, reply: Reply, asked: str = asked) -> Reply:
            if asked == "100" and next(answers) % 2 == 0:  # each time after a good answer
                return reply
            return Reply(429, {"Retry-After": asked, "Content-Length": "0"}, b"")

        evil.seen.clear()
        evil.twist = wait
        with pytest.raises(HubError, match="asks to wait"):
            for _ in range(20):
                pull(evil, there, here, tmp_path / str(next(_numbers)))
        assert len(evil.seen) < 100
    assert "asks to wait 299 seconds (status 429)" in caplog.text


def test_no_file_that_is_read_whole_is_larger_than_memory(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path
) -> None:
    evil.twist = listing(
        "/tree/", lambda files: [f if "lfs" in f else {**f, "size": 10**12} for f in files]
    )
    with pytest.raises(HubError, match="1000000000000 is not a valid size"):
        pull(evil, there, here, tmp_path)
    assert not evil.count("/resolve/")


@pytest.mark.parametrize("drop", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"a"])
def test_headers_without_end_end(
    drop: bytes, here: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.hub import http_guard

    monkeypatch.setattr(http_guard, "_HEAD_SECONDS", 0.5)

    class Dripping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"" if drop.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nA: ")
            pause = threading.Event()
            with contextlib.suppress(OSError):
                while not pause.wait(0.05):
                    self.request.sendall(drop)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        work = between((url, ""), (here.url, here.token), tmp_path, keeps_ids=True)
        with pytest.raises(HubError, match="more than 0 s for the headers"):
            work.find("evil/data")
        server.shutdown()


@pytest.mark.parametrize("what", ["more", "fewer", "endless", "squeezed"])
def test_a_file_of_another_size_than_listed_does_not_arrive(
    evil: Proxy, there: Connection, here: Connection, tmp_path: Path, what: str
) -> None:
    sent = 0

    def other_size(line: str, reply: Reply) -> Reply:
        if "a.txt" not in line:
            return reply
        if what == "squeezed":
            reply.headers["Content-Encoding"] = "gzip"
            return reply
        if line.startswith("HEAD"):
            if what != "endless":
                reply.headers["content-length"] = "9" if what == "more" else "2"
            return reply
        body: Any = {"more": b"hello you", "fewer": b"he"}.get(what) or endless()
        if isinstance(body, bytes):
            reply.headers["content-length"] = str(len(body))
        return Reply(200, reply.headers, body)

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 100_000
            yield b"x" * 100_000

    evil.twist = other_size
    pulling = {
        "more": "more than the 5 bytes",
        "fewer": "does not arrive as",
        "endless": "more than the 5 bytes",
        "squeezed": "sends a compressed body",
    }
    with pytest.raises((HubError, OSError), match=pulling[what]):
        pull(evil, there, here, tmp_path / "s")
    with pytest.raises(HubError):
        evil_hub(evil, there, tmp_path / "c").fetch(REPO, "dataset", "main")
    assert sent < 50_000_000
    assert not list((tmp_path / "c").rglob("*.incomplete"))


def test_nothing_that_a_hub_says_steers_a_terminal(
    evil: Proxy, there: Connection, tmp_path: Path
) -> None:
    steer = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202e"
    api, loud = client(there), "evil/loud"
    manifest = imported().model_copy(update={"repo": loud, "environment": {"python": steer}})
    api.create_repo(loud, repo_type="dataset")
    content = manifest.dump().encode()
    api.upload_file(
        path_or_fileobj=content, path_in_repo="factory.json", repo_id=loud, repo_type="dataset"
    )

    def refuse(line: str, reply: Reply) -> Reply:
        if "/refs" in line:
            return Reply(400, {"X-Error-Message": f"no {steer}" * 99, "Content-Length": "0"}, b"")
        return reply

    evil.twist = refuse
    for words in (
        ("pull", f"datasets/{loud}", "--from", evil.url),
        ("diff", loud, REPO, "--hub", evil.url),
    ):
        done = run_factory(*words, home=tmp_path / "home", HF_ENDPOINT=evil.url, HF_TOKEN=there.token)  # fmt: skip  # noqa: E501
        said = done.stdout + done.stderr
        assert "\\u001b" in said and len(said) < 10_000, said
        assert not [char for char in said if not char.isprintable() and char != "\n"], said
    api.delete_repo(loud, repo_type="dataset")


# Whatever it says.

EVIL = [
    "../../../../../../../../victim/thesis.txt", "{victim}", '"{victim}"',
    'W/"../../../../victim/thesis.txt"', "..", ".", "", "/", "..\\..\\victim\\thesis.txt",
    "%2e%2e%2fvictim", "\x00", "a\x00b", "-rf", ".git/config", "a/../../b", "x" * 5000,
    "\u202etxt.exe", "~/.ssh/authorized_keys", "refs/heads/../../x", "http://[::1", "[]", "nan",
    "-1", "9" * 30,
]  # fmt: skip
HEADERS = [
    "ETag", "X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit", "X-Xet-Hash", "X-Error-Code",
    "Location", "Link", "Content-Range", "Content-Disposition", "Content-Encoding", "Retry-After",
    "ratelimit",
]  # fmt: skip
WORDS = st.one_of(st.sampled_from(EVIL), st.text(max_size=30))
ODD = st.one_of(WORDS, st.sampled_from([None, True, -1, 2**70, 1e308, [], {}, ["x"], {"a": 1}]))
PLACES = ["/refs", "/tree/", "/commits/", "/revision/", "/resolve/", "/api/", "/collections"]


@st.composite
def twists(draw: st.DrawFn) -> Callable[[str], Callable[[str, Reply], Reply]]:
    """Something that a hostile hub does to some of its answers, given where the victim lies."""
    where = draw(st.sampled_from(PLACES))
    what = draw(st.sampled_from(["header", "header", "leaf", "leaf", "leaf", "status", "body"]))
    if what == "header":
        name, value = draw(st.sampled_from(HEADERS)), draw(WORDS)
        return lambda victim: header(name, value.replace("{victim}", victim), where)
    status = draw(st.sampled_from([200, 204, 301, 302, 307, 401, 403, 404, 416, 429, 500, 503]))
    number, odd = draw(st.integers(0, 60)), draw(ODD)
    body = draw(st.one_of(st.binary(max_size=30), st.sampled_from([b"[" * 5000, b"{}", b"[]", b"null", b'"x"', b"[null]"])))  # fmt: skip  # noqa: E501

    def made(victim: str) -> Callable[[str, Reply], Reply]:
        def twist(line: str, reply: Reply) -> Reply:
            if where not in line:
                return reply
            if what == "status":
                reply.status = status
            elif what == "body":
                reply.body = body
            elif isinstance(reply.body, bytes) and reply.body[:1] in (b"{", b"["):
                value = odd.replace("{victim}", victim) if isinstance(odd, str) else odd
                reply.body = json.dumps(poisoned(json.loads(reply.body), number, value)).encode()
            if isinstance(reply.body, bytes) and not line.startswith("HEAD"):
                reply.headers = {k: v for k, v in reply.headers.items() if k.lower() != "content-length"}  # fmt: skip  # noqa: E501
                reply.headers["Content-Length"] = str(len(reply.body))
            return reply

        return twist

    return made


def poisoned(document: Any, number: int, value: Any) -> Any:
    """The document with `value` in the place of one of its leaves, or as one of its keys."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(document)
    if not places:
        return document
    node, key = places[number % len(places)]
    node[key] = value
    return document


Twist = Callable[[str], Callable[[str, Reply], Reply]]


@pytest.fixture
def assault(
    evil: Proxy, there: Connection, here: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Twist], None]:
    """Everything that asks a hub, against a hub with a twist."""
    from factory.execution import reproduce
    from factory.hub import http_guard
    from factory.release import adapter as released
    from factory.reports.cards import refresh
    from factory.reports.page import source

    def run(twist: Twist) -> None:
        victim = Victim(tmp_path_factory.mktemp("user"))
        home = victim.root / "home"
        home.mkdir()
        evil.twist = twist(str(victim.file))
        name = next(iter(client(there).list_collections(owner="evil"))).slug
        hub = evil_hub(evil, there, home / "cache")
        subject = refresh.EvaluatedRepo(REPO, "dataset", "main")
        for act in (
            lambda: pull(evil, there, here, home / "s"),
            lambda: hub.fetch(REPO, "dataset", "main"),
            lambda: hub.pin(REPO, "dataset", "main"),
            lambda: source.collection(hub, name),
            lambda: reproduce.read(hub, name, home),
            lambda: refresh.check(hub, subject),
            lambda: released.find(ADAPTER, hub),  # chat, merge and serve begin with it
        ):
            http_guard._waiting.clear()
            try:
                act()
            except FactoryError as error:
                assert "\n" not in error.what and len(error.what) < 2000
            victim.assert_untouched()

    return run


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(twist=twists())
def test_whatever_a_hub_says_nothing_outside_is_touched(
    twist: Twist, assault: Callable[[Twist], None]
) -> None:
    assault(twist)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(twist=twists())
def test_whatever_a_hub_says_at_length(twist: Twist, assault: Callable[[Twist], None]) -> None:
    assault(twist)


COMMANDS = [
    ("pull", f"datasets/{REPO}", "--from", "{hub}"),
    ("pull", "--from", "{hub}"),
    ("pull", "{slug}", "--from", "{hub}"),
    ("reproduce", "{slug}", "--at", "{hub}"),
    ("diff", REPO, REPO, "--hub", "{hub}"),
    ("report", "{slug}", "--hub", "{hub}", "--to", "{home}/page.html"),
    ("card", f"datasets/{REPO}", "--check", "--hub", "{hub}"),
    ("chat", ADAPTER, "--prompt", "Hej", "--hub", "{hub}"),
    ("merge", ADAPTER, "--to", "{home}/merged", "--hub", "{hub}"),
    ("serve", ADAPTER, "--print", "--hub", "{hub}"),
]


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with forked_commands(tmp_path_factory.mktemp("forked")) as run:
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_one_line_of_a_hostile_hub(
    evil: Proxy, there: Connection, victim: Victim, forked: Run, command: tuple[str, ...]
) -> None:
    home = victim.root / "home"
    slug = next(iter(client(there).list_collections(owner="evil"))).slug
    words = [
        word.replace("{hub}", evil.url).replace("{slug}", slug).replace("{home}", str(home))
        for word in command
    ]
    path = str(victim.file)

    def all_sha(line: str, reply: Reply) -> Reply:
        if isinstance(reply.body, bytes) and reply.body[:1] == b"{" and "/api/" in line:
            said = json.loads(reply.body)
            if "sha" in said:
                reply.body = json.dumps(said | {"sha": path}).encode()
                reply.headers["content-length"] = str(len(reply.body))
        return reply

    def garbage(line: str, reply: Reply) -> Reply:
        return Reply(200, {"Content-Length": "3"}, b"{}]")

    home.mkdir()
    refused = []
    with connect(home / "hub"):
        for twist in (
            header("ETag", f'"{path}"', "/resolve/"),
            header("X-Repo-Commit", "../../../victim", "/resolve/"),
            header("Link", f'<{evil.url}/api/x>; rel="next"', "/api/"),
            all_sha,
            garbage,
        ):
            evil.twist = twist
            done = forked(*words, home=home, HF_TOKEN=there.token)
            said = done.stdout + done.stderr
            assert done.returncode in (0, 1) and "Traceback" not in said, said
            victim.assert_untouched()
            if done.returncode:
                [line] = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
                refused.append(line)
    assert refused, "an answer of garbage at least is no answer"


@settings(max_examples=150, deadline=None)
@given(number=st.integers(0, 10**6), value=ODD)
def test_whatever_a_manifest_says_its_names_stay_inside(number: int, value: Any) -> None:
    document = poisoned(imported().model_dump(mode="json"), number, value)
    try:
        manifest = Manifest.model_validate_json(json.dumps(document))
    except ValueError:
        return
    root = Path("/home/user/artifact")
    names = [manifest.recipe, manifest.step, manifest.fingerprint, manifest.repo]
    names += [*manifest.slices, *(record.path for record in manifest.files)]
    for name in names:
        assert Path(os.path.normpath(root / f"{name}.yaml")).is_relative_to(root)
