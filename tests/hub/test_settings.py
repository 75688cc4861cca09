"""The settings of Hub clients, in processes of their own that nobody has prepared.

A large file is what tells: its upload goes by Xet unless that is off, and only huggingface.co has
a Xet store.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from factory.localhub.launcher import Connection, connect
from tests.conftest import FACTORY, run_factory
from tests.support.terminal import clean_environment
from tests.support.tiny_recipe import RECIPE

LARGE = b"\x00\x01" * 6_000_000  # bytes of one file that every hub keeps as a large one
# What a user's shell may hold: nothing, or what clusters set.
SHELLS = {"bare": {}, "offline": {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a recipe, and a home whose hub holds a repo with a large file in a
    collection."""
    root = tmp_path_factory.mktemp("desk")
    (root / "tiny.yaml").write_text(RECIPE)
    rows = "".join(f'{{"id": "{n}", "prompt": "{n:x}{"?" * 9000}"}}\n' for n in range(2000))
    (root / "p.jsonl").write_text(rows)
    with connect(root / "home" / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/large")
        api.upload_file(
            path_or_fileobj=LARGE, path_in_repo="model.safetensors", repo_id="org/large"
        )
        shelf = api.create_collection("Large", namespace="org")
        api.add_collection_item(shelf.slug, "org/large", "model")
        yield root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Another hub, which is not huggingface.co."""
    with connect(tmp_path_factory.mktemp("other")) as hub:
        yield hub


def factory(
    home: Path, *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in `home`'s parent with nothing set but its home."""
    return subprocess.run(
        [*FACTORY, *arguments],
        cwd=home.parent,
        env=clean_environment(FACTORY_HOME=str(home), **environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_large_file_is_pushed_pulled_and_exported(
    desk: Path, other: Connection, tmp_path: Path, shell: str
) -> None:
    settings = {**SHELLS[shell], "HF_TOKEN": other.token}
    name = f"org=from-{shell}"
    words = ["push", "org/large", "--to", other.url, "--rename", name]
    pushed = factory(desk / "home", *words, **settings)
    assert pushed.returncode == 0, pushed.stderr
    again = tmp_path / "home"
    pulled = factory(again, "pull", f"from-{shell}/large", "--from", other.url, **settings)
    assert pulled.returncode == 0, pulled.stderr
    exported = factory(again, "hub", "export", "x.tar", f"from-{shell}/large", **settings)
    assert exported.returncode == 0, exported.stderr
    with connect(again / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        path = api.hf_hub_download(
            f"from-{shell}/large", "model.safetensors", cache_dir=tmp_path / "cache"
        )
        assert Path(path).read_bytes() == LARGE


@pytest.mark.parametrize("shell", ["offline"])
def test_a_run_publishes_on_a_hub_that_is_named(
    desk: Path, other: Connection, tmp_path: Path, shell: str
) -> None:
    settings = {**SHELLS[shell], "HF_TOKEN": other.token}
    words = ["run", "tiny.yaml", "--hub", other.url, "--set", f"org=run-{shell}"]
    done = factory(desk / "home", *words, **settings)
    assert done.returncode == 0, done.stderr
    info = HfApi(endpoint=other.url, token=other.token).dataset_info(
        f"run-{shell}/tiny-prompts", files_metadata=True
    )
    assert any(file.lfs for file in info.siblings or ())


def test_a_program_that_imported_the_client_before_publishes_too(
    desk: Path, other: Connection
) -> None:
    code = (
        "import huggingface_hub, os; from huggingface_hub import constants\n"
        "import factory\n"
        "def settings():\n"
        "    names = [name for name in os.environ if name.startswith(('HF_', 'NO_PROXY'))]\n"
        "    switches = constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE\n"
        "    return {name: os.environ[name] for name in names}, switches\n"
        "before = settings()\n"
        f"factory.run('tiny.yaml', set=['org=program'], hub={other.url!r})\n"
        "assert settings() == before and before[1] == (False, True)\n"
    )
    done = subprocess.run(
        [FACTORY[0], "-c", code],
        cwd=desk,
        env=clean_environment(
            FACTORY_HOME=str(desk / "home"), HF_TOKEN=other.token, HF_HUB_OFFLINE="1"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert HfApi(endpoint=other.url, token=other.token).repo_exists(
        "program/tiny-prompts", repo_type="dataset"
    )


def test_a_hub_that_does_not_run_is_named_with_the_cause(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    for words in (["push", "org/x", "--to", url], ["pull", "org/x", "--from", url]):
        done = factory(tmp_path / "home", *words)
        assert done.returncode == 1
        assert f"{url} cannot be reached: connection refused" in done.stderr
        assert "trying again in" in done.stderr


def test_a_name_that_does_not_resolve_is_not_tried_again(tmp_path: Path) -> None:
    began = time.monotonic()
    done = factory(tmp_path / "home", "pull", "org/x", "--from", "http://no-such-hub.invalid")
    assert done.returncode == 1 and time.monotonic() - began < 8
    assert "http://no-such-hub.invalid cannot be reached: its name does not resolve" in done.stderr
    assert "again" not in done.stderr


@pytest.mark.slow
def test_a_hub_that_is_silent_is_said_to_be_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = factory(tmp_path / "home", "pull", "org/x", "--from", url)
    assert done.returncode == 1 and f"waiting for {url}" in done.stderr
    assert "no answer in time" in done.stderr


def test_an_address_that_is_no_hub_says_so(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        done = factory(tmp_path / "home", "pull", "org/x", "--from", url)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 1 and url in done.stderr and "501" in done.stderr


class TestTokens:
    """A token belongs to one hub."""

    PUBLIC_TOKEN = "hf_" + "x" * 34

    @pytest.mark.parametrize(
        ("token", "environment", "endpoint", "sent"),
        [
            (PUBLIC_TOKEN, {}, "https://huggingface.co", True),
            (PUBLIC_TOKEN, {}, "https://other.example", False),
            (PUBLIC_TOKEN, {}, "http://127.0.0.1:9", False),
            (PUBLIC_TOKEN, {}, "https://huggingface.co.evil.example", False),
            (PUBLIC_TOKEN, {}, "http://huggingface.co", False),  # another origin
            (PUBLIC_TOKEN, {"HF_ENDPOINT": "https://lab.example/"}, "https://lab.example", True),
            (PUBLIC_TOKEN, {"HF_ENDPOINT": "https://lab.example"}, "https://huggingface.co", False),
            ("hf_local_abc", {}, "http://127.0.0.1:9", True),
            ("hf_local_abc", {}, "http://localhost:9", True),
            ("hf_local_abc", {}, "http://[::1]:9", True),
            ("hf_local_abc", {}, "https://huggingface.co", False),
            ("hf_local_abc", {"FACTORY_PLAIN_HTTP": "1"}, "http://node7:9", True),
        ],
    )
    def test_it_goes_to_that_one_alone(
        self,
        monkeypatch: pytest.MonkeyPatch,
        token: str,
        environment: dict[str, str],
        endpoint: str,
        sent: bool,
    ) -> None:
        from factory.hub import session

        monkeypatch.setattr(session, "configure_clients", lambda endpoint: None)
        for name in ("HF_ENDPOINT", "FACTORY_PLAIN_HTTP"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", token)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert session.remote_token(endpoint) == (token if sent else None)

    @pytest.mark.parametrize("endpoint", ["http://node7:9", "http://10.1.2.3", "http://127.evil"])
    def test_plain_http_to_another_machine_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, endpoint: str
    ) -> None:
        from factory.errors import HubError
        from factory.hub import session

        monkeypatch.setattr(session, "configure_clients", lambda endpoint: None)
        monkeypatch.setenv("HF_TOKEN", "hf_local_abc")
        monkeypatch.delenv("FACTORY_PLAIN_HTTP", raising=False)
        with pytest.raises(HubError, match="is plain http"):
            session.remote_token(endpoint)

    def test_another_hub_never_sees_it(self, tmp_path: Path) -> None:
        seen: list[str] = []

        class Listener(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(str(self.headers.get("Authorization")))
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        cache = tmp_path / "hf"
        cache.mkdir()
        (cache / "token").write_text(self.PUBLIC_TOKEN)  # as hf auth login leaves it
        try:
            for words in (
                ("pull", "org/name", "--from", url),
                ("card", "org/name", "--hub", url),
            ):
                done = run_factory(*words, home=tmp_path / "home", HF_HOME=str(cache))
                assert done.returncode == 1, done.stderr
                assert self.PUBLIC_TOKEN not in done.stdout + done.stderr
        finally:
            server.shutdown()
        assert seen and set(seen) == {"None"}
