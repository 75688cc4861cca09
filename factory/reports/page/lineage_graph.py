"""Lineage graph: steps in columns, each right of its inputs. Pure.

An arrow implied by a longer path is left out (prompts to scores, where answers lie between): a
graph of all arrows is unreadable. Outside sources are drawn beside their first reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from factory.reports import formatting
from factory.reports.page.gather import PublishedStep
from factory.reports.page.lineage import origin, read_by, reads
from factory.reports.page.svg import cut, element, text_node, tip

_WIDE, _HIGH = 108.0, 44.0  # px, a node
_ACROSS, _DOWN = 25.0, 13.0  # px between columns, and between nodes of one
_EDGE = 4.0  # px of air around the picture
_SWEEPS = 6  # there and back, to untangle the arrows
_WAY = 10.0  # px, the height of a place that an arrow passes through


@dataclass
class Node:
    """A node of the graph; `reads` are keys of nodes. One without a label is a waypoint of an
    arrow that passes its column."""

    key: str
    label: str = ""
    below: str = ""
    family: str = ""
    anchor: str | None = None
    tooltip: str = ""
    reads: list[str] = field(default_factory=list)
    column: int = 0
    y: float = 0.0

    @property
    def high(self) -> float:
        return _HIGH if self.label else _WAY


def draw(published: Sequence[PublishedStep]) -> Markup:
    """Draw the graph. Nodes of the collection link to their row on the page."""
    ways = arrange(graph(published))
    high = max((node.y + node.high for node in ways.values()), default=0.0) + _EDGE
    columns = 1 + max((node.column for node in ways.values()), default=0)
    wide = 2 * _EDGE + columns * (_WIDE + _ACROSS) - _ACROSS
    arrows = [_arrow(ways[read], node) for node in ways.values() for read in node.reads]
    boxes = [_box(node) for node in ways.values() if node.label]
    names = ", ".join(f"{step.number} {step.manifest.step}" for step in published)
    return element(
        "svg",
        *arrows,
        *boxes,
        class_="lineage",
        role="group",
        aria_label=f"Steps in order: {names}",
        width=wide,
        height=high,
        view_box=f"0 0 {wide:.0f} {high:.0f}",
    )


def graph(published: Sequence[PublishedStep]) -> dict[str, Node]:
    """Return the nodes and their inputs, without arrows that a longer path implies."""
    steps = {step.manifest.repo: step for step in published}
    nodes: dict[str, Node] = {}
    outside: dict[str, dict[str, str]] = {}  # key to names, each with what it is
    for step in published:
        manifest = step.manifest
        models = {record.digest for record in manifest.models}
        inputs: dict[str, None] = {}
        for record in reads(manifest):
            if record.repo in steps and record.repo != manifest.repo:
                inputs[f"made {record.repo}"] = None
                continue
            # files of one step are one node; what has a revision is the same thing everywhere
            pinned = record.revision or record.tag or record.served
            kind = "model" if record.digest in models else "dataset" if pinned else "file"
            key = f"outside {origin(record).partition('@')[0] if pinned else manifest.repo}"
            names = outside.setdefault(key, {})
            names[origin(record)] = kind
            inputs[key] = None
        nodes[f"made {manifest.repo}"] = Node(
            key=f"made {manifest.repo}",
            label=f"{step.number}  {manifest.step}",
            below=step.size,
            family=step.family,
            anchor=step.anchor,
            tooltip=f"{manifest.step}: {step.size} in {manifest.repo}\nread "
            + (formatting.listed(read_by(manifest)) or "nothing"),
            reads=list(inputs),
        )
    for key, names in outside.items():
        (first, kind), *other_names = names.items()
        nodes[key] = Node(
            key=key,
            label=first.partition("@")[0].rpartition("/")[2],
            below=formatting.plural(len(names), kind) if other_names else f"a {kind}",
            family="outside",
            tooltip="outside source: " + ", ".join(names),
        )
    _thin(nodes)
    return nodes


def arrange(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Place the nodes: each in a column right of its inputs, without overlap. Waypoints are
    added where an arrow passes a column; then each arrow is one column long."""
    _place(nodes)
    ways = _with_ways(nodes)
    _settle(_untangle(ways), ways)
    return ways


def _thin(nodes: Mapping[str, Node]) -> None:
    """Remove arrows to inputs that are also reached by a longer path."""
    above: dict[str, set[str]] = {}

    def ancestors(key: str, trail: tuple[str, ...] = ()) -> set[str]:
        if key not in above and key not in trail:
            above_node = set(nodes[key].reads)
            for read in nodes[key].reads:
                above_node |= ancestors(read, (*trail, key))
            above[key] = above_node
        return above.get(key, set())

    implied = {
        node.key: {
            read
            for read in node.reads
            if any(read in ancestors(other) for other in node.reads if other != read)
        }
        for node in nodes.values()
    }
    for node in nodes.values():
        node.reads = [read for read in node.reads if read not in implied[node.key]]


def _place(nodes: Mapping[str, Node]) -> None:
    """Set columns: each node right of its inputs; first nodes just left of their reader."""
    for _ in nodes:
        for node in nodes.values():
            node.column = max((nodes[r].column + 1 for r in node.reads), default=0)
    readers = _readers(nodes)

    def begins(node: Node) -> bool:
        return all(nodes[read].family == "outside" for read in node.reads)

    for inside in (True, False):  # first the steps that begin a line, then what they read
        for node in nodes.values():
            if (node.family != "outside") is inside and begins(node) and node.key in readers:
                node.column = max(min(r.column for r in readers[node.key]) - 1, node.column)


def _readers(nodes: Mapping[str, Node]) -> dict[str, list[Node]]:
    """Return the nodes that read each node, by its key."""
    readers: dict[str, list[Node]] = {}
    for node in nodes.values():
        for read in node.reads:
            readers.setdefault(read, []).append(node)
    return readers


def _with_ways(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the nodes with a waypoint in every column that an arrow passes."""
    with_ways = dict(nodes)
    for node in nodes.values():
        through = []
        for read in node.reads:
            last = read
            for column in range(nodes[read].column + 1, node.column):
                key = f"way {read} {column}"  # arrows from one node share their way
                with_ways.setdefault(key, Node(key=key, reads=[last], column=column))
                last = key
            through.append(last)
        node.reads = through
    return with_ways


def _untangle(nodes: Mapping[str, Node]) -> list[list[Node]]:
    """Return the columns, each ordered by the positions of its nodes' neighbours."""
    columns: list[list[Node]] = []
    for node in nodes.values():
        while len(columns) <= node.column:
            columns.append([])
        columns[node.column].append(node)
    readers = {key: [node.key for node in by] for key, by in _readers(nodes).items()}
    for sweep in range(_SWEEPS):
        back = bool(sweep % 2)
        for column in reversed(columns) if back else columns:
            places = {node.key: i / len(c) for c in columns for i, node in enumerate(c)}
            neighbours = {n.key: (readers.get(n.key, []) if back else n.reads) for n in column}
            column.sort(key=lambda n: _mean([places[k] for k in neighbours[n.key]], places[n.key]))
    return columns


def _settle(columns: Sequence[Sequence[Node]], nodes: Mapping[str, Node]) -> None:
    """Set heights: each node as near to its neighbours as the order of its column allows."""
    for column in columns:
        y = _EDGE
        for node in column:
            node.y, y = y, y + node.high + _DOWN
    readers = _readers(nodes)
    for sweep in range(_SWEEPS * 2):
        back = bool(sweep % 2)
        for column in reversed(columns) if back else columns:
            targets = []
            for node in column:
                neighbours = readers.get(node.key, []) if back else [nodes[r] for r in node.reads]
                middle = _mean([n.y + n.high / 2 for n in neighbours], node.y + node.high / 2)
                targets.append(middle - node.high / 2)
            _spread(column, targets)
    top = min((n.y for n in nodes.values()), default=_EDGE) - _EDGE
    for node in nodes.values():
        node.y -= top


def _spread(column: Sequence[Node], targets: Sequence[float]) -> None:
    """Place nodes near their targets, in order and without touching. Nodes that would touch form
    a block, placed where its members' targets are on average."""
    blocks: list[tuple[float, float, list[Node]]] = []  # sum of wants less offset, height, nodes
    for node, target in zip(column, targets, strict=True):
        total, high, inside = target, node.high + _DOWN, [node]
        while blocks and blocks[-1][0] / len(blocks[-1][2]) + blocks[-1][1] > total / len(inside):
            before, before_high, before_inside = blocks.pop()
            total = before + total - before_high * len(inside)
            high, inside = before_high + high, before_inside + inside
        blocks.append((total, high, inside))
    for total, _, inside in blocks:
        y = total / len(inside)
        for node in inside:
            node.y, y = y, y + node.high + _DOWN


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _left(node: Node) -> float:
    return _EDGE + node.column * (_WIDE + _ACROSS)


def _arrow(source: Node, target: Node) -> Markup:
    start, end = _left(source) + _WIDE, _left(target)
    y1, y2 = source.y + source.high / 2, target.y + target.high / 2
    bend = (end - start) / 2
    path = f"M{start:.1f} {y1:.1f}C{start + bend:.1f} {y1:.1f} {end - bend:.1f} {y2:.1f} "
    path += f"{end:.1f} {y2:.1f}"
    if not target.label:  # and on through the column
        path += f"H{end + _WIDE:.1f}"
    tip_ = f"M{end - 5:.1f} {y2 - 3.5:.1f}L{end:.1f} {y2:.1f}L{end - 5:.1f} {y2 + 3.5:.1f}"
    return element("path", d=path + (tip_ if target.label else ""), class_="arrow")


def _box(node: Node) -> Markup:
    x, room = _left(node), _WIDE - 18
    size = 12.0 if node.anchor else 10.4
    label, below = cut(node.label, room, size), cut(node.below, room, 11)
    box = element(
        "g",
        tip(node.tooltip),
        element("rect", x=x, y=node.y, width=_WIDE, height=_HIGH, rx=5.0),
        element("text", text_node(label), x=x + 10, y=node.y + 18, class_="step"),
        element("text", text_node(below), x=x + 10, y=node.y + 34, class_="size"),
        class_=f"node {node.family}",
    )
    return element("a", box, href=f"#{node.anchor}") if node.anchor else box
