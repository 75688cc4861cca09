"""Steps where there is no hub: what is gathered, what stands in its place, and that a step made
there is the same step."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from factory.artifacts.manifest import read_manifest
from factory.artifacts.resources import shipped
from factory.artifacts.tables import read_slice
from factory.artifacts.workdir import Home
from factory.errors import FactoryError, HubError, RecipeError, StageError, WorkError
from factory.execution import bundle, resolve, run
from factory.execution.log import LogReporter
from factory.execution.offline_hub import Offline
from factory.planning.plan import Inventory, State, plan
from factory.planning.recipe import Recipe, load
from tests.support.builders import by_name, demo, lock_of

SILENT = LogReporter(quiet=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("recipes").glob("*.yaml")))
def test_a_recipe_that_was_written_down_is_the_same_recipe(name):
    recipe = load(name).recipe
    again = Recipe.model_validate_json(recipe.model_dump_json(by_alias=True))
    assert again == recipe
    pins = lock_of(recipe)
    assert [(s.name, s.fingerprint) for s in plan(again, pins, Inventory())] == [
        (s.name, s.fingerprint) for s in plan(recipe, pins, Inventory())
    ]


@pytest.fixture
def gathered(tmp_path, hub):
    """The questions of a small recipe, gathered and brought from a real local hub."""
    recipe = tmp_path / "recipe" / "small.yaml"
    recipe.parent.mkdir()
    lines = [json.dumps({"id": f"q{n}", "prompt": f"question {n}"}) for n in range(4)]
    (recipe.parent / "rows.jsonl").write_text("\n".join(lines))
    recipe.write_text(
        f"name: {tmp_path.name}\norg: local\nlanguages: [en]\n"
        "license: {id: apache-2.0, because: a test}\nmodels: {policy: local/tiny-random-llama}\n"
        "stages:\n  prompts: {source: rows.jsonl}\n  generate: {n: 1}\n"
    )
    loaded, home = load(str(recipe)), Home(tmp_path / "home")
    pins, _ = resolve.resolve(loaded, hub, home, lambda text: None)
    whole_plan = resolve.plan(loaded, pins, hub, home)
    steps = whole_plan.steps
    directory = tmp_path / "record"
    directory.mkdir()
    names = [step.name for step in steps]
    given = bundle.gather(loaded, pins, whole_plan.inventory, home, steps, names, directory)
    assert [one.name for one in given.wanting()] == ["local/tiny-random-llama"]
    return bundle.bring(given, hub, directory), directory, recipe


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_step_runs_without_a_socket_and_is_the_same_step(gathered, no_sockets):
    given, directory, recipe = gathered
    given = bundle.read(directory)
    (recipe.parent / "rows.jsonl").write_text("")  # edited while it waits in the queue
    recipe.write_text("name: other\n")
    run.run_offline(given, SILENT, "prompts")
    work = run.work_directory(given, "prompts")
    manifest = read_manifest(work.artifact)
    assert manifest.rows().out == 4
    rows = read_slice(work.artifact, "en", "prompts")
    assert set(rows["source_dataset"].to_pylist()) == {"rows.jsonl"}  # as in a run with a hub
    steps = by_name(plan(given.recipe, given.lock, Inventory()))
    assert manifest.fingerprint == steps["prompts"].fingerprint
    run.run_offline(given, SILENT, "prompts")  # again: it is made
    later = resolve.plan(given.loaded(), given.lock, Offline(given), Home(given.home))
    found = by_name(later.steps)
    assert found["prompts"].state is State.PUBLISH


def test_a_step_whose_input_is_not_made_and_a_seal_without_shards_fail(gathered, no_sockets):
    given, _, _ = gathered
    with pytest.raises(FactoryError, match="prompts"):
        run.run_offline(given, SILENT, "generate", part=(0, 2))
    run.run_offline(given, SILENT, "prompts")
    with pytest.raises(StageError, match="all shards are missing"):
        run.run_offline(given, SILENT, "generate", seal=True)


def test_a_file_that_changed_under_its_name_is_refused(gathered):
    given, _, _ = gathered
    [copy] = given.files.values()
    copy.write_text("other\n")
    with pytest.raises(RecipeError, match="not what was submitted"):
        run.run_offline(given, SILENT, "prompts")


def test_what_is_sealed_is_published_later_and_nothing_else_runs(gathered, hub):
    given, _, recipe = gathered
    run.run_offline(given, SILENT, "prompts")
    steps = by_name(run.publish(load(str(recipe)), hub, Home(given.home), SILENT))
    assert steps["prompts"].state is State.REUSE
    assert steps["generate"].state is State.RUN


def test_what_stands_in_the_hubs_place_opens_nothing(gathered, no_sockets):
    given, _, _ = gathered
    offline = Offline(given)
    [model] = given.repos
    assert offline.fetch(model.name, "model", model.revision, only=["*.json"]) == model.path
    assert offline.pin(model.name, "model", "main") == (model.revision, model.content)
    assert offline.has(model.name, "model", model.revision)
    asks = [
        lambda: offline.fetch("org/other", "model", "main"),
        lambda: offline.read("org/other", "model", "main", "config.json"),
        lambda: offline.collect("t", "o", False, "", []),
        lambda: offline.paths(model.name, "model", "main"),
        lambda: offline.publish(Path(), None, "r", "model", False),  # type: ignore[arg-type]
    ]
    for ask in asks:
        with pytest.raises(HubError, match="no hub on this node"):
            ask()


def test_a_model_that_was_brought_and_is_gone_is_named_with_its_path(gathered, tmp_path):
    given, _, _ = gathered
    [model] = given.repos
    gone = model.model_copy(update={"path": tmp_path / "nowhere"})
    offline = Offline(given.model_copy(update={"repos": (gone,)}))
    with pytest.raises(HubError, match="nowhere"):
        offline.fetch(model.name, "model", model.revision)


def test_provisions_that_are_damaged_or_absent_are_said(tmp_path):
    with pytest.raises(WorkError, match="no provisions"):
        bundle.read(tmp_path)
    (tmp_path / bundle.FILE).write_text("{}")
    with pytest.raises(WorkError):
        bundle.read(tmp_path)


def test_a_name_that_is_not_pinned_is_to_be_pulled(tmp_path):
    loaded = load("demo")
    pins = lock_of(demo()).model_copy(update={"pins": {}})
    steps = plan(loaded.recipe, pins, Inventory())
    with pytest.raises(HubError, match="factory pull"):
        bundle.gather(loaded, pins, Inventory(), Home(tmp_path), steps, ["generate"], tmp_path)
