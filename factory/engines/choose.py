"""Choose the engine of a model: by the recipe, or by what is installed and what the machine has.

The engine is how, not what: it is recorded in the manifest and never part of an identity.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import Field, model_validator

from factory.artifacts.resources import install_command
from factory.config import Knobs
from factory.engines import Likelihood, Sampler, Scorer, checkpoint
from factory.engines.chat_template import Stops
from factory.errors import StageError

if TYPE_CHECKING:
    from factory.engines.openai import OpenAIChat

Name = Literal["auto", "vllm", "transformers", "openai"]


class EngineKnobs(Knobs):
    """Settings of an inference engine. `auto` takes vLLM where it is installed and there is a GPU,
    else transformers: on a CPU vLLM draws about half as many tokens a second.

    For vLLM, in its terms: `tensor_parallel`, GPUs that share one copy of the model (1 unless it
    does not fit on one); `gpu_memory_utilization`; `max_num_seqs`, requests at once (also the rows
    of a batch for transformers, and requests at once for openai); `max_num_batched_tokens`, tokens
    a step; `max_model_len`, tokens of the longest request, by default those of the longest one that
    comes, rounded up. For openai:
    `served_model`, the name on the server where it is not the one in the recipe.

    `processes`: engines on this machine, each in a process and on GPUs of its own; by default as
    many as fit the GPUs.
    """

    engine: Name = "auto"
    tensor_parallel: int = Field(1, ge=1)
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    max_num_seqs: int | None = Field(None, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1)
    max_model_len: int | None = Field(None, ge=1)
    served_model: str | None = None
    processes: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _without_batching(cls, data: Any) -> Any:
        """Read recipes with `batching`, a knob of which only the default is left."""
        if not isinstance(data, dict) or "batching" not in data:
            return data
        if data["batching"] != "static":
            raise ValueError(
                f"batching: {data['batching']} was removed: leave batching out, and use engine: "
                "vllm, which batches continuously"
            )
        return {key: value for key, value in data.items() if key != "batching"}

    def vllm(self) -> dict[str, Any]:
        """Return the settings as arguments of vLLM."""
        limits = {
            name: getattr(self, name)
            for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")
        }
        return {
            "tensor_parallel_size": self.tensor_parallel,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            **{key: value for key, value in limits.items() if value is not None},
        }


def resolve_engine(engine: Name) -> Name:
    """Return the engine to use for `engine` on this machine. Raises StageError when it is not
    installed, or when GPUs that this process was given, or for auto and vllm that the machine has,
    are not found."""
    installed = {
        "vllm": importlib.util.find_spec("vllm") is not None,
        "transformers": importlib.util.find_spec("transformers") is not None,
    }
    if engine != "openai" and installed["transformers"]:
        from factory.engines.transformers import check_gpus

        check_gpus(by_tool=engine != "transformers")
    if engine == "auto":
        from factory.engines.transformers import has_gpu

        engine = (
            "vllm"
            if installed["vllm"] and installed["transformers"] and has_gpu()
            else "transformers"
        )
    for needed in ("transformers", "vllm") if engine == "vllm" else ("transformers",):
        if not installed[needed]:  # every engine needs the tokenizers of transformers
            extra = "vllm" if engine == "vllm" else "generate"
            raise StageError(
                f"the engine {engine!r} needs {needed}, which is not installed",
                f"{install_command(extra)} (on ROCm: a container that has it)",
            )
    return engine


def processes(knobs: EngineKnobs) -> int:
    """Return how many processes share the work on this machine. Raises StageError."""
    if knobs.processes is not None:
        return knobs.processes
    if resolve_engine(knobs.engine) == "openai":
        return 1
    from factory.engines.transformers import gpu_count

    return max(1, gpu_count() // knobs.tensor_parallel)


class CountedEngine(Protocol):
    """An engine, or an object that runs on one: it counts tokens and can be closed."""

    @property
    def tokens(self) -> int: ...

    def close(self) -> None: ...


E = TypeVar("E", bound=CountedEngine)


class EngineCache(Generic[E]):
    """Cache of one engine. Another key, or the end of the block, closes the open engine, so that
    two models never share a device."""

    def __init__(self, opener: Callable[[str], E]) -> None:
        self._open = opener
        self._current: tuple[str, E] | None = None
        self._before = 0  # tokens of engines that are closed

    def tokens(self) -> int:
        """Return the tokens that all engines together have drawn or read so far."""
        current = self._current
        return self._before + (current[1].tokens if current else 0)

    def __call__(self, key: str = "") -> E:
        if self._current is None or self._current[0] != key:
            self.close()
            self._current = key, self._open(key)
        return self._current[1]

    def close(self) -> None:
        """Close the open engine, if there is one."""
        if self._current is not None:
            self._before = self.tokens()
            engine, self._current = self._current[1], None
            engine.close()

    def __enter__(self) -> EngineCache[E]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sampler(
    knobs: EngineKnobs,
    directory: Path,
    name: str,
    dtype: str,
    adapter: Path | None = None,
    other_adapters: Sequence[Path] = (),
) -> Sampler:
    """Open an engine that continues prompts with the model in `directory`, which the hub calls
    `name`, with `adapter` active; `other_adapters` can be activated in its place. Raises
    FactoryError."""
    engine = resolve_engine(knobs.engine)
    if engine == "vllm":
        from factory.engines.vllm import VllmSampler

        return VllmSampler(directory, dtype, adapter, knobs.vllm(), other_adapters)
    if engine == "openai":
        from factory.engines.openai import OpenAISampler, OpenAIServer

        if adapter is not None and knobs.served_model is None:
            raise StageError(
                "a server has a separate name for a model with an adapter",
                "set how.served_model to the name given to vllm serve --lora-modules",
            )
        if other_adapters:
            raise StageError(
                "a server names a base and each adapter, but how.served_model is one name",
                "use engine: vllm or transformers here, or merge the adapters and serve each",
            )
        server = OpenAIServer(knobs.served_model or name, knobs.max_num_seqs or 64)
        return OpenAISampler(directory, server)
    from factory.engines.transformers import TransformersSampler

    return TransformersSampler(directory, dtype, adapter, knobs.max_num_seqs, other_adapters)


def stopping(sampler: Sampler, directory: Path, stops: Stops) -> Sampler:
    """Return the sampler of the model in `directory`, whose answers end at these tokens."""
    if stops != "all":
        sampler.stop_ids = checkpoint.read(directory, stops).stop_ids
    return sampler


def chat(knobs: EngineKnobs, name: str, options: Mapping[str, Any]) -> OpenAIChat:
    """Open a served chat model, called `name` at the server unless `served_model` is set; `options`
    are added to every request. Raises StageError."""
    from factory.engines.openai import OpenAIChat, OpenAIServer

    return OpenAIChat(OpenAIServer(knobs.served_model or name, knobs.max_num_seqs or 64), options)


def scorer(knobs: EngineKnobs, directory: Path, dtype: str, longest: int | None = None) -> Scorer:
    """Open an engine that scores whole conversations, of up to `longest` tokens where that is
    known. Raises FactoryError."""
    engine = _reading(knobs)
    if engine == "vllm":
        from factory.engines.vllm import VllmScorer

        return VllmScorer(directory, dtype, knobs.vllm(), longest)
    from factory.engines.transformers import TransformersScorer

    return TransformersScorer(directory, dtype)


def likelihood(
    knobs: EngineKnobs, directory: Path, dtype: str, adapter: Path | None = None
) -> Likelihood:
    """Open an engine that computes log-probabilities. Raises FactoryError."""
    engine = _reading(knobs)
    if engine == "vllm":
        from factory.engines.vllm import VllmLikelihood

        return VllmLikelihood(directory, dtype, adapter, knobs.vllm())
    from factory.engines.transformers import TransformersLikelihood

    return TransformersLikelihood(directory, dtype, adapter)


def _reading(knobs: EngineKnobs) -> Name:
    """Return the engine for models that only read."""
    engine = resolve_engine(knobs.engine)
    if engine == "openai":
        raise StageError(
            "the engine 'openai' samples answers only, and computes no scores",
            "use engine: vllm or transformers here",
        )
    return engine
