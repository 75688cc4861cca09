"""factory doctor: check this machine or a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import Json

if TYPE_CHECKING:
    from factory.errors import Check


SiteName = Annotated[str | None, typer.Option("--site", help="Check this cluster instead.")]
JobToo = Annotated[bool, typer.Option("--job", help="With --site: also from inside jobs.")]


@app.command()
def doctor(
    hub: Annotated[
        str | None, typer.Option("--hub", help="The hub you push to, if not huggingface.co.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also import vLLM, which is slow.")] = False,
    install: Annotated[
        str | None,
        typer.Option(
            "--install",
            help="Install an extra environment: euroeval, euroeval-18, each with -vllm; gguf.",
        ),
    ] = None,
    site: SiteName = None,
    job: JobToo = False,
    json_: Json = False,
) -> None:
    """Check this machine: one line for each check, with a fix. Exits with 1 if a check failed."""
    if install is not None:
        _install(install)
        return
    from factory.hub.environment import PUBLIC
    from factory.hub.session import address

    results, remote = [], address(PUBLIC if hub is None else hub)
    for check in _site(site, job) if site else _checks(remote, hub is not None, deep):
        results.append(check)
        if not json_:
            _tell(check)
    if json_:
        typer.echo(json.dumps([asdict(check) for check in results], indent=1))
    if any(check.state == "failed" for check in results):
        raise typer.Exit(1)


def _tell(check: Check) -> None:
    from factory.errors import redact

    typer.echo(redact(f"{check.state:8} {check.name}: {check.seen}"))
    if check.state != "ok":
        typer.echo(redact(f"         fix: {check.fix}"))


def _checks(remote: str, required: bool, deep: bool) -> Iterator[Check]:
    """Yield every check, in the order in which things are needed."""
    from factory.evaluation.euroeval import environment
    from factory.execution import doctor as machine
    from factory.hub.session import remote_token

    yield machine.check_python()
    yield from machine.check_names()
    yield from machine.check_packages()
    yield machine.check_vllm(deep)
    yield from machine.check_gpus()
    yield from environment.check()
    yield from machine.check_disk(home_path())
    yield _local_hub(home_path() / "hub")
    yield from machine.check_hub(remote, remote_token(remote), required)


def _site(site: str, job: bool) -> list[Check]:
    from factory.slurm import doctor as look
    from factory.slurm import site as sites

    return look.check(sites.load(site, home_path()), home_path(), job)


def _install(name: str) -> None:
    from factory.evaluation.euroeval import environment

    if name == "gguf":
        from factory.release import forms

        typer.echo(f"llama.cpp's converter is at {forms.install_converter(typer.echo)}")
        return
    typer.echo(f"EuroEval is at {environment.install(name, typer.echo)}")


def _local_hub(root: Path) -> Check:
    """Check that the local hub starts and that its store is whole, but for the bytes of contents:
    that of FACTORY_HOME, or else a temporary one."""
    import tempfile

    from factory.errors import Check
    from factory.localhub.launcher import HubDamagedError, HubStartError, connect, request

    place = next(path for path in (root, *root.parents) if path.is_dir())
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as folder:
            with connect(root if place == root else Path(folder)) as connection:
                seconds = time.monotonic() - began
                reply = request(connection, "POST", "/api/local/fsck", {"quick": True})[1]
            if place != root:
                from factory.localhub.launcher import await_end

                await_end(Path(folder))
    except (HubStartError, OSError) as error:
        reason = " ".join(str(error).split())
        fix = "see its last lines above, server.log, and the checks of the disk"
        if isinstance(error, HubDamagedError):
            fix = error.fix
        return Check("local hub", "failed", reason, fix)
    if problems := reply.get("problems"):
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        fix = "factory hub fsck names all; upload or pull these again, or put a backup in its place"
        return Check("local hub", "failed", f"its store is damaged: {problems[0]}{more}", fix)
    return Check("local hub", "ok", f"started and answered in {seconds:.1f} s")
