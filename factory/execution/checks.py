"""Check a recipe with its real tokenizers and no weights: chat templates and prompt lengths.

Results are cached by content, so a second check costs nothing. Uses of each tokenizer, and prompts
that are too long for it, are computed from numbers alone at the end.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from factory.artifacts import licenses
from factory.artifacts.files import write_atomically
from factory.artifacts.hashing import fingerprint
from factory.artifacts.manifest import License, Manifest
from factory.artifacts.resources import install_command
from factory.artifacts.workdir import Home
from factory.engines import Sampling, chat_template, template_check
from factory.errors import Check, FactoryError, HubError, InputError, RecipeError, nearest
from factory.execution import record
from factory.execution.adapter_checks import check_adapters, config_of
from factory.execution.builtin_models import POCKET
from factory.hub.client import Hub
from factory.pairs.selection import Selection
from factory.planning.estimate import rows_of_slices
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, Inventory, Plan, State, Step
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.sampling.sources import Prompts
from factory.stage.inputs import ExternalInput, Need, ServedModel, SliceSpec, StepInput
from factory.stage.job import Place
from factory.stage.readers import DistinctIds, Row, View, is_file, named
from factory.stage.stage import Stage

_VERSION = 5  # raise it when a check changes: what was found before is looked for again
_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # weights are none of these
_INDEX = "*.index.json"
_SHOWN = 3  # prompts that a finding names


def check(
    loaded: LoadedRecipe, pins: Lock, hub: Hub, home: Home, only: frozenset[str] | None = None
) -> list[Check]:
    """Return all findings about a recipe (or `only` these steps of it), errors first.

    Raises HubError when a tokenizer cannot be fetched, InputError without transformers.
    """
    findings = check_adapters(loaded.recipe, pins, hub, only)
    findings += _nothing_in_common(loaded, pins, hub, only)
    findings += _several_labels(loaded.recipe, pins, hub, only)
    for tokenizer in tokenizers(loaded.recipe, only):
        if tokenizer.model.source not in pins.pins:
            if tokenizer.model.source.partition("@")[0] not in POCKET:
                continue  # resolve.unmet names it
            findings.append(
                Check(
                    tokenizer.model.source,
                    "warning",
                    "not on this hub yet, so not checked",
                    f"the first run brings it in: factory run {loaded.called} --until prompts",
                )
            )
            continue
        key = home.root / "check" / f"{_content_key(tokenizer, loaded, pins)}.json"
        if not key.exists():
            repo, _, _ = tokenizer.model.source.partition("@")
            revision = str(pins.pins[tokenizer.model.source].revision)
            if hub.reachable and not hub.has(repo, "model", revision):
                # the base of a model that was trained elsewhere, as in a reproduction
                findings.append(
                    Check(
                        tokenizer.model.source,
                        "warning",
                        "not on this hub, so its chat template is not checked",
                        f"factory pull {repo}@{revision}",
                    )
                )
                continue
            rows = [asdict(finding) for finding in _look(tokenizer, loaded, pins, hub)]
            with suppress(OSError):  # of a home that is only read
                write_atomically(key, json.dumps(rows).encode())
        else:
            rows = json.loads(key.read_text(encoding="utf-8"))
        findings += [Check(**fields) for fields in rows]
    # what is true of a source as a whole was seen once in each language
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level != "error")


def license_faults(
    loaded: LoadedRecipe,
    pins: Lock,
    hub: Hub,
    plan: Plan,
    elsewhere: Mapping[ExternalInput, License | None] | None = None,
) -> list[Check]:
    """Return the due steps whose licence cannot be settled, as a run of them would say.

    elsewhere: licences of what is not here, as another hub states them. Steps that read what is
    not known by any of them are named in a warning. Raises HubError."""
    done = dict(plan.done)
    findings = []
    later: dict[str, list[str]] = {}  # steps that cannot be settled yet, by what they wait for
    nowhere = Place(Path(os.devnull))  # no card to read
    for step in plan.steps:
        if step.state is not State.RUN:
            continue
        needs = step.needs
        cards: dict[Need, Place] = {}
        elsewhere_stated: dict[Need, License | None] = {}
        for need in needs:
            if isinstance(need, ExternalInput):
                cards[need] = nowhere
                if (pin := pins.pins.get(need.source)) and pin.revision:
                    cards[need] = _card(need, pin.revision, hub)
                elif model := POCKET.get(need.source.partition("@")[0]):
                    elsewhere_stated[need] = License(id=model.license)
                elif need in (elsewhere or {}):
                    elsewhere_stated[need] = (elsewhere or {})[need]
        try:
            present = [n for n in needs if not isinstance(n, StepInput) or n.step in done]
            stated = record.stated(loaded.recipe, present, cards, done)
            stated |= {n: other for n, other in elsewhere_stated.items() if stated[n] is None}
            waiting = [
                n.source
                for n in needs
                if isinstance(n, ExternalInput)
                and not (
                    is_file(n.source) or n in elsewhere_stated or stated[n] or n.source in pins.pins
                )
            ]
            for source in waiting:
                later.setdefault(source, []).append(step.name)
            if waiting or len(present) < len(needs):
                continue
            license = record.license_of(loaded.recipe, step, stated)
        except RecipeError as error:
            findings.append(Check(step.name, "failed", error.what, error.fix))
        else:  # what reads this step can be settled too
            fields: dict[str, Any] = {"license": license}
            done[step.name] = ArtifactRef(Manifest.model_construct(**fields))
    if later:
        steps = ", ".join(dict.fromkeys(name for names in later.values() for name in names))
        findings.append(
            Check(
                "licenses",
                "warning",
                f"not checked for {steps} and what is made of them: {', '.join(later)} not here",
                f"factory pull {loaded.called}, then plan it again",
            )
        )
    return findings


def _card(need: ExternalInput, revision: str, hub: Hub) -> Place:
    """Return a directory with the card of a repo, and nothing else of it."""
    return Place(hub.fetch(need.source.partition("@")[0], need.kind, revision, ("README.md",)))


@dataclass
class Elsewhere:
    """Sizes and licences of sources that are not here, as another hub states them.

    sizes: bytes of each, or in words why there are none; licenses: as their cards state them;
    unknown: why nothing is known, where that hub does not answer.
    """

    sizes: dict[ExternalInput, int | str] = field(default_factory=dict)
    licenses: dict[ExternalInput, License | None] = field(default_factory=dict)
    unknown: str = ""


def look_elsewhere(needs: Iterable[ExternalInput], endpoint: str, token: str | None) -> Elsewhere:
    """Ask another hub for the size and the licence of each repo among `needs`."""
    elsewhere = Elsewhere()
    with tempfile.TemporaryDirectory(prefix="factory-") as cache:
        hub = Hub(endpoint, token, Path(cache))
        for need in needs:
            if is_file(need.source):
                continue
            name, _, revision = need.source.partition("@")
            try:
                size = hub.size(name, need.kind, revision or "main")
                elsewhere.sizes[need] = "none there" if size is None else size
                if size is not None:
                    card = hub.read(name, need.kind, revision or "main", "README.md") or b""
                    elsewhere.licenses[need] = licenses.stated_license(
                        card.decode("utf-8", "replace")
                    )
            except InputError:  # a card that cannot be read states nothing
                elsewhere.licenses[need] = None
            except HubError as error:
                if "cannot be reached" in error.what:
                    elsewhere.unknown = error.what
                    break
                elsewhere.sizes[need] = "no access"  # it is gated, or hidden
    return elsewhere


def unused_licenses(recipe: Recipe) -> list[Check]:
    """Return keys of `licenses:` under which nothing is read: misspelt, or of a recipe that this
    one extends."""
    sources = {
        str(need.model if isinstance(need, ServedModel) else need.source)
        for _, spec in recipe.slices()
        for need in spec.needs
        if not isinstance(need, StepInput)
    }
    sources |= {source.partition("@")[0] for source in sources}
    return [
        Check("licenses", "warning", f"nothing is read from {key!r}{nearest(key, sources)}",
              "name a source as models: and stages: do")
        for key in recipe.licenses
        if not {named(key, code) for code in recipe.languages} & sources
    ]  # fmt: skip


def blocked_steps(plan: Plan, counted: Mapping[tuple[str, str], int]) -> list[Check]:
    """Return the blocked steps of a plan, and those that will be since too few rows come from
    outside (`counted`: by step and slice), with what to change."""
    findings = [
        Check(step.name, "failed", f"blocked: {step.reason}", step.knobs or "see the step before")
        for step in plan.steps
        if step.state is State.BLOCKED
    ]
    rows = rows_of_slices(plan.steps, Inventory(), counted)
    for step in plan.steps if not findings else ():
        for part in step.slices if step.state is State.RUN else ():
            for role, fewest in step.stage.min_rows().items():
                reads = [n for n in part.spec.needs if isinstance(n, StepInput) and n.role == role]
                counts = [rows.get((need.step, need.slice)) for need in reads]
                sizes = [count for count in counts if count is not None]
                if len(sizes) == len(counts) and sum(sizes) < fewest:
                    what = f"at most {sum(sizes)} rows come from {reads[0].step}, {fewest} needed"
                    knob = "pairs" if step.stage.kind == "adapter" else "rows"
                    fix = f"more prompts, or set {step.stage.name}.min_{knob}"
                    findings.append(Check(step.name, "failed", what, fix))
    return findings


def missing_requirements(recipe: Recipe, only: Collection[str] | None = None) -> list[Check]:
    """Return requirements of the steps of a recipe (or `only` these) that this machine lacks."""
    specs: dict[str, tuple[Stage, list[SliceSpec]]] = {}
    for stage, spec in recipe.slices():
        if only is None or spec.step in only:
            specs.setdefault(stage.name, (stage, []))[1].append(spec)
    return unsettled_licenses(recipe, only) + [
        Check(f"stages.{name}", "failed", error.what, error.fix)
        for name, (stage, slices) in specs.items()
        for error in stage.missing_requirements(slices)
    ]


def unsettled_licenses(recipe: Recipe, only: Collection[str] | None = None) -> list[Check]:
    """Return served models whose output may not be passed on as the recipe says.

    A repo's card states its licence and is read when it is fetched. For a served model only the
    recipe can state it, and this is checked before anything is made.
    """
    findings = {}
    for stage, spec in recipe.slices():
        for need in spec.needs:
            if isinstance(need, ServedModel) and (only is None or spec.step in only):
                under = [(need.model, recipe.licenses.get(need.model))]
                try:
                    licenses.settle(stage.name, stage.kind, under, recipe.license)
                except RecipeError as error:
                    findings[spec.step] = Check("licenses", "failed", error.what, error.fix)
    return list(findings.values())


def gate(
    loaded: LoadedRecipe,
    pins: Lock,
    hub: Hub,
    home: Home,
    note: Callable[[str], None],
    only: list[str],
    going: Collection[str] = (),
) -> Callable[[Step], None]:
    """Return a function to call with every step before it runs.

    Before the first step, all requirements of the steps in `going` must be met. Before the first
    step that needs a model, all of `only` are checked: warnings are reported, an error raises
    InputError.
    """
    requirements_checked = tokenizers_checked = False

    def before(step: Step) -> None:
        nonlocal requirements_checked, tokenizers_checked
        if not requirements_checked:
            requirements_checked = True
            for finding in missing_requirements(loaded.recipe, going):
                raise InputError(f"{finding.name}: {finding.seen}", finding.fix)
        needs_model = bool(tokenizers(loaded.recipe, frozenset({step.name})))
        if tokenizers_checked or not needs_model:
            return
        tokenizers_checked = True
        for finding in check(loaded, pins, hub, home, frozenset(only)):
            if finding.level == "error":
                raise InputError(f"{finding.name}: {finding.seen}", finding.fix)
            note(finding.line())

    return before


def _content_key(tokenizer: TokenizerUse, loaded: LoadedRecipe, pins: Lock) -> str:
    """Return the cache key: the content of everything that is checked, and the version of the
    check."""
    prompts = {
        f"{use.stage} {spec.name}": [use.does, use.limit, _digest(spec, pins)]
        for use in tokenizer.uses
        for spec in use.prompts
    }
    reads = {
        name: stage.model_dump(mode="json", exclude={"how"})
        for name, stage in loaded.recipe.steps().items()
        if isinstance(stage, Prompts)
    }
    return fingerprint(
        {
            "check": _VERSION,
            "transformers": _transformers(),
            "name": tokenizer.model.source,
            "model": pins.pins[tokenizer.model.source].digest,
            "answers": tokenizer.answers,
            "prompts": prompts,
            "read": reads,
        }
    )


def _digest(spec: SliceSpec, pins: Lock) -> str | None:
    need = spec.need("source")
    pin = pins.pins.get(need.source) if isinstance(need, ExternalInput) else None
    return pin.digest if pin else None


def _transformers() -> str:
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            "tokenizers are read with transformers, which is not installed",
            install_command("generate"),
        )
    return importlib.metadata.version("transformers")


def _look(
    tokenizer_use: TokenizerUse, loaded: LoadedRecipe, pins: Lock, hub: Hub
) -> Iterator[Check]:
    name = tokenizer_use.model.source
    revision = pins.pins[name].revision
    assert revision is not None
    directory = hub.fetch(name.partition("@")[0], "model", revision, _TOKENIZER, (_INDEX,))
    try:
        tokenizer = chat_template.load_tokenizer(str(directory))
    except InputError as error:
        # a path of this machine's says nothing to people; the name does
        yield Check(name, "failed", error.what.replace(str(directory), name), error.fix)
        return
    generation = SimpleNamespace(**config_of(directory / "generation_config.json"))
    faults = (
        template_check.template_faults(tokenizer, generation)
        if tokenizer_use.answers
        else template_check.opening_faults(tokenizer)
    )
    for fault in faults:
        yield replace(fault, name=name)
    if any(fault.state == "failed" for fault in faults):
        return
    config = config_of(directory / "config.json")
    text_config = config.get("text_config") or config
    context, pad = text_config.get("max_position_embeddings"), text_config.get("pad_token_id")
    if not tokenizer_use.answers and chat_template.ends_in_padding(tokenizer, pad):
        yield Check(
            name,
            "warning",
            f"the template ends a conversation in {tokenizer.convert_ids_to_tokens(pad)}, which "
            "the config has for padding: as transformers does, rewards are read at the token "
            "before it",
            "programs that read the last token (vLLM) give other rewards; a reward model that is "
            "trained here gets another pad token",
        )
    measured: dict[SliceSpec, dict[str, int]] = {}
    for use in tokenizer_use.uses:
        for spec in use.prompts:
            if spec not in measured:
                measured[spec] = {}
                controls: dict[str, list[str]] = {}
                try:
                    lengths = dict(_lengths(tokenizer, spec, loaded, pins, hub, controls))
                    yield from _controlled(name, spec.name, controls, len(lengths))
                    yield from _refused(name, loaded.recipe.steps()[spec.step], spec, lengths)
                    measured[spec] = {at: n for at, n in lengths.items() if isinstance(n, int)}
                except FactoryError as error:
                    about = f"{name}, {spec.name}"
                    yield Check(about, "failed", error.what, error.fix)
            yield from over_long(use, name, spec.name, measured[spec], context)


def _controlled(
    name: str, language: str, controls: Mapping[str, list[str]], count: int
) -> Iterator[Check]:
    """Yield a finding about prompts that hold control tokens of a model as text."""
    if controls:
        listed = "; ".join(
            f"{at} ({', '.join(tokens)})" for at, tokens in list(controls.items())[:_SHOWN]
        )
        more = f" and {len(controls) - _SHOWN} more" if len(controls) > _SHOWN else ""
        yield Check(
            f"{name}, {language}",
            "warning",
            f"{len(controls)} of {count} prompts hold control tokens of the model: {listed}{more}",
            "they are read as text and end no turn; mend the prompts if they are there by mistake",
        )


def _lengths(
    tokenizer: Any,
    spec: SliceSpec,
    loaded: LoadedRecipe,
    pins: Lock,
    hub: Hub,
    controls: dict[str, list[str]],
) -> Iterator[tuple[str, int | InputError]]:
    """Yield (id, number of tokens) for every prompt of a slice that is read from outside, or why
    the template refuses it. Prompts that are made in the run (translations) do not exist yet.
    `controls` receives the control tokens in each prompt that has any, by id."""
    for where, prompt in _outside_prompts(spec, loaded, pins, hub):
        name = prompt["prompt_id"]
        if tokens := chat_template.control_tokens(tokenizer, prompt["messages"]):
            controls[name] = tokens
        try:
            length = len(chat_template.prompt_ids(tokenizer, prompt["messages"]))
        except InputError as error:
            yield name, InputError(f"{where}: {error.what}", error.fix)
        else:
            yield name, length


def _outside_prompts(
    spec: SliceSpec, loaded: LoadedRecipe, pins: Lock, hub: Hub
) -> Iterator[tuple[str, Row]]:
    """Yield every prompt of a slice that is read from outside, with its place. Raises
    FactoryError."""
    stage, need = loaded.recipe.steps().get(spec.step), spec.need("source")
    if not isinstance(stage, Prompts) or not isinstance(need, ExternalInput):
        return
    if need.source not in pins.pins:
        return  # resolve.unmet names it
    name, pin = need.source.partition("@")[0], pins.pins[need.source]
    path = (
        loaded.file(need.source)
        if is_file(need.source)
        else hub.fetch(name, "dataset", str(pin.revision))
    )
    if is_file(need.source) and not path.exists():
        return  # a published line made again: its prompts are there as rows, their file is not
    language = str(spec.language)
    convert = stage.converter(need.source, language, DistinctIds())
    place = ""  # of the row that was converted last

    def placed(row: Row, where: str) -> Row | str:
        nonlocal place
        place = where
        return convert(row, where)

    prompts = stage.converted_rows(
        path, language, placed, Counter(), name=need.source, first=stage.first
    )
    for prompt in prompts:
        yield place, prompt


def _nothing_in_common(
    loaded: LoadedRecipe, pins: Lock, hub: Hub, only: frozenset[str] | None
) -> Iterator[Check]:
    """Yield a finding about a pool of all languages whose prompts have no id in two of them."""
    specs = {(spec.step, spec.name): spec for _, spec in loaded.recipe.slices()}
    for stage, spec in loaded.recipe.slices():
        if not isinstance(stage, Selection) or stage.from_ or spec.language is not None:
            continue
        prompts = [specs[n.step, n.slice] for n in spec.needs
                   if isinstance(n, StepInput) and n.role == "prompts"]  # fmt: skip
        sources = [source.need("source") for source in prompts]
        going = only is None or spec.step in only
        if (
            not going
            or len(prompts) < 2
            or not all(
                isinstance(need, ExternalInput) and need.source in pins.pins for need in sources
            )
        ):
            continue  # a translation has the id of what it was made from
        languages: dict[str, str] = {}  # of the first prompt with an id
        try:
            rows = [(source, row) for source in prompts
                    for _, row in _outside_prompts(source, loaded, pins, hub)]  # fmt: skip
        except FactoryError:
            continue  # said where the prompts are looked at
        shared = any(languages.setdefault(row["prompt_id"], source.name) != source.name
                     for source, row in rows)  # fmt: skip
        if rows and not shared:
            yield Check(
                f"stages.{stage.name}",
                "failed",
                f"pool: {stage.pool} compares answers to one prompt in all languages, and no "
                f"prompt has one id in two of {', '.join(source.name for source in prompts)}",
                "give a prompt the same id in every language (columns: {id: theirs}), or set "
                "pool: in_lang",
            )


def _several_labels(
    recipe: Recipe, pins: Lock, hub: Hub, only: frozenset[str] | None
) -> Iterator[Check]:
    """Yield findings about classifiers that are named as rewards and have other than one label."""
    needs = {
        need: spec.step
        for _, spec in recipe.slices()
        for reward in (spec.reward.each if spec.reward else ())
        if reward.model.is_plain_classifier
        for _, need in reward.by_role
        if only is None or spec.step in only
    }
    for need, step in needs.items():
        pin = pins.pins.get(need.source) if isinstance(need, ExternalInput) else None
        if not isinstance(need, ExternalInput) or pin is None:
            continue
        name, revision = need.source.partition("@")[0], str(pin.revision)
        if hub.reachable and not hub.has(name, "model", revision):
            continue
        config = config_of(hub.fetch(name, "model", revision, ("config.json",)) / "config.json")
        named = config.get("id2label")
        labels = len(named) if isinstance(named, dict) else config.get("num_labels", 2)
        if "architectures" in config and labels != 1:
            yield Check(
                need.source,
                "failed",
                f"{step} reads it as a reward: it has {labels} labels, a reward model has one",
                "name a sequence classifier with num_labels=1, or say another kind of reward "
                "(kind: generative asks a chat model)",
            )


def _refused(
    name: str, stage: Stage, spec: SliceSpec, lengths: Mapping[str, int | InputError]
) -> Iterator[Check]:
    """Yield a finding about the prompts of a slice that a chat template refuses: stages leave them
    out, up to the share that may be so."""
    refused = [error for error in lengths.values() if isinstance(error, InputError)]
    if not refused:
        return
    left_out = (
        isinstance(stage, View)
        and stage.allows(len(refused), len(lengths))
        and len(refused) < len(lengths)
    )
    shown = "; ".join(error.what for error in refused[:_SHOWN])
    share = math.ceil(100 * len(refused) / len(lengths))
    yield Check(
        f"{name}, {spec.name}",
        "warning" if left_out else "failed",
        f"{len(refused)} of {len(lengths)} prompts are refused by its chat template: {shown}",
        "they are left out and counted"
        if left_out
        else f"ask the first user turn alone ({stage.name}: {{turns: first}}), leave them out "
        f"({stage.name}: {{bad_rows: {share}%}}), or take another model",
    )


_PROMPTS = ("prompts", "questions")
# what comes from outside and goes with its base, or embeds plain texts
_ADAPTERS = ("adapter", "start", "source", "embedding")


@dataclass(frozen=True)
class Use:
    """Use of a tokenizer by one stage: to `answer` with up to `limit` tokens, or to `read` up to
    `limit` tokens, for these slices of prompts; no limit in training."""

    stage: str
    does: Literal["answer", "read"]
    limit: int | None
    prompts: tuple[SliceSpec, ...]


@dataclass(frozen=True)
class TokenizerUse:
    """A tokenizer: the model that it comes with, whether that model answers (a classifier does
    not), and its uses."""

    model: ExternalInput
    answers: bool
    uses: tuple[Use, ...]


def tokenizers(recipe: Recipe, only: frozenset[str] | None = None) -> list[TokenizerUse]:
    """Return every tokenizer that the steps of a recipe need (or `only` those), each once.

    A model that is trained here has the tokenizer of its base.
    """
    laid = recipe.slices()
    specs = {(spec.step, spec.name): spec for _, spec in laid}
    uses_by_source: dict[str, TokenizerUse] = {}
    for stage, spec in laid:
        if only is not None and spec.step not in only:
            continue
        for need in spec.needs:
            model = _origin(need, specs)
            if model is None:
                continue
            # a translator is asked single turns in a format of its own, and never read again
            reads = (
                (spec.reward is not None and spec.reward.prints_conversations(need))
                or stage.kind == "prompts"
                or (need.role == "base" and stage.kind == "model")
            )
            before = uses_by_source.get(model.source, TokenizerUse(model, False, ()))
            uses_by_source[model.source] = TokenizerUse(
                before.model, before.answers or not reads, (*before.uses, *_use(stage, spec, specs))
            )
    return [replace(use, uses=_merged(use.uses)) for use in uses_by_source.values()]


def _origin(need: Need, specs: Mapping[tuple[str, str], SliceSpec]) -> ExternalInput | None:
    """Return the outside model whose tokenizer an input comes with; None if it is no model."""
    role = need.role.partition("-")[0]  # adapter-2 is that of a second model
    if isinstance(need, ExternalInput):
        return need if need.kind == "model" and role not in _ADAPTERS else None
    if isinstance(need, ServedModel) or role == "adapter":
        return None  # no tokenizer is here; or it goes with its base, which is a need of its own
    base = specs[need.step, need.slice].need("base")
    return None if base is None else _origin(base, specs)


def _use(
    stage: Stage, spec: SliceSpec, specs: Mapping[tuple[str, str], SliceSpec]
) -> tuple[Use, ...]:
    """Return the use that a slice makes of its models' tokenizers, if it reads prompts."""
    limit = getattr(stage, "max_tokens", None)
    if stage.kind not in ("samples", "answers", "scores") or limit is None:
        return ()
    sources = tuple(
        specs[need.step, need.slice]
        for need in spec.needs
        if isinstance(need, StepInput) and need.role in _PROMPTS
    )
    return (Use(stage.name, "read" if stage.kind == "scores" else "answer", limit, sources),)


def _merged(uses: Iterable[Use]) -> tuple[Use, ...]:
    """Return the uses with the prompts of the same use in all languages together."""
    merged: dict[Use, dict[SliceSpec, None]] = {}
    for use in uses:
        merged.setdefault(replace(use, prompts=()), {}).update(dict.fromkeys(use.prompts))
    return tuple(replace(use, prompts=tuple(prompts)) for use, prompts in merged.items())


def over_long(
    use: Use, about: str, language: str, lengths: Mapping[str, int], context: int | None
) -> list[Check]:
    """Return findings about prompts of these lengths (tokens, by id) in one language."""
    if use.limit is None or not lengths:
        return []
    longest = max(lengths, key=lambda name: lengths[name])
    where = f"stages.{use.stage}, {language}"
    if use.does == "read":
        most = min(use.limit, context or use.limit)
        over = [name for name, size in lengths.items() if size >= most]
        return _too_long(over, lengths, longest, about, where, most)
    if context is None:
        return []
    sampling = Sampling(temperature=1, top_p=1, max_tokens=use.limit)
    rooms = {name: sampling.room(size, context) for name, size in lengths.items()}
    over = [name for name, room in rooms.items() if not room]
    least = min(use.limit, context // 2)  # what room() leaves at the least
    findings = _too_long(over, lengths, longest, about, where, context - least)
    short = [room for room in rooms.values() if 0 < room < use.limit]
    if short:
        room_left = min(short)
        findings.append(
            Check(
                about,
                "warning",
                f"{where}: answers to {len(short)} of {len(lengths)} prompts get less than "
                f"max_tokens {use.limit}, down to {room_left}, in a context of {context}",
                f"set stages.{use.stage}.max_tokens to {room_left} for all to get the same",
            )
        )
    return findings


def _too_long(
    over: list[str], lengths: Mapping[str, int], longest: str, about: str, where: str, most: int
) -> list[Check]:
    if not over:
        return []
    every = len(over) == len(lengths)
    listed = ", ".join(over[:3]) + (f" and {len(over) - 3} more" if len(over) > 3 else "")
    return [
        Check(
            about,
            "failed" if every else "warning",
            f"{where}: {len(over)} of {len(lengths)} prompts leave no room in {most} tokens: "
            f"{listed}; the longest, {longest}, has {lengths[longest]}",
            "no row comes of them: shorten them, or name a model with a longer context"
            if every
            else "they are counted and get no answer or reward; shorten them to keep them",
        )
    ]
