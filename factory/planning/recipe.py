"""A recipe: one YAML file that says what to make, checked before anything is made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    create_model,
    field_serializer,
    field_validator,
)

from factory import config
from factory.artifacts.manifest import License
from factory.artifacts.resources import recipes
from factory.artifacts.schemas import SCHEMAS
from factory.config import Knobs
from factory.errors import RecipeError, nearest, raise_all
from factory.language.languages import define, defined, language
from factory.planning import rounds
from factory.planning.rounds import Rounds
from factory.planning.stages import STAGES
from factory.rewards.backends import model_class
from factory.stage.inputs import ExternalInput, SliceSpec, StepInput
from factory.stage.models import ModelRef, check_repo_name
from factory.stage.preference_pairs import COLUMNS
from factory.stage.readers import FILE_TYPES, View, as_spelt, is_file
from factory.stage.stage import Stage, StageContext, stage_of
from factory.training.train import probed_as_sampled

if TYPE_CHECKING:
    Stages = Any
else:
    # One optional field a stage, so that pydantic names an unknown one by its place in the file.
    Stages = create_model(
        "Stages", __base__=Knobs, **{stage.name: (stage | None, None) for stage in STAGES}
    )


@cache
def _stages_model(line: tuple[type[Stage], ...]) -> Any:
    """Return the model of stages with those of later rounds."""
    later: Any = {stage.name: (stage | None, None) for stage in line if stage not in STAGES}
    return create_model("Stages", __base__=Stages, **later) if later else Stages


def _in_rounds(value: Any, read: Callable[[Any], Any]) -> Any:
    """Read stages, those of later rounds too."""
    model = _stages_model(rounds.line(value)) if isinstance(value, dict) else Stages
    return read(value) if model is Stages else model.model_validate(value)


_REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.*)?")
_SOURCES = {"source", "from", "preset"}
_READING = _SOURCES | View.model_fields.keys()
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_LONGEST_NAME = 54  # of a recipe; a collection's title has 60 characters, six of them "CroCo "


def _of_its_kind(value: Any, read: Callable[[Any], ModelRef]) -> ModelRef:
    """Read a model by the class of its kind: rewards have keys of their own."""
    if not isinstance(value, dict) or "kind" not in value:
        return read(value)
    return model_class(value["kind"]).model_validate(value)


Model = SerializeAsAny[Annotated[ModelRef, WrapValidator(_of_its_kind)]]


class LanguageKnobs(Knobs):
    """A language that CLDR does not name, or another word for one that it does: `name` in English,
    `own_name`, `script` (ISO 15924: Latn, Arab), and the labels that a detector of languages may
    give to right text (`detect`)."""

    name: str | None = Field(None, min_length=1)
    own_name: str | None = Field(None, min_length=1)
    script: str | None = Field(None, pattern="^[A-Z][a-z]{3}$")
    detect: tuple[str, ...] | None = None


class Recipe(Knobs):
    """A recipe: languages, models and stages. See recipes/demo.yaml, which explains every part."""

    name: Annotated[str, Field(pattern=NAME)]  # every repo is {org}/{name}-{step}
    org: Annotated[str, Field(pattern=NAME)]  # user or organisation on the hub
    description: str = ""  # a sentence, for the collection
    # codes of BCP 47, in the order of all tables; or each with what CLDR does not say of it:
    # {en: {}, sme: {name: Northern Sami, detect: [se]}}
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    _stated: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)  # of languages
    seed: Annotated[int, Field(ge=0)] = 0  # of everything that is drawn
    license: License | None = None  # of everything made; else as cards/licenses.py finds
    licenses: dict[str, License] = Field(default_factory=dict)  # of sources that state none
    private: bool = False  # repos and collection
    reuse: tuple[str, ...] = ()  # collections, by slug, whose artifacts may stand in this one
    # Where it does something else than what it follows: a knob as stage.knob, or a stage where no
    # knob says it, and why. Shown on every card that it concerns.
    departures: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    # by the name that stages call them: org/name[@revision], or more words
    models: dict[Annotated[str, Field(pattern=NAME)], Model]
    # once, or several times, each from the last adapter; see Rounds. Read when the recipe is loaded
    rounds: Rounds = Field(Rounds(), exclude=True)
    # those that it has, with their knobs; dpo-2 is dpo in round 2
    stages: SerializeAsAny[Annotated[Stages, WrapValidator(_in_rounds)]]

    @field_validator("name", "org")
    @classmethod
    def _hub_takes(cls, value: str, info: ValidationInfo) -> str:
        if "--" in value or ".." in value or value[-1] in "-.":
            raise ValueError(f"no hub takes {value!r}: -- or .. in it, or - or . at its end")
        if info.field_name == "name" and len(value) > _LONGEST_NAME:
            raise ValueError(
                f"has {len(value)} characters; the title of a collection holds {_LONGEST_NAME}"
            )
        return value

    @field_validator("languages", mode="before")
    @classmethod
    def _check_languages(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple | dict):
            raise ValueError("languages is a list of codes, like [en, es]")
        stated = {}
        for code, fields in value.items() if isinstance(value, dict) else ():
            try:
                knobs = LanguageKnobs.model_validate({} if fields is None else fields)
            except ValidationError as error:
                first = error.errors()[0]
                at = ".".join(map(str, (code, *first["loc"])))
                keys = ", ".join(LanguageKnobs.model_fields)
                raise ValueError(f"{at}: {first['msg']} (its keys are {keys})") from None
            stated[str(code)] = knobs.model_dump(exclude_none=True)
        define({code: fields for code, fields in stated.items() if fields})
        for code in value:
            try:
                language(code)
            except RecipeError as error:
                raise ValueError(f"{error.what}; {error.fix}") from None
        if len(set(value)) < len(value):
            raise ValueError("a language is there twice")
        return tuple(value)

    def model_post_init(self, _: Any) -> None:
        """Keep what the recipe says of its languages."""
        self._stated = {code: dict(defined(code)) for code in self.languages if defined(code)}

    @field_serializer("languages")
    def _as_stated(self, value: tuple[str, ...]) -> Any:
        return {code: self._stated.get(code, {}) for code in value} if self._stated else list(value)

    @field_validator("departures")
    @classmethod
    def _of_a_stage(cls, value: dict[str, str]) -> dict[str, str]:
        names = [stage.name for stage in STAGES]
        for at in value:
            if stage_of(name := at.partition(".")[0]) not in names:
                raise ValueError(f"{at!r} begins with no stage{nearest(name, names)}")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`policy: org/name@revision` for `policy: {name: org/name, revision: …}`."""
        if not isinstance(value, dict):
            return value
        return {
            key: dict(zip(("name", "revision"), ref.split("@", 1), strict=False))
            if isinstance(ref, str)
            else ref
            for key, ref in value.items()
        }

    def context(self) -> StageContext:
        """Return the parts of this recipe that stages may use to plan. Its languages are those of
        the process from here on."""
        define(self._stated)
        return StageContext(self.languages, self.models, self.steps(), self._line())

    def _line(self) -> tuple[type[Stage], ...]:
        return rounds.line(type(self.stages).model_fields)

    def steps(self) -> dict[str, Stage]:
        """Return the stages of this recipe, in the order of the line."""
        stages = {stage.name: getattr(self.stages, stage.name) for stage in self._line()}
        made = {name: stage for name, stage in stages.items() if stage is not None}
        return probed_as_sampled(made)

    def slices(self) -> list[tuple[Stage, SliceSpec]]:
        """Return every slice of every stage, but for steps that nothing reads any more. Raises
        RecipeError for a reference to nothing."""
        laid = self._laid()
        unread = _unread(laid, self.context())
        return [(stage, spec) for stage, spec in laid if spec.step not in unread]

    def unread(self) -> list[str]:
        """Return the steps that are not made: nothing but a stage that is taken in (`from:`) would
        have read them. Raises RecipeError."""
        laid = self._laid()
        unread = _unread(laid, self.context())
        return [step for step in dict.fromkeys(spec.step for _, spec in laid) if step in unread]

    def _laid(self) -> list[tuple[Stage, SliceSpec]]:
        context = self.context()
        by_step: dict[str, list[tuple[Stage, SliceSpec]]] = {}
        for stage in self.steps().values():
            for spec in context.slices(stage.name, stage.name):
                by_step.setdefault(spec.step, []).append((stage, spec))
        ordered: dict[str, list[tuple[Stage, SliceSpec]]] = {}

        def place(step: str) -> None:
            """Put a step after those that it reads: questions may be read by prompts."""
            for _, spec in by_step[step]:
                for need in spec.needs:
                    if isinstance(need, StepInput) and need.step not in ordered:
                        place(need.step)
            ordered.setdefault(step, by_step[step])

        for step in by_step:
            place(step)
        return [pair for pairs in ordered.values() for pair in pairs]


def _unread(laid: Sequence[tuple[Stage, SliceSpec]], context: StageContext) -> set[str]:
    """Return the steps whose only readers are stages that are taken in, or steps that are unread
    themselves."""
    taken_in = {stage.name: stage for stage, _ in laid if stage.from_ is not None}
    if not taken_in:
        return set()
    readers: dict[str, set[str]] = {}
    reads: dict[str, set[str]] = {}
    for _, spec in laid:
        for step in _steps(spec):
            readers.setdefault(step, set()).add(spec.step)
            reads.setdefault(spec.step, set()).add(step)
    candidates: set[str] = set()
    for stage in taken_in.values():
        try:
            made_here = stage.model_copy(update={"from_": None}).plan_slices(context)
        except RecipeError:
            continue  # it could not be made here: nothing stands for it
        candidates |= {step for spec in made_here for step in _steps(spec)}
    unread: set[str] = set()
    while ready := {step for step in candidates if readers.get(step, set()) <= unread} - unread:
        unread |= ready
        candidates |= {step for name in ready for step in reads.get(name, ())}
    return unread


def _steps(spec: SliceSpec) -> set[str]:
    return {need.step for need in spec.needs if isinstance(need, StepInput)}


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, the file it came from, whether that file ships with the package, and the org and
    name of every recipe that it extends, with the `folders` that these are in. `files`: where local
    files lie that are elsewhere than the recipe says, by what it calls them."""

    recipe: Recipe
    path: Path
    packaged: bool
    extends: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)  # file:line of each source

    @property
    def called(self) -> str:
        """The name by which commands take this recipe."""
        if self.packaged:
            return self.path.stem
        relative = os.path.relpath(self.path)
        return str(self.path) if relative.startswith("../..") else relative

    def file(self, source: str) -> Path:
        """Return the path of a local file that the recipe names: beside it, or beside a recipe that
        it extends."""
        if path := self.files.get(source):
            return path
        places = [(folder / source).resolve() for folder in (self.path.parent, *self.folders)]
        return next((p for place in places if (p := as_spelt(place)).exists()), places[0])


def find(name: str) -> tuple[Path, bool]:
    """Return the file for a path or for the name of a packaged recipe, and whether it is packaged.
    Raises RecipeError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path.resolve(), False
        if not path.is_dir():
            raise RecipeError(f"no recipe at {name}", "check the path")
    packaged = recipes()
    if name and name not in packaged and path.is_dir():
        raise RecipeError(f"{name} is a directory", "give the .yaml file of a recipe in it")
    if name not in packaged:
        raise RecipeError(
            f"no recipe called {name!r}{nearest(name, packaged)}",
            f"give a path to a .yaml file, or one of {', '.join(sorted(packaged))}",
        )
    return packaged[name], True


def load(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load the recipe at a path or of a packaged name, with `key.path=value` overrides on top.

    Raises RecipeError, which names the line and suggests the closest valid key.
    """
    path, packaged = find(name)
    lineage: list[tuple[tuple[str, str], Path]] = []
    document = _read(path, (), lineage)
    if not isinstance(document.data, dict):
        raise RecipeError(f"{path.name} holds no recipe", "factory new writes one")
    for override in sorted(overrides, key=lambda option: not _names_source(option)):
        _override(document, override)
    _complete(document, document.data.pop("required", None) or {}, path.name)
    rounds.unroll(document, merge)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document, Recipe, "the recipe") from None
    context = recipe.context()
    faults: dict[tuple[str, str], RecipeError] = {}
    for stage in recipe.steps().values():
        try:
            context.slices(stage.name, stage.name)
        except RecipeError as error:
            place = document.place(("stages", stage.name))
            # a stage that reads one with a fault has the same fault
            key = ("".join(re.findall(r"'.*?'", error.what)[:1]), error.fix)
            faults.setdefault(key, RecipeError(f"{place}: {error.what}", error.fix))
    raise_all(list(faults.values()))
    parents = tuple(parent for parent, _ in lineage if parent != (recipe.org, recipe.name))
    folders = tuple(dict.fromkeys(folder for _, folder in reversed(lineage)))
    places = _places(recipe, document)
    loaded = LoadedRecipe(recipe, path, packaged, parents, folders=folders, places=places)
    raise_all([*_source_faults(loaded), *_map_faults(recipe, document)])
    return loaded


def _places(recipe: Recipe, document: config.Document) -> dict[str, str]:
    """Return where the recipe names each source: file:line."""
    places: dict[str, str] = {}
    for stage, spec in recipe.slices():
        for need in spec.needs:
            if not isinstance(need, ExternalInput) or need.source in places:
                continue
            name = need.source.partition("@")[0]
            path: config.Path = ("stages", stage.name)
            for key, model in recipe.models.items():
                if name == model.name or need.source == model.adapter:
                    path = ("models", key)
            for key in ("source", "from"):
                if path[0] == "stages" and (*path, key) in document.places:
                    path = (*path, key)
            places[need.source] = document.place(path)
    return places


# Tables that other programs write, and what would read them.
_OTHER_FILES = (".txt", ".xlsx", ".arrow", ".feather", ".gz", ".zst", ".zip", ".bz2", ".xz")


def _source_faults(loaded: LoadedRecipe) -> Iterator[RecipeError]:
    """Yield an error for each source of rows that is an address, a directory, or a file of another
    type."""
    for source, place in loaded.places.items():
        if is_file(source):
            if "://" in source:
                yield RecipeError(
                    f"{place}: {source!r} is an address, not a file",
                    "download it beside the recipe, or name the dataset: {source: org/name, "
                    "file: path in it}",
                )
            continue
        path = loaded.file(source.partition("@")[0])
        if not is_file(source) and source.lower().endswith(_OTHER_FILES):
            ending, fix = path.suffix, f"save it as {' or '.join(FILE_TYPES)}"
            yield RecipeError(f"{place}: {source}: no rows are read from {ending} files", fix)
        elif path.is_dir() and not _REPO.fullmatch(source):
            files = sorted(file.name for file in path.iterdir() if is_file(file.name))
            for_example = f", as {source.rstrip('/')}/{files[0]}" if files else ""
            yield RecipeError(
                f"{place}: {source} is a directory",
                f"name one {', '.join(FILE_TYPES)} file{for_example}; {{language}} is filled in",
            )
        else:
            try:
                check_repo_name(source)
            except ValueError as error:
                yield RecipeError(f"{place}: {error.args[0]}", error.args[1])


# Columns that rows from outside may have, beside those of the kind that is made of them.
_READ_OF_ANY = (
    "prompt", "messages", "id", "language", "response", "completion", "answer", "reward",
    "reward_score", "score", "chosen", "rejected", "margin", *COLUMNS,
)  # fmt: skip


def _map_faults(recipe: Recipe, document: config.Document) -> Iterator[RecipeError]:
    """Yield an error for each unknown key in a map of columns or departures."""
    for name, stage in recipe.steps().items():
        views: list[tuple[str, Any]] = [("", stage), ("from", stage.from_)]
        for key, view in views if stage.kind in SCHEMAS else ():
            known = [*dict.fromkeys((*_READ_OF_ANY, *SCHEMAS[stage.kind].names))]
            for column in getattr(view, "columns", None) or {}:
                if column not in known:
                    path = (*(("stages", name, key) if key else ("stages", name)), "columns")
                    yield RecipeError(
                        f"{document.place((*path, column))}: {'.'.join(path)} has no column "
                        f"{column!r}{nearest(column, known)}",
                        f"ours come first, as {{prompt: theirs}}: {', '.join(known)}",
                    )
    steps = recipe.steps()
    for at in recipe.departures:
        name, _, knob = at.partition(".")
        if knob and name in steps and not _has_knob(type(steps[name]), knob.split(".")):
            knobs = _keys(type(steps[name]))
            yield RecipeError(
                f"{document.place(('departures', at))}: {name} has no knob "
                f"{knob!r}{nearest(knob, knobs)}",
                f"it has {', '.join(knobs)}",
            )


def _has_knob(model: Any, parts: list[str]) -> bool:
    info = next((f for k, f in model.model_fields.items() if parts[0] in (k, f.alias)), None)
    if info is None:
        return False
    inner = [
        part
        for part in (info.annotation, *getattr(info.annotation, "__args__", ()))
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return len(parts) == 1 or not inner or any(_has_knob(part, parts[1:]) for part in inner)


def _keys(model: type[BaseModel]) -> list[str]:
    """Return the keys of a model as a file writes them."""
    return [info.alias or name for name, info in model.model_fields.items()]


def _read(
    path: Path, children: tuple[Path, ...], lineage: list[tuple[tuple[str, str], Path]]
) -> config.Document:
    """Return the document at `path` merged over those that it extends. Their org, name and folder
    are appended to `lineage`, the farthest first."""
    if path in children:
        raise RecipeError(f"{path.name} extends itself", "break the circle")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not text in UTF-8", "save it as that") from None
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {error.strerror}", "check who may read it"
        ) from None
    document = config.parse(text, path.name)
    if isinstance(document.data, dict) and "extends" in document.data:
        parent_name = str(document.data.pop("extends"))
        parent = path.parent / parent_name
        if not parent.is_file():
            packaged = recipes()
            if parent_name not in packaged:
                place = document.place(("extends",))
                raise RecipeError(
                    f"{place}: no recipe at {parent_name}{nearest(parent_name, packaged)}",
                    "give a .yaml file by its path from this one, or the name of a packaged recipe",
                )
            parent = packaged[parent_name]
        base = _read(parent.resolve(), (*children, path), lineage)
        if not isinstance(base.data, dict):
            raise RecipeError(f"{parent_name} holds no recipe", "check extends:")
        identity = (str(base.data.get("org")), str(base.data.get("name")))
        lineage.append((identity, parent.resolve().parent))
        return config.Document(merge(base.data, document.data), {**base.places, **document.places})
    return document


def merge(base: Any, top: Any) -> Any:
    """Merge `top` over `base`: mappings merge, anything else replaces, null removes a key. Another
    source replaces all that `base` says of how one is read."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    other = _SOURCES & top.keys()
    merged = {key: value for key, value in base.items() if not (other and key in _READING)}
    for key, value in top.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _complete(document: config.Document, required: Any, name: str) -> None:
    """Raises RecipeError that names whatever `required:` lists, by path with the reason, and the
    recipe does not say: values that nobody but the one who runs it can decide."""
    if not isinstance(required, dict) or not all(isinstance(v, str) for v in required.values()):
        place = document.place(("required",))
        raise RecipeError(
            f"{place}: required holds a path and a reason each", "write stages.dpo.lr: why"
        )
    unsaid = {path: why for path, why in required.items() if not _has_value(document.data, path)}
    if unsaid:
        listed = "; ".join(f"{path} ({why})" for path, why in unsaid.items())
        options = " ".join(f"--set {path}=…" for path in unsaid)
        raise RecipeError(
            f"{name} leaves to you: {listed}",
            f"give {options}, or say them in a recipe that extends it",
        )


def _has_value(data: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(data, dict) or data.get(part) is None:
            return False
        data = data[part]
    return True


def _names_source(override: str) -> bool:
    return override.partition("=")[0].rpartition(".")[2] in _SOURCES


def _override(document: config.Document, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        missing = "key before" if equals else ""
        raise RecipeError(f"--set {override}: no {missing} '='", "write --set stages.generate.n=12")
    parts = key.split(".")
    target = document.data
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in target:
            target[part] = {}
            document.places[tuple(parts[:depth])] = f"--set {key}"
        target = target[part]
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: {part!r} holds no keys", "check the path")
    if _names_source(override):  # as under extends, but for what is --set as well
        for key in _READING & target.keys():
            if not document.places.get((*parts[:-1], key), "").startswith("--set"):
                del target[key]
    target[parts[-1]] = config.parse(value, "--set").data
    if target[parts[-1]] is None:  # as under extends: null takes a key away
        del target[parts[-1]]
    document.places[tuple(parts)] = f"--set {key}"


def explain(
    error: ValidationError, document: config.Document, model: type[BaseModel], what: str
) -> RecipeError:
    """Return all of pydantic's complaints about `document`, read as a `model` that people call
    `what`, in plain words: each with its line and the nearest right word. An unknown key comes
    before the one that is missing because it was misspelt, which is left out."""
    by_place: dict[config.Path, list[Any]] = {}
    for problem in error.errors():
        at = _path(problem["loc"], problem["type"], document.data)
        by_place.setdefault(at, []).append(problem)
    unknown = {at[:-1] for at, [first, *_] in by_place.items() if first["type"] == _UNKNOWN}
    faults = []
    for at, problems in by_place.items():
        if problems[0]["type"] == "missing" and at[:-1] in unknown:
            continue
        faults.append(_fault(at, problems, document, model, what))
    first, *rest = sorted(faults, key=lambda fault: " has no " not in fault.what)
    first.also = tuple(rest)
    return first


_UNKNOWN = "extra_forbidden"


def _path(loc: tuple[Any, ...], kind: str, data: Any) -> config.Path:
    """Return the keys of the file that a complaint is about. Where a value may have several forms,
    pydantic names the form that it tried as well."""
    path: list[Any] = []
    for number, part in enumerate(loc):
        inside = isinstance(data, dict) and part in data
        inside |= isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside:
            data = data[part]
            path.append(part)
        elif kind == "missing" and number == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _fault(
    path: config.Path,
    problems: Sequence[Any],
    document: config.Document,
    model: type[BaseModel],
    what: str,
) -> RecipeError:
    """Return what is wrong at one place of a file."""
    first = problems[0]
    dotted = ".".join(str(part) for part in path)
    place = document.place(path)
    if first["type"] == _UNKNOWN:
        keys = _siblings(path, model, document.data)
        word = str(path[-1])
        where = ".".join(str(part) for part in path[:-1]) or what
        noun = "stage" if path[:-1] == ("stages",) else "key"
        return RecipeError(
            f"{place}: {where} has no {noun} {word!r}{nearest(word, keys)}",
            f"it may have {', '.join(keys)}",
        )
    if first["type"] == "missing":
        return RecipeError(f"{place}: {dotted} is missing", "add it")
    fix = "mend it there" if place.startswith("--set") else "mend that line"
    raised = [problem["ctx"]["error"] for problem in problems if problem["type"] == "value_error"]
    if raised:
        message, *fixes = raised[0].args or ("is not possible",)
        return RecipeError(f"{place}: {dotted or what}: {message}", fixes[0] if fixes else fix)
    expected = " or ".join(dict.fromkeys(_wanted(problem) for problem in problems))
    return RecipeError(f"{place}: {dotted or what}: must be {expected}, not {_shown(first)}", fix)


def _shown(problem: Any) -> str:
    value = problem["input"]
    if value is None:
        return "empty"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) < 60 else f"{text[:57]}..."


def _wanted(problem: Any) -> str:
    """Return what kind of value a complaint of pydantic asks for."""
    kind, limits = problem["type"], problem.get("ctx", {})
    for words, types in _KINDS.items():
        if kind in types:
            return words
    match kind:
        case "literal_error" | "enum":
            return str(limits["expected"])
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
        case "greater_than":
            return f"over {limits['gt']:g}"
        case "less_than":
            return f"under {limits['lt']:g}"
        case "too_short" | "string_too_short":
            least = limits["min_length"]
            return "not empty" if least == 1 else f"at least {least} long"
        case "too_long" | "string_too_long":
            return f"at most {limits['max_length']} long"
        case "string_pattern_mismatch" if limits["pattern"] == NAME:
            return "letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
        case "string_pattern_mismatch":
            return f"of the form {limits['pattern']}"
    return "something else"


_KINDS = {
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "a finite number": ("finite_number",),
    "true or false": ("bool_type", "bool_parsing"),
    "text": ("string_type",),
    "a list, like [a, b]": ("list_type", "tuple_type", "set_type", "frozen_set_type"),
    "a map, like {key: value}": (
        "dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type",
    ),
    "empty": ("none_required",),
}  # fmt: skip


def _siblings(path: tuple[Any, ...], model: Any, data: Any) -> list[str]:
    """Return the keys that are allowed where `path` ends, in a `model` that `data` was read as."""
    parts = iter(path[:-1])
    for part in parts:
        if model is Stages and part not in model.model_fields:
            part = stage_of(part)  # of a later round
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [
            getattr(part, "__origin__", part)  # the type under Annotated
            for part in (annotation, *getattr(annotation, "__args__", ()))
        ]
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), Knobs
        )
        if getattr(annotation, "__origin__", None) is dict:
            next(parts, None)  # the key of its own that a person chose
    if model is ModelRef:
        for part in path[:-1]:
            data = data[part]
        model = model_class(data.get("kind", "causal"))
    return _keys(model)
