"""Who may import whom, held against the syntax trees: nothing here is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what stages are made of; the rest of factory/stages are stages
SHARED = {
    f"factory.stages.{name}"
    for name in (
        "contract",
        "scope",
        "needs",
        "job",
        "candidates",
        "choosing",
        "contestants",
        "preferred",
    )
}
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


def told(found: list[Import]) -> list[str]:
    return [f"{one.module} imports {one.name}" for one in found]


def importers(package: str) -> set[str]:
    """Who imports a package from outside, at whatever depth."""
    return {found.module for found in ALL if found.package == package}


def test_there_is_something_to_look_at():
    assert len(FILES) > 40
    assert Import("factory.training.loop", "torch", False, False) in ALL
    assert Import("factory.plan", "factory.artifact", True, False) in ALL
    assert Import("factory.cli.session", "factory.hub", True, True) in ALL


def test_stages_see_no_hub_run_card_recipe_or_command_line():
    forbidden = [
        f"factory.{name}"
        for name in ("hub", "execution", "cards.card", "record", "cli", "plan", "lock", "recipe",
                     "slurm", "sync", "report", "work", "pocket", "localhub")
    ]  # fmt: skip
    assert not told(
        [i for i in ALL if within(i.module, "factory.stages") and within(i.name, *forbidden)]
    )


def test_stages_do_not_see_each_other():
    inside = [
        found
        for found in ALL
        if within(found.module, "factory.stages")
        and found.module != "factory.stages"
        and within(found.name, "factory.stages")
        and found.name not in SHARED
    ]
    assert not told(inside)


def test_the_list_of_stages_imports_them_all():
    files = {name for name in FILES if within(name, "factory.stages")}
    files -= {"factory.stages", *SHARED}
    assert files == {found.name for found in ALL if found.module == "factory.stages"} & files


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
                    "factory.engines.checkpoint",
                    "factory.engines.continuous",
                    *(
                        f"factory.training.{name}"
                        for name in ("adapters", "launch", "loop", "probe", "trainers")
                    ),
                    "factory.chat",
                    "factory.difference",
                    "factory.pocket",
                },
            )
            for package in ("torch", "transformers")
        ),
        (
            "huggingface_hub",
            {
                "factory.hub",
                "factory.http_guard",
                "factory.sync.side",
                "factory.sync.destination",
                "factory.sync.mirror",
                "factory.cli.session",
                "factory.connection",
                "factory.quiet",
            },
        ),
        ("datasets", {"factory.training.rows", "factory.reading"}),
        ("py3langid", {"factory.language.language_id"}),
        ("english_words", {"factory.language.english"}),
        (
            "jinja2",
            {"factory.cards.card", "factory.chat", "factory.report.page", "factory.slurm.script"},
        ),
        ("matplotlib", {"factory.cards.figures"}),
        ("euroeval", set()),
    ],
)
def test_each_library_has_its_rooms(package, rooms):
    assert importers(package) <= rooms


def test_the_command_line_asks_the_hubs_library_for_the_token_alone():
    source = FILES["factory.cli.session"].read_text(encoding="utf-8")
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
    assert not told([i for i in ALL if i.package in HEAVY and i.at_top and not i.typing])


def test_the_local_hub_knows_nothing_of_the_rest():
    assert not told(
        [
            found
            for found in ALL
            if within(found.module, "factory.localhub")
            and found.package == "factory"
            and not within(found.name, "factory.localhub")
        ]
    )


def test_of_the_local_hub_the_rest_knows_the_launcher_and_only_from_the_command_line():
    outside = [
        found
        for found in ALL
        if within(found.name, "factory.localhub") and not within(found.module, "factory.localhub")
    ]
    assert outside
    assert {found.name for found in outside} == {"factory.localhub.launcher"}
    assert not told([found for found in outside if not within(found.module, "factory.cli")])


def test_the_pure_rooms_import_nothing_that_reaches_outside():
    pure = {
        f"factory.{name}"
        for name in ("pairs.pairing", "pairs.scales", "pairs.anatomy", "audit", "artifact",
                     "plan", "slurm.sizes", "cards.card", "cards.card_check", "cards.evaluation",
                     "cards.licenses", "cards.markdown", "cards.references",
                     "statistics.intervals", "statistics.rates", "statistics.length_control",
                     "statistics.table", "judging.matching",
                     "cards.benchmarks", "cards.results", "euroeval.suites", "euroeval.records",
                     "euroeval.deltas")
    }  # fmt: skip
    pure |= {name for name in FILES if within(name, "factory.report")}
    pure -= {"factory.report.source", "factory.report.page"}  # they read a hub, and templates
    assert pure <= FILES.keys()
    reaching = {"requests", "httpx", "urllib", "http", "subprocess", "sqlite3", "socket", "shutil",
                "tempfile", "huggingface_hub", "os"}  # fmt: skip
    assert not told([i for i in ALL if i.module in pure and i.package in reaching])


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
