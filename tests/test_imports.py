"""The one table of layers, held against the syntax trees: nothing here is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A folder imports those below its own line, at whatever depth of a function.
LAYERS = (
    ("errors",),
    ("config", "language"),
    ("artifacts",),
    ("engines",),
    ("stage",),
    ("sampling", "pairs", "rewards", "training"),
    ("evaluation",),
    ("planning",),
    ("hub",),
    ("reports",),
    ("execution",),
    ("slurm", "release"),
    ("pages",),
    ("cli",),
)
# of the same line, one way: histograms of scores; a reward says how good a translation is
BESIDE = {("rewards", "pairs"), ("sampling", "rewards")}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LINE = ("sampling", "pairs", "rewards", "training", "evaluation")  # who has stages
# Of the artifacts, what a stage is handed and does not look for, and what only cards say.
NOT_FOR_STAGES = (
    "artifacts.workdir", "artifacts.licenses", "artifacts.citations", "artifacts.samples",
    "artifacts.front_matter",
)  # fmt: skip
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "matplotlib", "vllm"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    dotted(path): path
    for path in sorted((ROOT / "factory").rglob("*.py"))
    if "inside" not in path.parts  # read by EuroEval's own Python, never by ours
}


@dataclass(frozen=True)
class Import:
    """`module` imports `name`; `at_top` if that happens when `module` is imported, `typing` if
    only a type checker ever sees it."""

    module: str
    name: str
    at_top: bool
    typing: bool

    @property
    def package(self) -> str:
        """The outermost package of what is imported."""
        return self.name.partition(".")[0]

    def by(self, *places: str) -> bool:
        """Whether one of these modules or folders imports it."""
        return within(self.module, *places)

    def of(self, *places: str) -> bool:
        """Whether one of these modules or folders is imported."""
        return within(self.name, *places)


def imports(module: str) -> Iterator[Import]:
    """Every import statement of a module, at whatever depth."""

    def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        assert node.level == 0, f"{module} imports relatively"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in FILES else str(node.module)

    def walk(node: ast.AST, at_top: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(module, name, at_top, typing) for name in names(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_top = False
        checks = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, at_top, typing or (checks and name == "body"))

    yield from walk(ast.parse(FILES[module].read_text(encoding="utf-8")), True, False)


ALL = [found for module in FILES for found in imports(module)]


def within(name: str, *places: str) -> bool:
    """Whether a module of the package is one of these, or inside one: `hub.sync`, `cli`."""
    return any(f"{name}.".startswith(f"factory.{place}.") for place in places)


def forbid(condition: Callable[[Import], bool]) -> None:
    """Fail on the imports that meet a condition, which are named."""
    assert not sorted({f"{one.module} imports {one.name}" for one in ALL if condition(one)})


def folder(module: str) -> str:
    """The entry of the package that a module lies in: `engines`, `config`; empty for `factory`."""
    if module == "factory.__main__":
        return "cli"  # run as a module
    return module.removeprefix("factory").lstrip(".").partition(".")[0]


def stage_files() -> set[str]:
    """Modules that define a stage: a class that says `name: ... = "..."`, along the line."""
    return {
        module
        for module in FILES
        if folder(module) in LINE
        for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.bases
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and ast.unparse(line.target) == "name"
        and isinstance(line.value, ast.Constant)
    }


STAGES = stage_files()


def test_there_is_something_to_look_at():
    assert len(FILES) > 40
    assert Import("factory.training.loop", "torch", False, False) in ALL
    assert Import("factory.planning.plan", "factory.artifacts.manifest", True, False) in ALL
    assert Import("factory.hub.session", "factory.hub.client", True, True) in ALL
    assert "factory.pairs.pair" in STAGES and "factory.training.train" in STAGES


def test_every_folder_has_a_layer():
    assert {folder(name) for name in FILES} == {"", "localhub", *RANK}


def test_no_import_runs_up_a_layer():
    def runs_up(one: Import) -> bool:
        importer, imported = folder(one.module), folder(one.name)
        known = one.package == "factory" and {importer, imported} <= RANK.keys()
        if not known or importer == imported or (importer, imported) in BESIDE:
            return False
        return RANK[imported] >= RANK[importer]

    forbid(runs_up)


def test_the_package_itself_offers_the_python_interface_and_nothing_else():
    assert {one.name for one in ALL if one.module == "factory" and one.package == "factory"} == {
        "factory.release.api"
    }


def test_no_stage_imports_another_and_no_folder_a_stage_of_another():
    forbid(
        lambda one: (
            one.name in STAGES
            and one.by("stage", *LINE)
            and (one.module in STAGES or folder(one.module) != folder(one.name))
        )
    )


def test_stages_see_no_work_directory_and_no_words_of_cards():
    forbid(lambda one: one.by("stage", *LINE) and one.of(*NOT_FOR_STAGES))


def test_the_list_of_stages_imports_them_all():
    listed = {one.name for one in ALL if one.module == "factory.planning.stages"} & FILES.keys()
    assert listed - {"factory.stage.stage"} == STAGES


_TORCH = (
    "engines.chat_template engines.checkpoint engines.embedder engines.transformers "
    "execution.builtin_models execution.diff training.adapters training.behaviour training.launch "
    "training.loop training.probe training.trainers"
)
# Libraries, and the modules (or folders) that may import them at whatever depth.
ROOMS = {
    "vllm": "engines.vllm",
    "trl": "training.trainers",
    "peft": "training.trainers training.adapters engines.transformers",
    "torch": _TORCH,
    "transformers": _TORCH,
    "huggingface_hub": "hub.client hub.sync.side hub.sync.destination hub.sync.mirror hub.session "
    "hub.connection hub.environment hub.http_guard",
    "datasets": "training.dataset stage.readers",
    "py3langid": "language.detect",
    "babel": "language.languages",
    "english_words": "language.english",
    "jinja2": "reports.cards.card engines.chat_template reports.page.page slurm.script "
    "pages.render",
    "nh3": "pages.card",
    "markdown_it": "pages.card",
    "matplotlib": "reports.cards.figures",
    "euroeval": "",
    "typer": "cli",
    "rich": "cli",
}


@pytest.mark.parametrize(("package", "rooms"), ROOMS.items())
def test_each_library_has_its_rooms(package, rooms):
    forbid(lambda one: one.package == package and not one.by(*rooms.split()))


def test_a_session_asks_the_hubs_library_for_the_token_alone():
    source = FILES["factory.hub.session"].read_text(encoding="utf-8")
    used = [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "huggingface_hub"
    ]
    assert used == ["get_token"]
    assert "from huggingface_hub" not in source


def test_heavy_libraries_are_never_imported_with_a_module():
    forbid(lambda one: one.package in HEAVY and one.at_top and not one.typing)


def test_the_local_hub_knows_nothing_of_the_rest():
    forbid(lambda one: one.by("localhub") and one.package == "factory" and not one.of("localhub"))


def test_of_the_local_hub_all_but_the_pages_know_the_launcher_and_only_where_a_hub_is_opened():
    forbid(
        lambda one: (
            one.of("localhub")
            and not one.by("localhub", "pages")
            and not (one.of("localhub.launcher") and one.by("hub.session", "cli"))
        )
    )
    assert any(one.of("localhub.launcher") and one.by("hub.session") for one in ALL)


def test_pages_know_the_store_and_manifests_and_no_client_of_a_hub():
    known = ("artifacts", "errors", "reports", "localhub", "pages", "execution.diff",
             "hub.environment", "slurm.status", "slurm.submission")  # fmt: skip
    ours = ("factory", "huggingface_hub", "datasets")
    forbid(lambda one: one.by("pages") and one.package in ours and not one.of(*known))


def test_the_pure_rooms_import_nothing_that_reaches_outside():
    pure = (
        "pairs.rules", "pairs.normalize", "pairs.statistics", "rewards.audit", "artifacts.hashing",
        "artifacts.manifest", "artifacts.licenses", "artifacts.citations", "artifacts.front_matter",
        "artifacts.checkpoints", "planning.plan", "planning.estimate", "slurm.sizes",
        "reports.cards.card", "reports.cards.check", "reports.cards.markdown", "reports.win_rates",
        "reports.benchmarks", "reports.results", "reports.checkpoint_curves", "reports.learning",
        "reports.values", "reports.page", "evaluation.judging.match", "evaluation.euroeval.suites",
        "evaluation.euroeval.records", "evaluation.euroeval.deltas", "evaluation.statistics",
    )  # fmt: skip
    assert all(any(within(name, room) for name in FILES) for room in pure)
    reads = ("reports.page.source", "reports.page.page")  # a hub, and templates
    reaching = {"requests", "httpx", "urllib", "http", "subprocess", "sqlite3", "socket", "shutil",
                "tempfile", "huggingface_hub", "os"}  # fmt: skip
    forbid(lambda one: one.by(*pure) and not one.by(*reads) and one.package in reaching)


def test_no_rule_is_got_around_by_importing_from_a_string():
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("__import__", "importlib.import_module"), module


def test_there_are_no_circles_of_imports():
    """Along imports that run when modules are imported. A circle is named in the error."""
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for one in ALL:
        if one.at_top and not one.typing and one.name in FILES:
            graph[one.module].add(one.name)
    TopologicalSorter(graph).prepare()


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc", "core"}
    assert not [name for name in FILES if name.rpartition(".")[2] in empty]
