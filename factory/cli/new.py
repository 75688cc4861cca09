"""factory new: write a recipe with its files."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.artifacts.resources import shipped
from factory.cli.app import app
from factory.cli.run import recipe_names
from factory.errors import InputError, RecipeError

if TYPE_CHECKING:
    from factory.planning.recipe import LoadedRecipe

_SMALL = "local/SmolLM2-135M-Instruct-Q4_1"  # needs no hub

_RECIPE = """\
# Every knob: docs/recipe.md. What it would do: factory plan {path}
name: {name}
org: local                 # repos are {{org}}/{{name}}-{{step}}; factory push --rename local=ME
languages: [{languages}]
license: {license}

models:
  policy: {model}
  reward: {reward}

stages:
  prompts: {{source: "{data}"}}
{sources}  generate: {{n: 8, max_tokens: 256}}
  score: {{}}
  pair: {{}}
  dpo: {{each: all}}
{evaluation}"""
_PREFERENCES = """\
  preferences: {{source: "{folder}/preferences.jsonl"}}   # a sample; or a reward model by its name
  reward: {{epochs: 1}}
"""
_QUESTIONS = '  questions: {{source: "{data}"}}   # held out: never trained on\n'
_EVALUATION = "  arena: {of: [policy, dpo]}\n  judge: {judge: reward}\n"


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The recipe to write, a .yaml file.")],
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Copy this recipe.", autocompletion=recipe_names),
    ] = None,
    languages: Annotated[
        str | None, typer.Option("--languages", "--language", help="Codes, as en,da.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to tune, as org/name.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "--prompts", help="Prompts: a file or a dataset; {language} is filled in."
        ),
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="Questions to evaluate on: a file or a dataset.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward model, a classifier; default: one trained here.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of what is made, as apache-2.0.")
    ] = None,
) -> None:
    """Write a recipe of your own, with its files.

    Asks on a terminal for what the options leave out.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{path} is no name of a recipe", f"write {path}.yaml")
    if path.exists():
        raise RecipeError(f"{path} exists", "choose another name")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "mine"
    if from_ is not None:
        options = {
            "--languages": languages, "--model": model, "--data": data, "--questions": questions,
            "--reward": reward, "--license": license_,
        }  # fmt: skip
        if unused := ", ".join(name for name, value in options.items() if value):
            raise RecipeError(
                f"--from copies a recipe as it is, so {unused} would change nothing",
                f"leave it out, and edit {path} afterwards",
            )
        text, files = _copy_of(from_, name, path.parent)
    else:
        languages = languages or _ask("--languages", "Languages, as en,da", "en")
        codes = [code for code in re.split(r"[,\s]+", languages) if code]
        model = model or _ask("--model", "Model to tune (this small one needs no hub)", _SMALL)
        if data is None and sys.stdin.isatty():
            data = _ask_for_data(codes)
        license_ = license_ or _ask("--license", "Licence of what is made", "apache-2.0")
        text, files = _written(path, name, codes, model, data, questions, reward, license_)
    loaded = _save(path, text, files)
    _next_steps(loaded, sorted(files))


def _ask(option: str, question: str, default: str) -> str:
    """Ask a person. Raises RecipeError where nobody can answer."""
    if not sys.stdin.isatty():
        raise RecipeError(f"{option} is missing", f"give {option}, as {default}; or --from demo")
    return str(typer.prompt(question, default))


def _ask_for_data(codes: Sequence[str]) -> str | None:
    """Ask a person for prompts; no answer stands for the samples, if all languages have some."""
    ask = "Prompts: a file or a dataset, {language} filled in"
    if all(_sample_prompts(code).is_file() for code in codes):
        return str(typer.prompt(f"{ask} (empty: sample prompts)", "", show_default=False)) or None
    return str(typer.prompt(ask))


def _sample_prompts(code: str) -> Path:
    return shipped("recipes") / "demo" / f"prompts-{code}.jsonl"


def _copy_of(source: str, name: str, folder: Path) -> tuple[str, dict[Path, Path]]:
    """Return the text of a recipe under a new name, and the files to copy: to, from."""
    from factory import config
    from factory.planning import lock
    from factory.planning.recipe import load
    from factory.stage.readers import is_file

    loaded = load(source)
    if loaded.folders:  # it extends others, which may not lie beside the copy
        fields = {**loaded.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)}
        text = config.dump({**fields, "name": name})
    else:
        text = re.sub(
            r"^name: .*$", f"name: {name}", loaded.path.read_text(encoding="utf-8"), flags=re.M
        )
    files = {
        folder / need.source: loaded.file(need.source)
        for need in lock.outside(loaded.recipe)
        if is_file(need.source) and not Path(need.source).is_absolute()
    }
    return text, files


def _written(
    path: Path,
    name: str,
    codes: list[str],
    model: str,
    data: str | None,
    questions: str | None,
    reward: str | None,
    license_: str,
) -> tuple[str, dict[Path, Path]]:
    """Return the text of a recipe, and the sample files to copy: to, from."""
    from factory.stage.readers import as_spelt, is_file, named

    samples = shipped("recipes") / "demo"
    files: dict[Path, Path] = {}

    def beside(source: str) -> str:
        """Return a source as the recipe names it: a file by its path from the recipe."""
        if not is_file(source) and not Path(source).exists():
            return source
        for code in codes:
            if not as_spelt(Path(named(source, code))).exists():
                raise InputError(
                    f"there is no file {named(source, code)}",
                    f"write it, leave {code} out of --languages, or name another --data",
                )
        return os.path.relpath(source, path.parent)

    if data:
        data = beside(data)
    else:
        for code in codes:
            sample = _sample_prompts(code)
            if not sample.is_file():
                raise InputError(
                    f"there are no sample prompts in {code!r}",
                    f"give --data, a file of rows such as {{prompt: …}} in {code}",
                )
            files[path.parent / name / sample.name] = sample
        data = f"{name}/prompts-{{language}}.jsonl"
    sources = ""
    if reward is None:
        files[path.parent / name / "preferences.jsonl"] = samples / "preferences.jsonl"
        sources += _PREFERENCES.format(folder=name)
    if questions:
        sources += _QUESTIONS.format(data=beside(questions))
    text = _RECIPE.format(
        path=path,
        name=name,
        languages=", ".join(codes),
        license=license_,
        model=model,
        reward="{kind: classifier, step: reward}"
        if reward is None
        else f"{{kind: classifier, name: {reward}}}",
        data=data,
        sources=sources,
        evaluation=_EVALUATION if questions else "",
    )
    return text, files


def _save(path: Path, text: str, files: dict[Path, Path]) -> LoadedRecipe:
    """Write a recipe and its files, and load it. A recipe that does not load is taken away again.
    Raises FactoryError."""
    from factory.planning.recipe import load

    for target, source in files.items():
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise InputError(f"{target} exists with other content", "choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        loaded = load(str(path))
    except RecipeError:
        path.unlink()
        raise
    for target, source in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return loaded


def _next_steps(loaded: LoadedRecipe, files: list[Path]) -> None:
    from factory.execution.builtin_models import POCKET
    from factory.planning import lock
    from factory.stage.readers import is_file

    name = loaded.called
    count = f"{len(files)} file{'s' * (len(files) > 1)}"
    typer.echo(f"{name}" + (f" and {count} in {files[0].parent}" if files else ""))
    elsewhere = [
        need.source
        for need in lock.outside(loaded.recipe)
        if not is_file(need.source) and need.source.partition("@")[0] not in POCKET
    ]
    pull = [f"factory pull {name}    # unless here: {', '.join(elsewhere)}"] if elsewhere else []
    typer.echo("\n".join(["Next:", *pull, f"factory plan {name}", f"factory run {name}"]))
