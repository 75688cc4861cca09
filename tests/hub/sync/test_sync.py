"""Push and pull between two hubs, in their own processes, over a network that fails on purpose."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.localhub.launcher import Connection, connect, request
from tests.support.proxy import Fault, Proxy, proxy_of

_numbers = itertools.count()
BIG = 300_000


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(tmp_path_factory.mktemp("here")) as hub:
        yield hub


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(tmp_path_factory.mktemp("there")) as hub:
        yield hub


@pytest.fixture(scope="module")
def network(there: Connection) -> Iterator[Proxy]:
    with proxy_of(there.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long between two tries."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))


def client(hub: Connection) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=hub.token)


class Told:
    """A watcher that counts."""

    def __init__(self) -> None:
        self.size = self.bytes = 0

    def begin(self, what: str, size: int) -> None:
        self.size += size

    def moved(self, size: int) -> None:
        self.bytes += size


def between(
    source: tuple[str, str],
    destination: tuple[str, str],
    staging: Path,
    *,
    keeps_ids: bool = False,
    names: dict[str, str] | None = None,
    **options: bool,
) -> Any:
    from factory.hub.sync.destination import Destination
    from factory.hub.sync.mirror import Mirror
    from factory.hub.sync.plan import Options
    from factory.hub.sync.side import HubReader
    from factory.hub.sync.transfer import RepoTransfer

    to = (Mirror if keeps_ids else Destination)(*destination, staging / "to")
    return RepoTransfer(HubReader(*source, staging / "from"), to, Options(**options), Told(), names)


@pytest.fixture
def push(here: Connection, there: Connection, network: Proxy, tmp_path: Path) -> Any:
    """A push from here to there, through the network."""
    network.faults.clear()
    network.seen.clear()
    network.happened.clear()

    def make(**options: Any) -> Any:
        return between(
            (here.url, here.token), (network.url, there.token), tmp_path / "s", **options
        )

    return make


@pytest.fixture
def pull(here: Connection, there: Connection, network: Proxy, tmp_path: Path) -> Any:
    """A pull from there to here, through the network."""
    network.faults.clear()
    network.seen.clear()
    network.happened.clear()

    def make(**options: Any) -> Any:
        return between(
            (network.url, there.token),
            (here.url, here.token),
            tmp_path / "s",
            keeps_ids=True,
            **options,
        )

    return make


def add(path: str, content: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, content)


def drop(path: str) -> Any:
    from huggingface_hub import CommitOperationDelete

    return CommitOperationDelete(path)


def commit(api: Any, repo: Any, *operations: Any, title: str = "change", **options: Any) -> str:
    return str(
        api.create_commit(
            repo.name, operations, commit_message=title, repo_type=repo.kind, **options
        ).oid
    )


def written(hub: Connection, kind: str = "dataset", private: bool = False) -> Any:
    """A repo with three commits, two branches and three tags, one of them off every branch."""
    from factory.hub.sync.side import RepoId

    api = client(hub)
    repo = RepoId(kind, f"org/thing-{next(_numbers)}")
    api.create_repo(repo.name, repo_type=kind, private=private)
    big = os.urandom(BIG)
    commit(api, repo, add("data/a.parquet", big), add("README.md", b"---\nlicense: mit\n---\n# A"))
    api.create_tag(repo.name, tag="v1", repo_type=kind)
    commit(api, repo, add("data/b.parquet", os.urandom(1000)), drop("data/a.parquet"), title="b")
    api.create_branch(repo.name, branch="exp/x", repo_type=kind)
    commit(api, repo, add("x.txt", b"x"), add("copy.parquet", big), revision="exp/x", title="x")
    api.create_branch(repo.name, branch="gone", revision="v1", repo_type=kind)
    commit(api, repo, add("lost.txt", b"only a tag leads here"), revision="gone", title="lost")
    api.create_tag(repo.name, tag="lost", revision="gone", repo_type=kind)
    api.delete_branch(repo.name, branch="gone", repo_type=kind)
    commit(api, repo, add("empty", b""), add("ø/æ å.txt", b"deep"), title="c")
    api.create_tag(repo.name, tag="v2", repo_type=kind)
    return repo


def contents(hub: Connection, repo: Any) -> dict[str, dict[str, str]]:
    """At every ref, every path with its git id; the `.gitattributes` are the same on both."""
    api = client(hub)
    refs = api.list_repo_refs(repo.name, repo_type=repo.kind)
    return {
        f"{group} {ref.name}": {
            item.path: item.blob_id
            for item in api.list_repo_tree(
                repo.name, recursive=True, repo_type=repo.kind, revision=ref.target_commit
            )
            if hasattr(item, "blob_id")
        }
        for group, named in (("branch", refs.branches), ("tag", refs.tags))
        for ref in named
    }


def titles(hub: Connection, repo: Any, revision: str = "main") -> list[str]:
    found = client(hub).list_repo_commits(repo.name, repo_type=repo.kind, revision=revision)
    return [made.title for made in found]


def targets(hub: Connection, repo: Any) -> dict[str, str]:
    refs = client(hub).list_repo_refs(repo.name, repo_type=repo.kind)
    return {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags]}


def writes(network: Proxy) -> list[str]:
    return [line for line in network.seen if not line.startswith(("GET", "HEAD"))]


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_everything_arrives_and_a_second_run_sends_nothing(
    here: Connection, there: Connection, network: Proxy, push: Any, kind: str
) -> None:
    repo = written(here, kind, private=True)
    preview = push().preview(repo)
    assert writes(network) == []
    done = push().repo(repo)
    assert (preview.commits, preview.tags) == (done.commits, done.tags) == (5, 3)
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo) == titles(here, repo)
    assert titles(there, repo, "lost") == titles(here, repo, "lost")
    assert client(there).repo_info(repo.name, repo_type=kind).private
    before = targets(there, repo)
    network.seen.clear()
    again = push().repo(repo)
    assert (again.commits, again.files, again.size, again.tags) == (0, 0, 0, 0)
    assert writes(network) == [] and network.count("/resolve/") == 0
    assert targets(there, repo) == before


def test_pull_requests_stay_where_they_were_made(
    here: Connection, there: Connection, push: Any
) -> None:
    repo = written(here)
    client(here).upload_file(
        path_or_fileobj=b"?", path_in_repo="maybe", repo_id=repo.name, repo_type=repo.kind,
        create_pr=True,
    )  # fmt: skip
    push().repo(repo)
    assert contents(there, repo) == contents(here, repo)
    assert list(client(there).get_repo_discussions(repo.name, repo_type=repo.kind)) == []


def test_what_came_later_is_added(here: Connection, there: Connection, push: Any) -> None:
    repo = written(here)
    push().repo(repo)
    commit(client(here), repo, add("later.txt", b"1"), title="later")
    client(here).create_tag(repo.name, tag="v3", repo_type="dataset")
    assert push().repo(repo).commits == 1
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo)[:2] == ["later", "c"]


def test_squash_sends_a_commit_a_ref(here: Connection, there: Connection, push: Any) -> None:
    repo = written(here)
    for number in range(3):
        commit(client(here), repo, add("n", str(number).encode()))
    assert push(squash=True).repo(repo).commits == 5  # main, exp/x, v1, v2, lost
    assert contents(there, repo) == contents(here, repo)
    assert push().repo(repo).commits == 0


def test_what_one_hub_keeps_as_large_may_be_small_on_the_other(
    here: Connection, there: Connection, network: Proxy, push: Any
) -> None:
    """Which files are large is the hub's choice; content is what counts."""
    repo = written(here)
    commit(client(here), repo, add(".gitattributes", b"*.foo filter=lfs diff=lfs merge=lfs -text"))
    commit(client(here), repo, add("x.foo", b"small, but large by name"))
    push(squash=True).repo(repo)
    ours, theirs = contents(here, repo), contents(there, repo)
    assert ours["branch main"].keys() == theirs["branch main"].keys()
    assert ours["branch main"]["x.foo"] != theirs["branch main"]["x.foo"]  # a pointer, a file
    network.seen.clear()
    assert push(squash=True).repo(repo).commits == 0 and writes(network) == []


def test_a_file_becomes_a_folder_and_back(here: Connection, there: Connection, push: Any) -> None:
    repo = written(here)
    api = client(here)
    commit(api, repo, add("thing", b"a file"))
    commit(api, repo, drop("thing"), add("thing/inside", b"a folder"))
    commit(api, repo, drop("thing/inside"), add("thing", b"a file again"))
    push().repo(repo)
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo) == titles(here, repo)


def test_another_name_over_there(here: Connection, there: Connection, push: Any) -> None:
    from factory.hub.sync.side import RepoId

    repo = written(here)
    names = {"org": "lab", repo.name: "lab/renamed"}
    assert push(names=names).repo(repo).target.name == "lab/renamed"
    assert contents(there, RepoId("dataset", "lab/renamed")) == contents(here, repo)


def test_a_tag_with_other_content_stops_the_repo(
    here: Connection, there: Connection, network: Proxy, push: Any
) -> None:
    repo = written(here)
    push().repo(repo)
    api = client(here)
    commit(api, repo, add("new.txt", b"ours"))
    api.create_tag(repo.name, tag="v3", repo_type="dataset")
    client(there).create_tag(repo.name, tag="v3", revision="v1", repo_type="dataset")
    before = targets(there, repo)
    network.seen.clear()
    assert push().repo(repo).conflicts == [f"tag v3 of datasets/{repo.name} has other content"]
    assert writes(network) == [] and targets(there, repo) == before
    done = push(adopt=True).repo(repo)
    assert done.conflicts == [] and "unchanged" in done.notes[0]
    after = targets(there, repo)
    assert after.pop("refs/heads/main") != before.pop("refs/heads/main")
    assert after == before  # no tag moved


def test_a_branch_that_went_its_own_way_stops_the_repo(
    here: Connection, there: Connection, push: Any
) -> None:
    repo = written(here)
    push().repo(repo)
    theirs = commit(client(there), repo, add("README.md", b"edited over there"))
    done = push().repo(repo)
    assert done.conflicts == [] and "has newer commits on main" in done.notes[0]
    commit(client(here), repo, add("ours.txt", b"o"))
    client(here).create_tag(repo.name, tag="v9", repo_type="dataset")
    assert "has commits that" in push().repo(repo).conflicts[0]
    assert targets(there, repo)["refs/heads/main"] == theirs
    done = push(adopt=True).repo(repo)
    assert targets(there, repo)["refs/heads/main"] == theirs
    assert contents(there, repo)["tag v9"] == contents(here, repo)["tag v9"]


def test_equal_content_under_other_ids_is_no_conflict(
    here: Connection, there: Connection, push: Any
) -> None:
    repo = written(here)
    push().repo(repo)
    client(there).super_squash_history(repo.name, repo_type="dataset")
    assert push().repo(repo).commits == 0
    assert titles(there, repo) != titles(here, repo)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("/commit/", 503, 2), Fault("/tag/", 500), Fault("/refs", 500)],
        [Fault("/commit/", "lost", 2), Fault("/tag/", "lost"), Fault("repos/create", "lost")],
        [Fault("/commit/", 429), Fault("PUT", 500), Fault("/tree/", "reset")],
        [Fault("PUT", "reset"), Fault("PUT", "lost"), Fault("/preupload/", "reset")],
        [Fault("/tree/", "cut"), Fault("/branch/", "lost"), Fault("objects/batch", 503)],
        [Fault("/validate-yaml", 503), Fault("/validate-yaml", "page"), Fault("/commit/", "page")],
        [Fault("objects/batch", "page"), Fault("/refs", "page"), Fault("/tree/", "page")],
        [Fault("PUT", 503, 14)],  # more than the client itself puts up with
    ],
)
def test_a_push_survives_a_bad_network(
    here: Connection, there: Connection, network: Proxy, push: Any, faults: list[Fault]
) -> None:
    repo = written(here)
    network.faults += faults
    push().repo(repo)
    assert all(fault.times == 0 for fault in faults), network.happened
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo) == titles(here, repo)  # nothing doubled
    refs = client(there).list_repo_refs(repo.name, repo_type="dataset")
    assert {ref.name for ref in refs.branches} == {"main", "exp/x"}


def test_after_429_we_wait_as_long_as_asked(
    here: Connection, network: Proxy, push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    repo = written(here)
    network.faults.append(Fault("/commit/", 429))
    push().repo(repo)
    assert 1.0 in waited


def test_somebody_else_commits_meanwhile(
    here: Connection, there: Connection, network: Proxy, push: Any
) -> None:
    """The parent check answers 412: we look again, and find a branch that went its own way."""
    repo = written(here)
    push().repo(repo)
    commit(client(here), repo, add("ours.txt", b"o"), title="ours")

    def race() -> None:
        commit(client(there), repo, add("theirs.txt", b"t"), title="theirs")

    network.faults.append(Fault(f"POST /api/datasets/{repo.name}/commit/main", race))
    assert "has commits that" in push().repo(repo).conflicts[0]
    assert titles(there, repo)[0] == "theirs"


def test_two_pushes_of_one_repo_at_once(here: Connection, there: Connection, push: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    repo = written(here)
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(push().repo, repo) for _ in range(2)]:
            assert job.result().conflicts == []
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo) == titles(here, repo)


def test_a_pull_keeps_commits_trees_and_dates(
    here: Connection, there: Connection, network: Proxy, pull: Any
) -> None:
    repo = written(there, "model")
    before = request(here, "POST", "/api/local/fsck")[1]
    done = pull().repo(repo)
    assert done.tags == 3
    after = request(here, "POST", "/api/local/fsck")[1]
    assert after["commits"] > before["commits"] and after["trusted"] == before["trusted"]
    assert targets(here, repo) == targets(there, repo)
    assert contents(here, repo) == contents(there, repo)
    for revision in ("main", "exp/x", "lost"):
        ours, theirs = (
            [
                (made.commit_id, made.title, made.created_at, made.authors)
                for made in client(hub).list_repo_commits(repo.name, revision=revision)
            ]
            for hub in (here, there)
        )
        assert ours == theirs
    network.seen.clear()
    assert pull().repo(repo).commits == 0
    assert network.count("/resolve/") == 0
    commit(client(there), repo, add("later.txt", b"1"))
    assert pull().repo(repo).commits == 1
    assert targets(here, repo) == targets(there, repo)


def test_a_pulled_repo_can_be_worked_on_and_pushed_back(
    here: Connection, there: Connection, pull: Any, push: Any
) -> None:
    repo = written(there)
    pull().repo(repo)
    ours = commit(client(here), repo, add("ours.txt", b"1"), title="ours")
    assert "newer commits" in pull().repo(repo).notes[0]
    assert push().repo(repo).commits == 1
    assert titles(there, repo)[:2] == ["ours", "c"]
    commit(client(there), repo, add("theirs.txt", b"1"), title="theirs")
    assert pull().repo(repo).commits == 1  # on top of ours, which theirs repeats
    assert titles(here, repo)[:3] == ["theirs", "ours", "c"]
    assert ours in [
        m.commit_id for m in client(here).list_repo_commits(repo.name, repo_type="dataset")
    ]


def test_one_revision_alone(here: Connection, there: Connection, network: Proxy, pull: Any) -> None:
    """A base model at the commit that a lock names: no older weights are fetched for it."""
    repo = written(there, "model")
    sha = targets(there, repo)["refs/tags/v1"]
    assert pull().repo(repo, sha).commits == 1
    assert targets(here, repo) == {"refs/heads/main": sha}
    assert network.count("data/b.parquet") == 0
    assert client(here).repo_info(repo.name, revision=sha).sha == sha
    other = targets(there, repo)["refs/tags/lost"]
    pull().repo(repo, other)
    assert client(here).repo_info(repo.name, revision=other).sha == other
    pull().repo(repo)  # and the rest later
    assert targets(here, repo) == targets(there, repo)
    assert contents(here, repo) == contents(there, repo)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("/resolve/", "cut", 2), Fault("/resolve/", "reset", 2), Fault("/commits/", 500)],
        [Fault("/resolve/", 503, 2), Fault("/refs", "cut"), Fault("/tree/", 429)],
        [Fault("GET /datasets/", "flip", 2)],
    ],
)
def test_a_pull_survives_a_bad_network(
    here: Connection, there: Connection, network: Proxy, pull: Any, faults: list[Fault]
) -> None:
    repo = written(there)
    network.faults += faults
    pull().repo(repo)
    assert all(fault.times == 0 for fault in faults), network.happened
    assert targets(here, repo) == targets(there, repo)
    assert contents(here, repo) == contents(there, repo)


def test_a_file_that_is_damaged_over_there_is_said(
    there: Connection, network: Proxy, pull: Any
) -> None:
    from factory.errors import HubError

    network.faults.append(Fault("GET /datasets/", "flip", 99))
    with pytest.raises(HubError, match="arrive as"):
        pull().repo(written(there))


def test_a_gone_hub_is_said(here: Connection, push: Any, tmp_path: Path) -> None:
    from factory.errors import HubError

    repo = written(here)
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached"):
        between((here.url, here.token), ("http://127.0.0.1:9", "x"), tmp_path).repo(repo)
    with pytest.raises(HubError, match="has no datasets/org/absent"):
        push().repo(repo._replace(name="org/absent"))


def test_a_gated_repo_prints_the_page_to_accept(
    there: Connection, network: Proxy, pull: Any
) -> None:
    from factory.errors import HubError

    repo = written(there)
    network.faults.append(Fault("/resolve/", 403, 99))
    with pytest.raises(HubError, match=f"accept its terms at {network.url}/datasets/{repo.name}"):
        pull().repo(repo)


def test_a_collection_with_notes_and_order(
    here: Connection, there: Connection, network: Proxy, push: Any, pull: Any
) -> None:
    repos = [written(here, kind) for kind in ("dataset", "model", "dataset")]
    api = client(here)
    shelf = api.create_collection("CroCo: prøve", namespace="org", description="all", private=True)
    for number, repo in enumerate(repos):
        api.add_collection_item(shelf.slug, repo.name, repo.kind, note=f"number {number}")

    def sent(**options: Any) -> Any:
        work = push(**options)
        for repo in work.repos_of(shelf.slug):
            work.repo(repo)
        return work.collection(shelf.slug)

    made = sent()
    assert made.changes == 3

    def shown(hub: Connection, slug: str) -> Any:
        found = client(hub).get_collection(slug)
        items = [(item.item_id, item.note) for item in found.items]
        return found.title, found.description, found.private, items

    assert shown(there, made.slug) == shown(here, shelf.slug)
    network.seen.clear()
    assert sent().changes == 0 and writes(network) == []
    items = api.get_collection(shelf.slug).items
    api.update_collection_item(shelf.slug, items[2].item_object_id, position=0, note="now first")
    assert push().collection(shelf.slug, dry=True).changes == 3 and writes(network) == []
    assert sent().slug == made.slug
    assert shown(there, made.slug) == shown(here, shelf.slug)


KILLED = """
import sys
from pathlib import Path
from tests.hub.sync.test_sync import between
from factory.hub.sync.side import RepoId
source, token, to, to_token, staging, name, keeps = sys.argv[1:]
between((source, token), (to, to_token), Path(staging), keeps_ids=keeps == "1").repo(
    RepoId("dataset", name)
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("keeps_ids", [False, True])
def test_a_killed_transfer_goes_on_where_it_was(
    here: Connection, there: Connection, network: Proxy, tmp_path: Path, keeps_ids: bool
) -> None:
    """Killed at each kind of request in turn; what had arrived is not sent again."""
    repo = written(here)
    command = [sys.executable, "-c", KILLED, here.url, here.token, network.url, there.token]
    command += [str(tmp_path), repo.name, str(int(keeps_ids))]
    for where in ("repos/create", "PUT", "/mirror" if keeps_ids else "/commit/", "/tag/"):
        network.faults.clear()
        process: list[subprocess.Popen[bytes]] = []
        network.faults.append(
            Fault(where, lambda held=process: os.kill(held[0].pid, signal.SIGKILL))
        )
        process.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        assert process[0].wait(timeout=60) == -signal.SIGKILL, where
    network.faults.clear()
    network.seen.clear()
    subprocess.run(command, check=True)
    assert network.count("PUT") == 0 and network.count("repos/create") == 0
    assert contents(there, repo) == contents(here, repo)
    assert titles(there, repo) == titles(here, repo)


@pytest.fixture(scope="module")
def published(here: Connection) -> dict[str, Any]:
    """A base model, pairs and an adapter as the factory publishes them, by the adapter's name."""
    from factory.artifacts.manifest import Manifest
    from factory.hub.sync.side import RepoId
    from factory.reports.cards import card

    api, repos = client(here), {}
    base = RepoId("model", "local/tiny-random-llama")
    api.create_repo(base.name, exist_ok=True)
    commit_of_base = commit(api, base, add("config.json", b"{}"), title="base")
    for name in ("pair", "dpo-all"):
        text = Path(f"tests/golden/{name}.json").read_text(encoding="utf-8")
        text = text.replace("b5d4866fb264634f6f30debc4187bfedf1134018", commit_of_base)
        manifest = Manifest.model_validate_json(text)
        repo = RepoId("dataset" if name == "pair" else "model", manifest.repo)
        api.create_repo(repo.name, repo_type=repo.kind, exist_ok=True)
        readme = card.render(manifest) + "\nNot a repo: local/nothing and local/tiny.\n"
        recipe = b"name: smoke\norg: local\nmodels: {policy: local/tiny-random-llama}\n"
        files = {"README.md": readme.encode(), "factory.json": text.encode(), "recipe.yaml": recipe}
        commit(api, repo, *(add(path, content) for path, content in files.items()), title=name)
        api.create_tag(repo.name, tag=manifest.tag, repo_type=repo.kind)
        repos[name] = repo
    return {"base": base, **repos}


def text_of(hub: Connection, kind: str, name: str, path: str, revision: str = "main") -> str:
    place = client(hub).hf_hub_download(name, path, repo_type=kind, revision=revision)
    return Path(place).read_text(encoding="utf-8")


def test_cards_name_the_repos_as_they_are_over_there(
    published: dict[str, Any], there: Connection, push: Any
) -> None:
    from factory.artifacts.manifest import Manifest

    repos = published
    names = {"local": "me", "local/smoke-dpo-all": "me/tuned"}
    alone = push(names=names)
    alone.repo(repos["dpo-all"])
    assert alone.dead_names(repos["dpo-all"]) == [
        "its card names what is not there: push me/smoke-pair, me/tiny-random-llama too"
    ]
    client(there).delete_repo("me/tuned")
    for name in ("base", "pair", "dpo-all"):
        whole = push(names=names)
        whole.repo(repos[name])
        assert whole.dead_names(repos[name]) == []
    base = targets(there, repos["base"]._replace(name="me/tiny-random-llama"))["refs/heads/main"]
    manifest = Manifest.model_validate_json(text_of(there, "model", "me/tuned", "factory.json"))
    readme = text_of(there, "model", "me/tuned", "README.md", manifest.tag)
    assert "# me/tuned" in readme
    assert 'PeftModel.from_pretrained(base, "me/tuned", revision=' in readme
    assert f'from_pretrained("me/tiny-random-llama", revision="{base}")' in readme
    assert "datasets:\n- me/smoke-pair\n" in readme
    pairs = "https://huggingface.co/datasets/me/smoke-pair/tree/fp-dabc6e7f095e"
    assert f"[me/smoke-pair@fp-dabc6e7f095e]({pairs})" in readme
    assert f"[me/tiny-random-llama@{base[:12]}](https://huggingface.co/me/tiny-random" in readme
    assert "[CroCo smoke](https://huggingface.co/me/collections)" in readme
    assert "(https://huggingface.co/spaces/me/croco-smoke-results)" in readme
    assert readme.count("local/") == 2  # neither is a repo
    assert manifest.repo == "me/tuned"
    assert manifest.models[0].source == "me/tiny-random-llama@main"
    assert manifest.models[0].revision == base
    assert "policy: me/tiny-random-llama" in text_of(there, "model", "me/tuned", "recipe.yaml")
    again = push(names=names).repo(repos["dpo-all"])
    assert (again.commits, again.tags) == (0, 0)


def test_a_base_that_is_pushed_later_stops_no_push(
    published: dict[str, Any], there: Connection, push: Any
) -> None:
    names = {"local": "late"}
    for name in ("dpo-all", "base", "dpo-all"):
        push(names=names).repo(published[name])
    assert "late/tiny-random-llama" in text_of(there, "model", "late/smoke-dpo-all", "README.md")


def test_a_pulled_artifact_is_compared_with_its_manifest(there: Connection, pull: Any) -> None:
    from factory.hub.sync.side import RepoId

    api, repo = client(there), RepoId("dataset", "org/damaged")
    text = Path("tests/golden/pair.json").read_text(encoding="utf-8")
    api.create_repo(repo.name, repo_type="dataset")
    paths = [file["path"] for file in json.loads(text)["files"]]
    files = [add(path, b"no parquet") for path in paths]
    commit(api, repo, add("factory.json", text.encode()), *files)
    assert pull().repo(repo).notes == [
        f"main: {len(paths)} files are not what factory.json records, {paths[0]} for one"
    ]
    assert pull().repo(repo).notes == [], "it is said of what came"


def test_a_branch_and_a_tag_of_one_name_are_pulled(
    here: Connection, there: Connection, pull: Any
) -> None:
    repo = written(there)
    client(there).create_branch(repo.name, branch="v1", revision="main", repo_type=repo.kind)
    for _ in range(2):
        assert pull().repo(repo).conflicts == []
    assert targets(here, repo) == targets(there, repo)
