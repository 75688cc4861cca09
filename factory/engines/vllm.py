"""The vLLM engine: continuous batching on NVIDIA and AMD GPUs, and on a CPU for tests.

Version 0.32 is run by the tests, on a CPU; the arguments used here were also read in the sources of
0.22.1 and 0.33.0. Where versions differ is said in the code. The engine runs in a process of its
own, so a lane that turns answers into rows does not hold it up, and a batch joins what is under way
whenever it comes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from factory.engines import Completion, Sampling, checkpoint, loaded_adapter, rooms_of
from factory.engines.guard import Guard, descendants
from factory.engines.pipelining import release_turn
from factory.errors import InputError, StageError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM takes for max_lora_rank
LANES = 2  # while one shard's last answers are drawn, the next one's first are
_PACKED = ("qkv_proj", "gate_up_proj")  # what vLLM makes of q, k, v and of gate, up
_PROMPT_LOGITS = 2048  # tokens a step where each one's logits are kept: 1 GB at 128,000 words
_SHORTEST = 4096  # tokens of a request that an engine is opened for at the least
# an error in what a process of vLLM prints, behind its log's prefix
_ERROR = re.compile(r"(?:^|[\]\s])((?:\w+\.)*\w*(?:Error|Exception): \S.*)$")
# what vLLM says of the failure of another process of its own
_SECOND_HAND = re.compile(r"initialization failed|See root cause|See stack trace|died unexpectedly")

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing leaves a cluster
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # see _Messages
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; read on a CPU alone
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # see VllmLikelihood
}


def max_lora_rank(rank: int) -> int:
    """Return the smallest rank that vLLM can reserve for an adapter of `rank`. Raises
    InputError."""
    ranks = [value for value in RANKS if value >= rank]
    if not ranks:
        raise InputError(
            f"vLLM takes adapters of rank up to {RANKS[-1]}, this one has {rank}",
            "merge it into its base model, or use engine: transformers",
        )
    return ranks[0]


class _Batch:
    """Requests of one caller, with one adapter or none. `done` holds their outputs in order when
    all are there, or the error."""

    def __init__(self, requests: Sequence[tuple[Sequence[int], Any]], lora: Any) -> None:
        self.requests, self.lora = requests, lora
        self.done: Future[list[Any]] = Future()
        self._outputs: list[Any] = [None] * len(requests)
        self._n_open = len(requests)

    def put(self, number: int, output: Any) -> None:
        """Store the output of one request."""
        self._outputs[number] = output
        self._n_open -= 1
        if not self._n_open:
            self.done.set_result(self._outputs)

    def fail(self, error: BaseException) -> None:
        """Raise `error` where the outputs are awaited, unless they are all there."""
        if not self.done.done():
            self.done.set_exception(error)


class _Engine:
    """vLLM's engine, stepped by one thread, fed by any number of callers."""

    def __init__(
        self, directory: Path, adapters: Mapping[Path, int], settings: dict[str, Any]
    ) -> None:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext

        # by name and number vLLM tells them apart, also the prefixes that it keeps
        self._loras = {
            path: LoRARequest(f"adapter-{number}", number + 1, str(path))
            for path, number in adapters.items()
        }
        if adapters:
            shapes = [checkpoint.lora(adapter) for adapter in adapters]
            rank = max_lora_rank(max(shape.rank for shape in shapes))
            # one has its place in memory at a time (max_loras is 1): they come one after another
            settings = {"enable_lora": True, "max_lora_rank": rank, **settings}
            targets = {target for shape in shapes for target in shape.targets}
            if all(shape.targets for shape in shapes) and "lm_head" not in targets:
                # otherwise the logits pass through an empty adapter, which costs time and cannot
                # be done for those of a prompt (0.32 on a CPU: they have another shape)
                settings["lora_target_modules"] = [*sorted(targets), *_PACKED]
        self._messages = _Messages()
        before = descendants()
        try:
            with self._messages.reading():
                self._engine: Any = LLMEngine.from_engine_args(
                    EngineArgs(
                        model=str(directory),
                        tokenizer=str(directory),
                        skip_tokenizer_init=True,  # token ids in, token ids out
                        # without it vLLM wants the tokenizer of a model that also reads images, and
                        # memory for the part that does
                        language_model_only=True,
                        generation_config="vllm",  # no default of the model's own
                        enable_prefix_caching=True,
                        enforce_eager=current_platform.is_cpu(),
                        trust_remote_code=False,
                        disable_log_stats=True,
                        **settings,
                    ),
                    # the requests and tokens a step of vLLM's own LLM class; those of the default
                    # are for a quick first answer of a server of unknown use
                    usage_context=UsageContext.LLM_CLASS,
                )
        except Exception as error:
            why = self._messages.cause() or _first(error)
            raise StageError(
                f"vLLM does not start on {directory.name}: {why}", _way_out(settings)
            ) from error
        self._messages.forget()
        self._guard = Guard(before)
        self._inbox: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._owners: dict[str, tuple[_Batch, int]] = {}
        self.tokens = 0  # drawn by a sampler, read by a scorer
        self.seed = int(settings.get("seed", 0))  # of its random stream
        self._thread = threading.Thread(target=self._serve, name="vllm", daemon=True)
        self._thread.start()

    def ask(
        self, requests: Sequence[tuple[Sequence[int], Any]], adapter: Path | None = None
    ) -> list[Any]:
        """Return vLLM's outputs to (token ids, parameters), in order, when all are there."""
        if not requests:
            return []
        batch = _Batch(requests, None if adapter is None else self._loras[adapter])
        self._inbox.put(batch)
        with release_turn():
            return batch.done.result()

    def close(self) -> None:
        """Drop requests in progress and end the engine's processes."""
        self._inbox.put(None)
        self._thread.join(timeout=60)
        self._engine.engine_core.shutdown()
        self._guard.dismiss()

    def _serve(self) -> None:
        batch: _Batch | None = None
        try:
            while True:
                while not self._owners or not self._inbox.empty():
                    batch = self._inbox.get()
                    if batch is None:
                        raise StageError("the engine was closed", "run the same command again")
                    for number, (ids, parameters) in enumerate(batch.requests):
                        self._add(batch, number, ids, parameters)
                for output in self._engine.step():
                    if output.finished:
                        owner, number = self._owners.pop(output.request_id)
                        drawn = getattr(output.outputs, "data", None) is None
                        self.tokens += len(
                            output.outputs[0].token_ids if drawn else output.prompt_token_ids
                        )
                        owner.put(number, output)
        except BaseException as error:  # noqa: BLE001  (raised again where the answer is awaited)
            self._fail(error, batch)

    def _add(self, batch: _Batch, number: int, ids: Sequence[int], parameters: Any) -> None:
        name = str(next(self._numbers))
        self._owners[name] = (batch, number)
        prompt = {"type": "token", "prompt_token_ids": list(ids)}
        self._engine.add_request(name, prompt, parameters, lora_request=batch.lora)

    def _fail(self, error: BaseException, last: _Batch | None) -> None:
        waiting = [batch for batch, _ in self._owners.values()]
        waiting += [last] if last is not None else []
        while not self._inbox.empty():
            if (late := self._inbox.get()) is not None:
                waiting.append(late)
        failure = error
        if not isinstance(error, StageError):
            failure = StageError(
                f"vLLM stopped: {self._messages.cause() or _first(error)}",
                "its own messages are above; finished shards are kept, so run again, with a lower "
                "how.gpu_memory_utilization or how.max_num_seqs if memory ran out",
            )
            failure.__cause__ = error
        for batch in waiting:
            batch.fail(failure)


class _Vllm:
    """Base of the three vLLM engines.

    vLLM keeps memory for at least one request of its `max_model_len`, and a model's whole context
    (131,072 tokens, for one) may not fit. So it is opened for the longest request so far, rounded
    up; a longer one, which is rare, closes and opens it again when those under way are done.
    """

    lanes = LANES
    _extra = 0  # tokens of a request beside those that are asked for

    def __init__(
        self,
        directory: Path,
        dtype: str,
        adapter: Path | None = None,
        how: Mapping[str, Any] | None = None,
        other_adapters: Sequence[Path] = (),
    ) -> None:
        """Read the checkpoint; vLLM starts on first use. `adapter` is active at first,
        `other_adapters` can be activated in its place. `how`: arguments of vLLM's EngineArgs that
        change no result."""
        import vllm

        self.name = f"vllm {vllm.__version__}"
        self._checkpoint = checkpoint.read(directory)
        self._settings = {"dtype": dtype, **(how or {})}
        self._limit: int | None = self._settings.pop("max_model_len", None)
        self._adapters, self._adapter = loaded_adapter(adapter, other_adapters), adapter
        self._started: _Engine | None = None
        self._changed = threading.Condition()
        self._loading: threading.Thread | None = None  # opens it before the first request
        self._users = self._openings = self._before = 0
        self._opened_for = self._longest = 0  # tokens of a request: now, and as it has to be
        self.tokenizer = self._checkpoint.tokenizer
        self.max_context = self._checkpoint.max_context
        self.stop_ids = self._checkpoint.stop_ids

    @property
    def tokens(self) -> int:
        """Tokens drawn or read so far."""
        return self._before + (self._started.tokens if self._started else 0)

    def _open_settings(self) -> dict[str, Any]:
        """Return arguments of EngineArgs that this kind of engine adds."""
        return {}

    @contextlib.contextmanager
    def _engine(self, longest: int) -> Iterator[_Engine]:
        """Return the engine, opened for requests of `longest` tokens. Raises InputError for more
        than how.max_model_len, or than the model's context."""
        if longest > (limit := self._limit or self.max_context):
            what = "how.max_model_len" if self._limit else "the model's context"
            raise InputError(
                f"a request may take {longest} tokens, {what} allows {limit}",
                "raise how.max_model_len, or leave it out" if self._limit else "drop longer ones",
            )
        with release_turn(), self._changed:
            self._longest = max(self._longest, self._limit or self._rounded(longest))
            self._changed.wait_for(lambda: self._opened_for >= self._longest or not self._users)
            if self._started is None or self._opened_for < self._longest:
                self._stop()
                settings = {"max_model_len": self._longest + self._extra, **self._settings}
                directory = self._checkpoint.directory
                self._started = _Engine(directory, self._adapters, settings | self._open_settings())
                self._opened_for = self._longest
                self._openings += 1
            self._users += 1
            engine = self._started
        try:
            yield engine
        finally:
            with release_turn(), self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _rounded(self, longest: int) -> int:
        """Return the tokens to open the engine for: the next power of two, within the context."""
        return min(max(_SHORTEST, 1 << (longest - 1).bit_length()), self.max_context)

    def _stop(self) -> None:
        if self._started is not None:
            engine, self._before = self._started, self.tokens
            self._started, self._opened_for = None, 0
            engine.close()

    def close(self) -> None:
        if self._loading is not None:
            self._loading.join()
        with self._changed:
            self._stop()


class VllmSampler(_Vllm):
    """A causal model, with a LoRA adapter if one is given; `other_adapters` can be activated in its
    place, without loading the model again. See engines.Sampler.

    All answers come from one random stream, seeded by the first batch. A seed for each request
    would draw row by row, about one kernel launch a row and step, without making answers
    bit-stable: logits depend on what else is in the batch. On a CPU such requests end the engine
    (0.32: "CPU Generator does not use offset") when a prompt is read in two parts.
    """

    _seed: int | None = None

    def set_adapter(self, adapter: Path | None) -> None:
        if adapter is not None:
            self._adapters[adapter]  # a KeyError here, not in the engine's thread
        self._adapter = adapter

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        rooms = rooms_of(prompts, sampling, self.max_context)
        if not prompts:
            return []
        self._seed = seed if self._seed is None else self._seed
        longest = max(len(p) + r for p, r in zip(prompts, rooms, strict=True))
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = {
            room: SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=room,
                stop_token_ids=self.stop_ids,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for room in set(rooms)
        }
        requests = [(p, parameters[r]) for p, r in zip(prompts, rooms, strict=True)]
        with self._engine(longest) as engine:
            stream = engine.seed
            outputs = engine.ask(requests, self._adapter)
        stops = frozenset(self.stop_ids)
        return [Completion.cut(output.outputs[0].token_ids, stops, stream) for output in outputs]

    def _open_settings(self) -> dict[str, Any]:
        assert self._seed is not None
        return {"seed": (self._seed + self._openings) % 2**31}  # no stream is drawn from twice


class VllmScorer(_Vllm):
    """A sequence classifier with one label, pooled. See engines.Scorer."""

    def __init__(
        self,
        directory: Path,
        dtype: str,
        how: Mapping[str, Any] | None = None,
        longest: int | None = None,
    ) -> None:
        """Read the checkpoint. With `longest`, the tokens of the longest request that may come, the
        model begins to load at once, while the first rows are tokenized."""
        super().__init__(directory, dtype, how=how)
        checkpoint.one_label(self._checkpoint)
        if longest is not None:
            from vllm import LLMEngine  # noqa: F401  (here: two threads must not import at once)

            tokens = min(longest, self._limit or self.max_context)
            self._loading = threading.Thread(target=self._load, args=(tokens,), daemon=True)
            self._loading.start()

    def _load(self, longest: int) -> None:
        with contextlib.suppress(StageError), self._engine(min(longest, self.max_context)):
            pass  # the first request fails in the same way, where it is awaited

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        if not sequences:
            return []
        from vllm import PoolingParams

        raw = PoolingParams(task="classify", use_activation=False)  # the logit itself
        # vLLM pools the very last token
        read = [(self._checkpoint.classified(ids), raw) for ids in sequences]
        with self._engine(max(len(ids) for ids, _ in read)) as engine:
            outputs = engine.ask(read)
        return [float(output.outputs.data[0]) for output in outputs]

    def _open_settings(self) -> dict[str, Any]:
        return {"runner": "pooling"}


class VllmLikelihood(_Vllm):
    """A causal model that reads, with a LoRA adapter if one is given. See engines.Likelihood."""

    _extra = 1  # vLLM must draw one token beyond the text, which nobody reads

    def _open_settings(self) -> dict[str, Any]:
        most = self._settings.get("max_num_batched_tokens", _PROMPT_LOGITS)
        return {"max_num_batched_tokens": min(most, _PROMPT_LOGITS)}

    def log_probs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        if not sequences:
            return []
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,  # of the token itself and of no other
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        values = []
        with self._engine(max(map(len, sequences))) as engine:
            outputs = engine.ask([(ids, parameters) for ids in sequences], self._adapter)
        for ids, start, output in zip(sequences, starts, outputs, strict=True):
            table = output.prompt_logprobs
            values.append([table[i][ids[i]].logprob for i in range(start, len(ids))])
        return values


class _Messages:
    """What vLLM's processes print to standard error. It is passed on, and the last lines are kept:
    the process that fails says why, and the one that waits for it only that it did."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=400)
        self._reader: threading.Thread | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read what this process prints in the block, and those that it starts, to their end."""
        terminal = os.dup(2)
        receiving, sending = os.pipe()
        os.dup2(sending, 2)
        os.close(sending)
        self._reader = threading.Thread(
            target=self._pass_on, args=(receiving, terminal), name="vllm messages", daemon=True
        )
        self._reader.start()
        try:
            yield
        finally:
            os.dup2(terminal, 2)

    def _pass_on(self, receiving: int, terminal: int) -> None:
        with open(receiving, "rb") as lines, open(terminal, "wb", buffering=0) as out:
            for line in lines:
                with contextlib.suppress(OSError):
                    out.write(line)
                self._lines.append(line.decode(errors="replace").rstrip())

    def forget(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()

    def cause(self) -> str | None:
        """Return the first error that was printed, or None: of several, the others follow from
        it."""
        if self._reader is not None:
            self._reader.join(2)  # till the process that failed is gone
        errors = [match[1] for line in list(self._lines) if (match := _ERROR.search(line))]
        return next((e[:300] for e in errors if not _SECOND_HAND.search(e)), None)


def _way_out(settings: Mapping[str, Any]) -> str:
    """Return what to change where vLLM does not start, for an engine with these settings."""
    return (
        f"it was opened for requests of {settings['max_model_len']} tokens on "
        f"{settings.get('tensor_parallel_size', 1)} GPUs; if memory is short, change "
        "how.tensor_parallel, how.gpu_memory_utilization, how.max_num_seqs or "
        "how.max_num_batched_tokens; or use engine: transformers"
    )


def _first(error: BaseException) -> str:
    """Return the first line of an error; of several errors of one value, the first one's."""
    if callable(errors := getattr(error, "errors", None)):  # pydantic's
        return str(errors()[0]["msg"])[:300]
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
