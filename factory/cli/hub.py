"""factory hub: the local hub by itself."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import Json

if TYPE_CHECKING:
    from factory.localhub.launcher import Connection

# A problem that fsck finds in a content, not in the database.
_UPLOADABLE = re.compile(r"^content [0-9a-f]{64} was damaged| lacks its content [0-9a-f]{64}$")
# What an export holds: a small store of its own.
_EXPORTED = re.compile(r"hub\.sqlite|blobs/[0-9a-f]{2}/[0-9a-f]{64}")
_ADDRESSES = {"dataset": "datasets/", "model": "", "space": "spaces/"}  # before the name of a repo

hub = typer.Typer(help="The local hub: a Hugging Face Hub on your disk.", no_args_is_help=True)
app.add_typer(hub, name="hub")


@hub.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec(command: Annotated[list[str], typer.Argument(help="The command, after --.")]) -> None:
    """Run any command with its Hub clients pointed at the local hub."""
    from factory.artifacts.workdir import Home
    from factory.cli.transfer import local_hub
    from factory.errors import RecipeError
    from factory.localhub.launcher import environment

    home = Home(home_path())
    # python and hf are those of an active environment; else of this one, which has the clients
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    path = os.pathsep.join(reversed(folders) if active else folders)
    with local_hub() as connection:
        try:
            settings = {**os.environ, "PATH": path, **environment(connection, home.cache)}
            done = subprocess.run(
                [shutil.which(command[0], path=path) or command[0], *command[1:]],
                env=settings,
                check=False,
            )
        except OSError as error:
            raise RecipeError(
                f"{command[0]} cannot be run: {error.strerror}",
                "install it, or give its full path",
            ) from None
    raise typer.Exit(done.returncode)


@hub.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    anonymous: Annotated[bool, typer.Option(help="Let anybody read what is not private.")] = False,
) -> None:
    """Serve the local hub until it is stopped. Every request needs a token."""
    from factory.hub.environment import PAGES

    root = home_path() / "hub"
    command = [sys.executable, "-m", PAGES, "--root", str(root), "--stay"]
    command += ["--anonymous"] if anonymous else []
    # in the place of this process: a signal to it reaches the server
    os.execv(sys.executable, [*command, "--port", str(port), "--host", host])


@hub.command("open")
def open_(
    what: Annotated[
        str | None,
        typer.Argument(help="A collection's slug, a repo or a path of a page; the home without."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser here.")] = True,
    wait: Annotated[bool, typer.Option(help="Serve until Ctrl-C.")] = True,
) -> None:
    """Open the pages of the local hub in a browser.

    On another machine, forward the port that is printed: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    import signal
    import webbrowser
    from urllib.parse import quote, urlsplit

    from factory.cli.transfer import local_hub
    from factory.errors import HubError
    from factory.localhub.launcher import request

    with local_hub() as connection:
        path = _page_path(connection, what or "")
        status, reply = request(connection, "POST", "/-/login")
        if status != 200:
            raise HubError(
                "the local hub that is running has no pages",
                "end what serves it (factory hub status), then open it again",
            )
        to = f"&to={quote(path)}" if path != "/" else ""
        address = f"{connection.url}/-/login?once={reply['once']}{to}"
        port = urlsplit(connection.url).port
        # where there is no screen, a browser would be one for text, in this terminal
        screen = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
        shown = bool(browser and screen) and webbrowser.open(address)
        typer.echo(
            (f"Opened {connection.url}{path} in a browser." if shown else f"Open {address}")
            + ("" if shown else " (once, within 10 minutes)")
            + f"\nFrom another machine, first: ssh -L {port}:127.0.0.1:{port} {os.uname().nodename}"
        )
        if wait:
            # handlers, not sigwait: another thread may be the one that gets the signal
            stopped = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            typer.echo("Ctrl-C ends this.")
            stopped.wait()


def _page_path(connection: Connection, what: str) -> str:
    """Return the path of the page of a collection, a repo, or an address of a page."""
    from urllib.parse import urlsplit

    from factory.errors import InputError
    from factory.localhub.launcher import request

    if what.startswith(("/", "http://", "https://")):
        parts = urlsplit(what)
        return parts.path + (f"?{parts.query}" if parts.query else "")
    for kind, at in {"collection": "collections/", **_ADDRESSES}.items():
        if what and request(connection, "GET", f"/api/{kind}s/{what}")[0] == 200:
            return f"/{at}{what}"
    if what:
        raise InputError(
            f"the local hub has no collection or repo {what!r}", "factory hub ls lists them"
        )
    return "/"


@hub.command()
def ls(json_: Json = False) -> None:
    """List the collections and repos of the local hub."""
    from factory.hub.session import session

    with session(None) as (_, the_hub):
        shelves = the_hub.every_collection()
        repos = {kind: the_hub.names(kind) for kind in _ADDRESSES}
    if json_:
        typer.echo(json.dumps({"collections": shelves, **{f"{k}s": v for k, v in repos.items()}}))
        return
    shelved = {(kind, repo) for shelf in shelves.values() for repo, kind in shelf.items()}
    for slug, shelf in shelves.items():
        typer.echo(slug)
        for repo, kind in shelf.items():
            typer.echo(f"  {_ADDRESSES[kind]}{repo}")
    unshelved = [(k, r) for k, names in repos.items() for r in names if (k, r) not in shelved]
    if unshelved:
        typer.echo("in no collection")
    for kind, repo in unshelved:
        typer.echo(f"  {_ADDRESSES[kind]}{repo}")
    if not shelves and not unshelved:
        typer.echo("nothing yet: factory run RECIPE publishes here, factory pull brings in repos")


@hub.command()
def status(json_: Json = False) -> None:
    """Show whether the local hub is running, its address and its store."""
    from factory.localhub.launcher import running

    root = home_path() / "hub"
    connection = running(root)
    state = {"running": connection is not None, "store": str(root)}
    if connection is not None:
        state["url"] = connection.url
    if json_:
        typer.echo(json.dumps(state))
    else:
        where = f"at {connection.url}" if connection else "not running (it starts when needed)"
        typer.echo(f"local hub: {where}\nstore: {root}\ntoken: {root / 'token'} (yours alone)")


@hub.command()
def gc(
    remove: Annotated[bool, typer.Option("--remove", help="Remove; default: count.")] = False,
    grace_hours: Annotated[float, typer.Option(help="Keep younger objects.")] = 24,
    json_: Json = False,
) -> None:
    """Remove objects that no branch, tag or pulled commit reaches."""
    counts = _ask("gc", {"remove": remove, "grace": int(grace_hours * 3600)})
    if json_:
        typer.echo(json.dumps(counts))
        return
    typer.echo(
        f"{counts['commits']} commits, {counts['trees']} directories, {counts['contents']} "
        f"contents of {counts['size'] / 1e6:.1f} MB "
        + ("removed" if remove else "removable: --remove")
    )


@hub.command()
def fsck(json_: Json = False) -> None:
    """Verify the hash of every object in the store."""
    from factory.errors import HubError, visible
    from factory.localhub.launcher import HubDamagedError

    report = _ask("fsck", {})
    if json_:
        typer.echo(json.dumps(report))
    else:
        typer.echo(
            "{contents} contents, {directories} directories and {commits} commits verified".format(
                **report
            )
        )
        if report["trusted"]:
            typer.echo(f"{report['trusted']} pulled commits have the ids that another hub told")
        for problem in report["problems"]:
            typer.echo(visible(problem))  # with names of files, which may be anybody's
    if report["problems"]:
        again = all(_UPLOADABLE.search(problem) for problem in report["problems"])
        raise HubError(
            f"the store has {len(report['problems'])} problems",
            "upload or pull the damaged files again" if again else HubDamagedError.fix,
        )


@hub.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, or an earlier backup.")],
    json_: Json = False,
) -> None:
    """Make a whole copy of the store, also while it is used.

    An earlier copy is brought up to date.

    To go back to it, put the folder in the place of the store.
    """
    from factory.errors import HubError

    report = _ask("backup", {"folder": str(folder.absolute())})
    if json_:
        typer.echo(json.dumps(report))
    else:
        typer.echo(
            f"{folder}: the database and {report['contents']} contents,"
            f" {report['copied'] / 1e6:.1f} MB copied"
        )
    if report["problems"]:
        raise HubError("; ".join(report["problems"]), "mend the store, then make the backup again")


@hub.command()
def token(
    new: Annotated[
        str | None, typer.Option("--new", metavar="USER", help="Make a token for this user.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="It may write, not only read.")] = False,
    revoke: Annotated[
        str | None, typer.Option(metavar="ID|USER", help="Revoke a token, or all of a user.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the tokens of the local hub, make one, or revoke some.

    A new token is shown once: the hub keeps only its hash.
    """
    role = "write" if write else "read"
    body = {"create": new, "role": role, "revoke": revoke}
    reply = _ask("tokens", body, "factory hub token lists them; see factory hub token --help")
    if json_:
        typer.echo(json.dumps(reply))
    elif new is not None:
        typer.echo(reply["token"])
    elif revoke is not None:
        typer.echo(f"{reply['revoked']} revoked")
    else:
        typer.echo("\n".join(f"{t['id']}  {t['role']:5}  {t['user']}" for t in reply["tokens"]))


@hub.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    what: Annotated[list[str] | None, typer.Argument(help="Collections and repos.")] = None,
) -> None:
    """Write a collection with its history to a file.

    For a machine without a network. A recipe stands for its collection.
    """
    from factory.cli.transfer import TransferOptions, carry, local_hub, transfer
    from factory.localhub.launcher import await_end

    with tempfile.TemporaryDirectory(dir=_folder_of(file)) as folder:
        store = Path(folder) / "hub"
        with local_hub() as local, local_hub(store) as other:
            source, target = (local.url, local.token), (other.url, other.token)
            options, staging = TransferOptions(tuple(what or ())), Path(folder) / "sync"
            with transfer(source, target, options, staging=staging, keeps_ids=True) as work:
                carry(work, options)
        await_end(store)
        archive = Path(folder) / "file"
        with tarfile.open(archive, "w") as tar:
            tar.add(store / "hub.sqlite", "hub.sqlite")
            tar.add(store / "blobs", "blobs")
        archive.rename(file)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@hub.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that factory hub export wrote.")],
) -> None:
    """Read a collection from a file into the local hub.

    Every hash is verified.
    """
    from factory.cli.transfer import TransferOptions, carry, everything, local_hub, transfer
    from factory.errors import HubError, InputError
    from factory.localhub.launcher import await_end, request

    with tempfile.TemporaryDirectory(dir=_folder_of(file)) as folder:
        store = Path(folder) / "hub"
        try:
            with tarfile.open(file, "r:") as tar:  # not compressed: it is as large as what it holds
                for member in tar:  # nothing in a file from elsewhere may land beside the store
                    if member.issparse():
                        raise tarfile.ReadError(f"{member.name} is not stored whole")
                    if member.isreg() and _EXPORTED.fullmatch(member.name):
                        path = store / member.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("wb") as out:
                            shutil.copyfileobj(tar.extractfile(member) or io.BytesIO(), out)
        except (OSError, tarfile.TarError) as error:
            raise InputError(
                f"{file} is not a complete export: {error}", "copy or export it again"
            ) from None
        with ExitStack() as stack:
            stack.callback(await_end, store)  # its server writes there to the end
            try:
                other = stack.enter_context(local_hub(store))
            except HubError as error:
                raise InputError(
                    f"{file} cannot be opened: {error.what}", "copy or export it again"
                ) from None
            local = stack.enter_context(local_hub())
            _, report = request(other, "POST", "/api/local/fsck", {"quick": True})
            if problems := report.get("problems", [str(report)]):
                raise InputError(f"{file} is damaged: {problems[0]}", "copy or export it again")
            source, target = (other.url, other.token), (local.url, local.token)
            staging = Path(folder) / "sync"
            with transfer(
                source, target, TransferOptions(), staging=staging, keeps_ids=True
            ) as work:
                carry(work, TransferOptions(everything(work)))


def _ask(
    what: str, body: Mapping[str, object], fix: str = "see factory hub --help"
) -> dict[str, Any]:
    """Request maintenance from the server, since no other process may open its store."""
    from factory.cli.transfer import local_hub
    from factory.errors import HubError
    from factory.localhub.launcher import request

    with local_hub() as connection:
        status, reply = request(connection, "POST", f"/api/local/{what}", {**body})
    if status != 200:
        raise HubError(f"the local hub refused: {reply.get('error')}", fix)
    return reply


def _folder_of(file: Path) -> Path:
    """Return the folder of a file. Raises InputError if it does not exist."""
    from factory.errors import InputError

    folder = file.absolute().parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", "make it, or choose another file")
    return folder
