"""The one table of layers, held against the syntax trees: nothing here is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
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
NOT_FOR_STAGES = tuple(
    f"factory.artifacts.{name}"
    for name in ("workdir", "licenses", "citations", "samples", "front_matter")
)
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


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def shown(imports: list[Import]) -> list[str]:
    return sorted({f"{one.module} imports {one.name}" for one in imports})


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


def importers(package: str) -> set[str]:
    """Who imports a package from outside, at whatever depth."""
    return {found.module for found in ALL if found.package == package}


def test_there_is_something_to_look_at():
    assert len(FILES) > 40
    assert Import("factory.training.loop", "torch", False, False) in ALL
    assert Import("factory.planning.plan", "factory.artifacts.manifest", True, False) in ALL
    assert Import("factory.hub.session", "factory.hub.client", True, True) in ALL
    assert "factory.pairs.pair" in STAGES and "factory.training.train" in STAGES


def test_every_folder_has_a_layer():
    assert {folder(name) for name in FILES} == {"", "localhub", *RANK}


def test_no_import_runs_up_a_layer():
    assert not shown(
        [
            one
            for one in ALL
            if one.package == "factory"
            and folder(one.module) in RANK
            and folder(one.name) in RANK
            and folder(one.name) != folder(one.module)
            and RANK[folder(one.name)] >= RANK[folder(one.module)]
            and (folder(one.module), folder(one.name)) not in BESIDE
        ]
    )


def test_the_package_itself_offers_the_python_interface_and_nothing_else():
    assert {one.name for one in ALL if one.module == "factory" and one.package == "factory"} == {
        "factory.release.api"
    }


def test_no_stage_imports_another_and_no_folder_a_stage_of_another():
    assert not shown(
        [
            one
            for one in ALL
            if one.name in STAGES
            and folder(one.module) in ("stage", *LINE)
            and (one.module in STAGES or folder(one.module) != folder(one.name))
        ]
    )


def test_stages_see_no_work_directory_and_no_words_of_cards():
    assert not shown(
        [
            one
            for one in ALL
            if folder(one.module) in ("stage", *LINE) and within(one.name, *NOT_FOR_STAGES)
        ]
    )


def test_the_list_of_stages_imports_them_all():
    listed = {one.name for one in ALL if one.module == "factory.planning.stages"} & FILES.keys()
    assert listed - {"factory.stage.stage"} == STAGES


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("vllm", {"factory.engines.vllm"}),
        ("trl", {"factory.training.trainers"}),
        (
            "peft",
            {
                "factory.training.trainers",
                "factory.training.adapters",
                "factory.engines.transformers",
            },
        ),
        *(
            (
                package,
                {
                    "factory.engines.transformers",
                    "factory.engines.embedder",
                    "factory.engines.checkpoint",
                    *(
                        f"factory.training.{name}"
                        for name in (
                            "adapters",
                            "behaviour",
                            "launch",
                            "loop",
                            "probe",
                            "trainers",
                        )
                    ),
                    "factory.engines.chat_template",
                    "factory.execution.diff",
                    "factory.execution.builtin_models",
                },
            )
            for package in ("torch", "transformers")
        ),
        (
            "huggingface_hub",
            {
                "factory.hub.client",
                "factory.hub.sync.side",
                "factory.hub.sync.destination",
                "factory.hub.sync.mirror",
                "factory.hub.session",
                "factory.hub.connection",
                "factory.hub.environment",
                "factory.hub.http_guard",
            },
        ),
        ("datasets", {"factory.training.dataset", "factory.stage.readers"}),
        ("py3langid", {"factory.language.detect"}),
        ("babel", {"factory.language.languages"}),
        ("english_words", {"factory.language.english"}),
        (
            "jinja2",
            {
                "factory.reports.cards.card",
                "factory.engines.chat_template",
                "factory.reports.page.page",
                "factory.slurm.script",
                "factory.pages.render",
            },
        ),
        *((package, {"factory.pages.card"}) for package in ("nh3", "markdown_it")),
        ("matplotlib", {"factory.reports.cards.figures"}),
        ("euroeval", set()),
        *(
            (package, {n for n in FILES if within(n, "factory.cli")})
            for package in ("typer", "rich")
        ),
    ],
)
def test_each_library_has_its_rooms(package, rooms):
    assert importers(package) <= rooms


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
    assert not shown([i for i in ALL if i.package in HEAVY and i.at_top and not i.typing])


def test_the_local_hub_knows_nothing_of_the_rest():
    assert not shown(
        [
            found
            for found in ALL
            if within(found.module, "factory.localhub")
            and found.package == "factory"
            and not within(found.name, "factory.localhub")
        ]
    )


def test_of_the_local_hub_all_but_the_pages_know_the_launcher_and_only_where_a_hub_is_opened():
    outside = [
        found
        for found in ALL
        if within(found.name, "factory.localhub") and not within(found.module, "factory.localhub")
    ]
    assert outside
    outside = [found for found in outside if not within(found.module, "factory.pages")]
    assert {found.name for found in outside} == {"factory.localhub.launcher"}
    opening = ("factory.hub.session", "factory.cli")
    assert not shown([found for found in outside if not within(found.module, *opening)])


def test_pages_know_the_store_and_manifests_and_no_client_of_a_hub():
    known = ("artifacts", "errors", "reports", "localhub", "pages", "execution.diff",
             "slurm.status", "slurm.submission")  # fmt: skip
    allowed = [f"factory.{name}" for name in known]
    assert not shown(
        [
            found
            for found in ALL
            if within(found.module, "factory.pages")
            and (found.package in ("huggingface_hub", "datasets") or found.package == "factory")
            and not within(found.name, *allowed)
        ]
    )


def test_the_pure_rooms_import_nothing_that_reaches_outside():
    pure = {
        f"factory.{name}"
        for name in ("pairs.rules", "pairs.normalize", "pairs.statistics", "rewards.audit",
                     "artifacts.hashing", "artifacts.manifest", "artifacts.licenses",
                     "artifacts.citations", "artifacts.front_matter", "artifacts.checkpoints",
                     "planning.plan", "planning.estimate", "slurm.sizes",
                     "reports.cards.card", "reports.cards.check", "reports.cards.markdown",
                     "reports.win_rates", "reports.benchmarks", "reports.results",
                     "reports.checkpoint_curves", "reports.learning", "reports.values",
                     "evaluation.judging.match", "evaluation.euroeval.suites",
                     "evaluation.euroeval.records", "evaluation.euroeval.deltas")
    }  # fmt: skip
    pure |= {
        name
        for name in FILES
        if within(name, "factory.reports.page", "factory.evaluation.statistics")
    }
    pure -= {
        "factory.reports.page.source",
        "factory.reports.page.page",
    }  # they read a hub, and templates
    assert pure <= FILES.keys()
    reaching = {"requests", "httpx", "urllib", "http", "subprocess", "sqlite3", "socket", "shutil",
                "tempfile", "huggingface_hub", "os"}  # fmt: skip
    assert not shown([i for i in ALL if i.module in pure and i.package in reaching])


def test_no_rule_is_got_around_by_importing_from_a_string():
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("__import__", "importlib.import_module"), module


def circles() -> list[list[str]]:
    """Every way back to a module along imports that run when modules are imported."""
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for found in ALL:
        if found.at_top and not found.typing and found.name in FILES:
            graph[found.module].add(found.name)
    found_circles: list[list[str]] = []
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found_circles.append([*trail[trail.index(module) :], module])
        elif module not in finished:
            for other in sorted(graph[module]):
                visit(other, [*trail, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
    return found_circles


def test_there_are_no_circles_of_imports():
    assert not [" -> ".join(circle) for circle in circles()]


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc", "core"}
    assert not [name for name in FILES if name.rpartition(".")[2] in empty]
