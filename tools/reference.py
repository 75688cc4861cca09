"""The tables of docs/recipe.md, recipes/README.md and docs/slurm.md, from what they describe: every
knob from its pydantic field and the comment or docstring beside it, presets, and the packaged
recipes with what they would take, by rates that others measured.

`python -m tools.reference` writes them anew, between the markers.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from factory.artifacts.resources import recipes
from factory.config import EXTENT, GATE, REFERENCE, Mark
from factory.engines.choose import EngineKnobs
from factory.evaluation.euroeval.stage import Euroeval
from factory.planning.recipe import Recipe, load
from factory.planning.stages import STAGES
from factory.rewards.backends import BACKENDS
from factory.stage.models import ModelRef
from factory.stage.presets import PRESETS
from factory.stage.readers import View
from factory.stage.stage import From, How, Stage
from factory.training.settings import Running
from tests.support.stand_ins import UNSAID

# what several stages have in common: its own table, once
SHARED: tuple[type[BaseModel], ...] = (View, EngineKnobs, Running, ModelRef)
ROOT = Path(__file__).parent.parent
MARKS = {EXTENT.name: "how much", REFERENCE.name: "a name", GATE.name: "when to refuse"}
# What a knob means where no comment stands beside it.
PLAIN = {
    "alpha": "Scale of the adapter: its weights count alpha / r times",
    "attn": "Implementation of attention",
    "backend": "What runs the model under EuroEval",
    "beta": "How strongly the answers are kept near those of the reference",
    "chosen": "Filters of the chosen side",
    "chosen_below_quantile": "Drops a pair whose chosen score lies below it in its language",
    "disable_dropout": "No dropout while it trains",
    "dropout": "Share of the adapter's inputs that is left out at random",
    "dtype": "Number format of the weights; float32 for most CPUs",
    "engine": "What runs the model; auto takes vLLM on a GPU where it is installed",
    "epochs": "Passes over the rows",
    "few_shot": "Show the model a few solved examples of each task",
    "id": "As the Hub writes it, such as apache-2.0",
    "iterations": "Samples of each benchmark, for its interval",
    "label_smoothing": "Share of the pairs that is taken to be the wrong way round",
    "language": "match: only answers in the language of the prompt",
    "lora": "Size and dropout of the adapter",
    "margin_above": "Drops a pair whose scores lie farther apart",
    "margin_below": "Drops a pair whose scores lie nearer together",
    "max_context": "Tokens of prompt and answer together",
    "max_tokens": "Of an answer; what is longer is cut off",
    "method": "How adapters are combined, as PEFT calls it",
    "min_of": "Answers that are drawn, of which the lowest is taken",
    "on_blind": "What happens where the audit finds a language that the model cannot rank",
    "over": "Whether longer conversations are dropped",
    "r": "Rank of the adapter",
    "rejected": "Filters of the rejected side",
    "report_to": "Where curves are sent while it trains",
    "simpo_gamma": "SimPO's margin between both sides",
    "source_language": "Language that is translated from",
    "split": "Split of the dataset that is read",
    "strategy": "How a model is spread over GPUs: a copy each, or in parts",
    "temperature": "Of sampling; 0 is greedy",
    "top_p": "Nucleus sampling: the share of probability that tokens are drawn from",
    "weight_decay": "AdamW's",
}
_OPEN, _CLOSE = "<!-- {0}: made by python -m tools.reference -->", "<!-- end of {0} -->"


def tabulated(head: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    rule = "|" + "---|" * (head.count("|") + 1)
    return [f"| {head} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)]


# what is beside a field


def comments(model: type[BaseModel]) -> dict[str, str]:
    """What the comments on and above the fields of a class and its bases say, by field."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not (issubclass(one, BaseModel) and one.__module__.startswith("factory")):
            continue
        source = textwrap.dedent(inspect.getsource(one))
        lines = dict(_comments(source))
        [tree] = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above, row = [], node.lineno - 1
                while row in lines and lines[row][1]:
                    above.insert(0, lines[row][0])
                    row -= 1
                beside = [lines[n][0] for n in range(node.lineno, (node.end_lineno or 0) + 1)
                          if n in lines and "fmt:" not in lines[n][0]]  # fmt: skip
                # a comment that goes on below the line that it began on
                below = (node.end_lineno or 0) + 1
                while beside and below in lines and lines[below][1] and lines[below][2] > 20:
                    beside.append(lines[below][0])
                    below += 1
                if said := " ".join([*above, *beside]):
                    found[node.target.id] = said
    return found


def _comments(source: str) -> Iterator[tuple[int, tuple[str, bool, int]]]:
    """By line: the comment, whether it stands alone, and its column."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].strip() == ""
            yield token.start[0], (token.string.lstrip("# "), alone, token.start[1])


def sentence(model: type[BaseModel], name: str) -> str:
    """What a docstring of the class or its bases says of a field as `field`: …"""
    for one in model.__mro__:
        text = inspect.cleandoc(one.__dict__.get("__doc__") or "")
        text = re.sub(r"\s+", " ", text)
        if found := re.search(rf"`{name}`(?: \([^)]*\))?: (.+?)(?=[.;] `|\.(?: [A-Z]|$))", text):
            return found[1]
        for one_sentence in re.split(r"(?<=[.;]) ", text):
            if f"`{name}`" in one_sentence or f"`{name}:" in one_sentence:
                return one_sentence.rstrip(".;")
    return ""


# how a field is written


def typed(schema: Mapping[str, Any]) -> str:
    """A JSON schema as people write it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == "Stages":
            return "knobs by stage"
        return f"[{name}](#{name.lower()})"
    if "allOf" in schema:
        return typed(schema["allOf"][0])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(typed(one) for one in options))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {typed(schema.get('items', {}))}"
        case "object":
            values = [
                schema.get("additionalProperties"),
                *schema.get("patternProperties", {}).values(),
            ]
            return f"{typed(next((one for one in values if isinstance(one, dict)), {}))} by name"
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "integer" | "number" as kind:
            limits = [
                f"{sign} {schema[key]:g}"
                for key, sign in (
                    ("minimum", "≥"), ("exclusiveMinimum", ">"),
                    ("maximum", "≤"), ("exclusiveMaximum", "<"),
                )
                if key in schema
            ]  # fmt: skip
            return " ".join(["whole number" if kind == "integer" else "number", *limits])
        case "string":
            return "text"
    return "anything"


def default(info: Any) -> str:
    if info.default_factory is not None:
        return "none"
    if info.default is PydanticUndefined:
        return "**must be said**"
    value = info.default
    if isinstance(value, BaseModel):
        said = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(said)}`".replace('"', "") if said else "its defaults"
    if value in (None, "", (), {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def also(model: type[BaseModel]) -> str:
    """What a class takes over from one that has a table of its own, as a link to that."""
    names = [one.__name__ for one in SHARED if issubclass(model, one) and model is not one]
    return ", ".join(f"[{name}](#{name.lower()})" for name in names)


def table(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The fields of a class, one a row."""
    elsewhere = {
        name
        for one in SHARED
        if issubclass(model, one) and model is not one
        for name, info in one.model_fields.items()
        if info.default == model.model_fields[name].default
    }
    schema = model.model_json_schema(by_alias=True)
    schemas = schema.get("properties") or _fields(schema)
    beside, rows = comments(model), []
    for name, info in model.model_fields.items():
        if name in ("how", "from_") or name in elsewhere:
            continue
        marks = [MARKS[m.name] for m in info.metadata if isinstance(m, Mark)]
        said = beside.get(name) or sentence(model, name) or PLAIN.get(name, "")
        mark = f"*{', '.join(marks)}*" if marks else ""
        meaning = ". ".join(part for part in (mark, said[:1].upper() + said[1:]) if part)
        key = info.alias or name
        cells = [f"`{prefix}{key}`", typed(schemas[key]), default(info), meaning]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    return tabulated("knob | type | default | meaning", rows) if rows else []


def _fields(schema: Any) -> Any:
    """The properties of a class that has a short form too."""
    if isinstance(schema, dict):
        if "properties" in schema:
            return schema["properties"]
        schema = list(schema.values())
    return next((f for one in schema if isinstance(one, dict | list) and (f := _fields(one))), None)


def _doc(model: type[BaseModel]) -> list[str]:
    return textwrap.wrap(inspect.cleandoc(model.__dict__.get("__doc__") or ""), 128)


def parts(models: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Every class that the fields of these are of, each once, in order."""
    found: dict[type[BaseModel], None] = {}

    def look(annotation: Any) -> None:
        new = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if new and annotation not in found and not issubclass(annotation, How | Stage):
            found[annotation] = None
            for info in annotation.model_fields.values():
                look(info.annotation)
        for inner in getattr(annotation, "__args__", ()):
            look(inner)

    for model in models:
        for name, info in model.model_fields.items():
            if name not in ("stages", "from_"):
                look(info.annotation)
    return list(found)


def reference() -> str:
    """Every knob of every stage."""
    lines = ["### Recipe", "", *_doc(Recipe), "", *table(Recipe), ""]
    for stage in STAGES:
        how = stage.model_fields["how"].annotation
        assert isinstance(how, type) and issubclass(how, How)
        lines += [f"### {stage.name}", "", *_doc(stage), "", *table(stage)]
        lines += [*table(how, "how.")[2:], ""]
        more = [f"how it reads: {also(stage)}"] * bool(also(stage))
        more += [f"`how.`: {also(how)}"] * bool(also(how))
        lines += [f"And {'; '.join(more)}.", ""] if more else []
    for part in dict.fromkeys((*SHARED, From, *parts([Recipe, *STAGES, Running]), *BACKENDS)):
        lines += [f"### {part.__name__}", "", *_doc(part), "", *table(part), ""]
        lines += [f"And {also(part)}.", ""] if also(part) else []
    return "\n".join(lines)


def presets() -> str:
    """The well-known datasets."""
    rows = [
        (
            f"`{name}`",
            one.source,
            ", ".join(one.stages),
            one.license or "not known to us",
            one.about,
        )
        for name, one in PRESETS.items()
    ]
    return "\n".join(tabulated("preset | dataset | for | licence on its card | what it is", rows))


# what recipes would take


@dataclass(frozen=True)
class Measured:
    """What somebody else measured: tokens a second of one GPU with a model of so many billions of
    parameters, in 16 bits."""

    rate: int
    billions: float
    how: str
    source: str

    def of(self, billions: float) -> float:
        """The same for another model, in proportion to its parameters: an assumption."""
        return self.rate * self.billions / billions


@dataclass(frozen=True)
class Gpu:
    """`forward`: how many forward passes a step of that training is worth (3, or 4 where it makes
    them a second time for the sake of memory); nobody's rate of a reward model was found."""

    name: str
    writes: Measured
    trains: Measured
    forward: int

    def rate(self, doing: str, billions: float) -> float:
        if doing == "writes":
            return self.writes.of(billions)
        # LoRA leaves the gradient of the weights out, and DPO's reference is a forward pass more
        return self.trains.of(billions) * (self.forward if doing == "reads" else 1)


H100 = Gpu(
    "H100",
    Measured(
        8088, 8.0,
        "Llama 3.1 8B, vLLM 0.6.0 with 10 scheduler steps, 5,000 prompts, 256 at once",
        "[Lambda, September 2024](https://github.com/LambdaLabsML/vllm-benchmark/blob/main/benchmark_v0.md)",
    ),
    Measured(
        10643, 6.7,
        "MPT 7B, all weights, FSDP on 8 GPUs, sequences of 2,048, no checkpointing of activations",
        "[LLM Foundry](https://github.com/mosaicml/llm-foundry/blob/061f2c7/scripts/train/benchmarking/README.md)",
    ),
    forward=3,
)  # fmt: skip
GCD = Gpu(
    "GCD of an MI250X",
    Measured(
        1341, 7.2,
        "Mistral 7B v0.2, vLLM on LUMI, up to 128 tokens an answer; best at 32 requests at once",
        "[a demo on LUMI, 2026](https://github.com/aniskhan25/lumi-ai-assistant-demo)",
    ),
    Measured(
        1037, 14.0,
        "Ministral 3 14B on LUMI, all weights but embeddings, 8 GCDs, sequences of 512, "
        "activations checkpointed, FlashAttention 2",
        "[storax, August 2026](https://github.com/storax-io/storax-ai-train-rocm/blob/main/docs/lumi-numbers.md)",
    ),
    forward=4,
)  # fmt: skip
ANSWER, PROMPT = 500, 200  # tokens: assumed
WIDTH = 64  # requests at once up to which reading the weights sets the time of a step: assumed
QUESTIONS, BENCH = 498, 2_900  # of m-ArenaHard, pairs of M-RewardBench, a language
ROWS, SHOTS = 2_048, 1_000  # of a benchmark of EuroEval, tokens of a row with its examples: assumed
# Billions of parameters. Of Qwen3.6-35B-A3B 3 are at work on a token; it is taken for one of 9.
SIZE = {
    "EuroLLM-9B": 9, "tiny-aya": 3, "translategemma-27b": 27, "Llama-3-Base-8B": 8, "Qwen3-8B": 8,
    "Qwen3-4B": 4, "Qwen3.6-35B": 9,
}  # fmt: skip
REWARD, JUDGE = 8, SIZE["Qwen3.6-35B"]
Work = dict[tuple[str, str, int], float]  # tokens, by step, what is done and billions


def size(recipe: Recipe, name: str) -> int:
    """Billions of parameters of a model of a recipe."""
    said = str(recipe.models[name].name)
    return next(size for word, size in SIZE.items() if word in said)


def work(recipe: Recipe) -> Work | None:
    """Tokens of every step of a recipe, from nothing; None for one that reads all there is."""
    steps = recipe.steps()
    count = getattr(steps.get("prompts", steps.get("preferences")), "first", None)
    if count is None:
        return None
    found: Work = {}

    def add(step: str, doing: str, billions: int, tokens: float) -> None:
        key = (step, doing, billions)
        found[key] = found.get(key, 0.0) + tokens

    slices = recipe.slices()
    languages = len(recipe.languages)
    if "translate" in steps:
        made = sum(spec.step == "translate" for _, spec in slices)
        add("translate", "writes", size(recipe, "translator"), count * made * PROMPT)
    n = 0
    if generate := steps.get("generate"):
        n = getattr(generate, "n", 0)
        policy = size(recipe, getattr(generate, "model", "policy"))
        add("generate", "writes", policy, count * languages * n * ANSWER)
    if score := steps.get("score"):
        models = 2 if recipe.models[getattr(score, "reward", "reward")].kind == "implicit" else 1
        add("score", "reads", REWARD, models * count * languages * n * (PROMPT + ANSWER))
    for stage, spec in slices:
        if stage.name == "transfer":
            add("transfer", "reads", REWARD, BENCH * 2 * (PROMPT + ANSWER))
        if stage.kind not in ("adapter", "model"):
            continue
        base = size(recipe, getattr(stage, "base", "policy"))
        sides = 1 if stage.name == "sft" else 2
        trained = languages if spec.name == "all" else 1
        if stage.name == "online":
            # Two a prompt, micro_batch requests at once: fewer than WIDTH take as long as WIDTH
            slower = WIDTH / min(WIDTH, getattr(stage.how, "micro_batch", 1))
            add(stage.name, "writes", base, count * trained * 2 * ANSWER * slower)
            add(stage.name, "reads", REWARD, count * trained * 2 * (PROMPT + ANSWER))
        add(stage.name, "trains", base, count * trained * sides * (PROMPT + ANSWER))
    if answered := sum(spec.step == "arena" for _, spec in slices):
        add("arena", "writes", size(recipe, "policy"), QUESTIONS * answered * 1.5 * ANSWER)
    judged = sum(spec.step == "judge" for _, spec in slices)
    ask = getattr(steps.get("judge"), "ask", None)
    orders = 1 if getattr(ask, "orders", "both") == "random" else 2
    add("judge", "reads", JUDGE, QUESTIONS * judged * orders * (PROMPT + 3 * ANSWER))
    for stage, spec in slices:
        if isinstance(stage, Euroeval):
            runs = stage.iterations * len(stage.suite(str(spec.language)))
            add("euroeval", "reads", size(recipe, "policy"), runs * ROWS * SHOTS)
    return {key: tokens for key, tokens in found.items() if tokens}


def by_step(recipe: Recipe, gpu: Gpu) -> dict[str, float] | None:
    """GPU-hours of every step of a recipe, from nothing, by the rates of a GPU."""
    found = work(recipe)
    if found is None:
        return None
    took: dict[str, float] = {}
    for (step, doing, b), tokens in found.items():
        took[step] = took.get(step, 0.0) + tokens / gpu.rate(doing, b) / 3600
    return took


def hours(recipe: Recipe, gpu: Gpu) -> float | None:
    """GPU-hours of a recipe, from nothing."""
    took = by_step(recipe, gpu)
    return None if took is None else sum(took.values())


def most(recipe: Recipe, gpu: Gpu) -> str:
    """The steps that take most of a recipe's GPU-hours, up to three quarters of them."""
    took = by_step(recipe, gpu) or {}
    parts, share = [], 0.0
    for step, one in sorted(took.items(), key=lambda item: -item[1]):
        if share < 0.75:
            share += one / sum(took.values())
            parts.append(f"{step} {one / sum(took.values()):.0%}")
    return ", ".join(parts)


def rates() -> str:
    """What was measured, by whom."""
    rows = [
        (gpu.name, doing, f"{one.rate:,}", f"{one.how} ({one.billions:g} B)", one.source)
        for gpu in (H100, GCD)
        for doing, one in (("writes", gpu.writes), ("trains", gpu.trains))
    ]
    return "\n".join(tabulated("of one | does | tokens a second | measured with | by", rows))


def costs() -> str:
    """The paper's recipe, step by step, with the arithmetic."""
    recipe = load("eurollm-9b", UNSAID.get("eurollm-9b", ())).recipe
    named = [f"{gpu.name}: tokens/s, hours" for gpu in (H100, GCD)]
    rows = []
    for (step, doing, billions), tokens in (work(recipe) or {}).items():
        told = [
            f"{gpu.rate(doing, billions):,.0f}, {tokens / gpu.rate(doing, billions) / 3600:,.1f}"
            for gpu in (H100, GCD)
        ]
        rows.append((f"{step}: a model of {billions} B {doing}", f"{tokens / 1e6:,.0f} M", *told))
    sums = [f"**{hours(recipe, gpu) or 0:,.0f} GPU-hours**" for gpu in (H100, GCD)]
    return "\n".join(tabulated(" | ".join(("step | tokens", *named)), [*rows, ("all", "", *sums)]))


PILOTS = (
    ("all of it", ()),
    ("EuroEval of each adapter in its own language", ("stages.euroeval.languages=own",)),
    (
        "and 500 prompts, 3 iterations of EuroEval",
        (
            "stages.euroeval.languages=own",
            "stages.prompts.first=500",
            "stages.euroeval.iterations=3",
        ),
    ),
    ("500 prompts, no EuroEval", ("stages.prompts.first=500", "stages.euroeval=null")),
)


def pilots() -> str:
    """The paper's recipe in two languages, and how little it can be."""
    two, rows = "languages=[da, de]", []
    for what, overrides in PILOTS:
        recipe = load("eurollm-9b", (two, *overrides)).recipe
        took = [f"{hours(recipe, gpu) or 0:,.1f}" for gpu in (H100, GCD)]
        told = " ".join(f"`'{one}'`" for one in (two, *overrides))
        rows.append((what, *took, most(recipe, H100), told))
    head = "Danish and German | H100-hours | GCD-hours | most of the H100-hours | `--set`"
    return "\n".join(tabulated(head, rows))


def packaged() -> str:
    """The packaged recipes."""
    rows = []
    order = {"croco": 0, "icr": 1, "rewards": 2, "recipes": 3, "world": 4}
    for name, path in sorted(
        recipes().items(), key=lambda item: (order.get(item[1].parent.name, 9), item[0])
    ):
        recipe = load(name, UNSAID.get(name, ())).recipe
        link = path.relative_to(ROOT / "recipes").as_posix()
        models = dict.fromkeys(ref.name for ref in recipe.models.values() if ref.name)
        small = path.parent.name in ("recipes", "world", "languages")
        found = [None if small else hours(recipe, gpu) for gpu in (H100, GCD)]
        took = "minutes on a CPU" if small else "–"
        told = (took if one is None else f"{one:,.0f}" for one in found)
        about = (" ".join(recipe.languages), ", ".join(models), recipe.description)
        rows.append((f"[{name}]({link})", *about, *told, "" if small else most(recipe, H100)))
    named = "H100-hours | GCD-hours | most of the H100-hours"
    head = f"recipe | languages | models | what it is, or tests | {named}"
    return "\n".join(tabulated(head, rows))


PAGES = {
    ROOT / "docs" / "recipe.md": {"reference": reference, "presets": presets},
    ROOT / "recipes" / "README.md": {"recipes": packaged},
    ROOT / "docs" / "slurm.md": {"rates": rates, "costs": costs, "pilots": pilots},
}


def current(page: Path) -> str:
    """A page with its tables as they should be. Raises ValueError for a marker that is missing."""
    text = page.read_text(encoding="utf-8")
    for name, made in PAGES[page].items():
        opened, closed = _OPEN.format(name), _CLOSE.format(name)
        before, found, rest = text.partition(opened)
        _, end, after = rest.partition(closed)
        if not (found and end):
            raise ValueError(f"{page} has no {opened} … {closed}")
        text = f"{before}{opened}\n\n{made()}\n\n{closed}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(current(page), encoding="utf-8")
