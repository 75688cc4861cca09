"""The transformers engine: runs everywhere, on whatever device torch finds."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from factory.engines import (
    Completion,
    Sampling,
    chat_template,
    checkpoint,
    devices,
    loaded_adapter,
    rooms_of,
)
from factory.errors import StageError

BATCH_ROWS = 128  # answers drawn at once: more keep a GPU busy, fewer fit into its memory
BATCH_TOKENS = 8192  # padded tokens in one scoring batch; keeps a 2-core CPU's caches warm
BATCH_LOGITS = 2**27  # logits at once where they are all needed: 512 MB in float32
_PATIENCE = 600.0  # seconds without a token before a stream is given up


def has_gpu() -> bool:
    """Return whether torch finds an NVIDIA or AMD GPU."""
    return gpu_count() > 0


def gpu_count() -> int:
    """Count the NVIDIA or AMD GPUs that torch finds."""
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def check_gpus(by_tool: bool = False) -> None:
    """Raise StageError where torch does not find the GPUs that should be there; see devices."""
    devices.check(gpu_count, gpu_failure, by_tool)


def gpu_failure() -> str:
    """Return torch's version and its reason for not opening a GPU; no reason where it opens one."""
    import torch

    try:
        torch.cuda.init()
        reason = "others are broken or hidden"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    return f"torch {torch.__version__}: {reason}"


def _device() -> Any:
    import torch

    return torch.device("cuda" if has_gpu() else "cpu")


def _load(auto_class: Any, directory: Path, dtype: str) -> Any:
    import torch

    with checkpoint.loading(directory):
        model = auto_class.from_pretrained(
            str(directory), dtype=getattr(torch, dtype), trust_remote_code=False
        )
    return model.to(_device()).eval()


def causal(directory: Path, dtype: str) -> Any:
    """Load a causal model on the device that torch finds. Raises InputError."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, directory, dtype)


def _attach(model: Any, adapters: Sequence[Path]) -> Any:
    """Attach LoRA adapters to a causal model, in place; the returned model switches between them
    (see `_adapter_name`). Raises InputError for an adapter that is no LoRA, StageError for one of
    another base model."""
    from peft import PeftModel

    # Not model.load_adapter: with a second adapter it sets the first one's weights anew (5.19).
    # PEFT's own wish for float32 would give other answers than the published dtype.
    options: dict[str, Any] = {"autocast_adapter_dtype": False}
    layers: Any = None
    try:
        for number, adapter in enumerate(adapters):
            checkpoint.lora(adapter)  # other kinds lie around the model, and would be left out
            if layers is None:
                layers = PeftModel.from_pretrained(
                    model, str(adapter), _adapter_name(number), **options
                )
            else:
                layers.load_adapter(str(adapter), _adapter_name(number), **options)
    except (RuntimeError, ValueError) as error:
        raise StageError(
            f"the adapter at {adapter} does not fit {model.name_or_path}: {first_line(error)}",
            "it was trained on another base model: check base_model in its card",
        ) from None
    model.eval()
    return layers


def first_line(error: BaseException) -> str:
    """Return the error's message, its first line."""
    return (str(error) or repr(error)).splitlines()[0]


def _adapter_name(number: int) -> str:
    """Return the name of an adapter in PEFT."""
    return f"adapter-{number}"


def generation(sampling: Sampling, room: int, stops: list[int]) -> Any:
    """Return a fresh generation config: the model's own may have top-k, penalties or a
    temperature."""
    from transformers import GenerationConfig

    greedy = sampling.temperature == 0
    return GenerationConfig(
        max_new_tokens=room,
        do_sample=not greedy,
        **({} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}),
        top_k=None if greedy else 0,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )


def float32_head(model: Any) -> Any:
    """Make the head of a sequence classifier float32, as vLLM's is, and return the model. In
    bfloat16 a reward of 68.77 is 68.5, and rewards that differ become the same. The head stays
    float32 under autocast, under which TRL's trainers call a reward model."""
    import torch

    def read(head: Any, states: Any) -> Any:
        with torch.autocast(states.device.type, enabled=False):
            return torch.nn.functional.linear(states.float(), head.weight, head.bias)

    for name, module in model.named_children():
        if isinstance(module, torch.nn.Linear) and name != model.base_model_prefix:
            module.float().forward = functools.partial(read, module)
    return model


class _Transformers:
    """Base of the transformers engines: one caller at a time, the model loaded at once. Where a
    batch does not fit into memory, this one and all later ones are made in smaller parts."""

    lanes = 1
    _share = 1  # parts that a full batch is cut into, since it did not fit

    def __init__(self, directory: Path) -> None:
        import transformers

        self.name = f"transformers {transformers.__version__}"
        self._checkpoint = checkpoint.read(directory)
        self.tokenizer = self._checkpoint.tokenizer
        self.max_context = self._checkpoint.max_context
        self.tokens = 0
        self._model: Any = None
        self._layers: Any = None  # its adapters, if it has any

    def _fitting(self, rows: int, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of a batch of `rows`, or None where the memory of the GPU ran
        out: batches are half as large from now on. Raises StageError when a single row does not
        fit."""
        import torch

        try:
            return make()
        except RuntimeError as error:
            # the libraries of CUDA and ROCm say it in their own words: CUBLAS_STATUS_ALLOC_FAILED
            ran_out = isinstance(error, torch.OutOfMemoryError)
            if not ran_out and "STATUS_ALLOC_FAILED" not in str(error):
                raise
            failure = first_line(error)
        self._share *= 2
        torch.cuda.empty_cache()
        if rows == 1:
            raise StageError(
                f"one row of a batch does not fit into the GPU's memory: {failure}",
                "use GPUs with more memory, engine: vllm with how.tensor_parallel, or shorter rows",
            )
        return None

    def close(self) -> None:
        """Release the model."""
        import torch

        self._model = self._layers = None
        if has_gpu():
            torch.cuda.empty_cache()


class TransformersSampler(_Transformers):
    """A causal model, with a LoRA adapter if one is given; `other_adapters` can be activated in its
    place. See engines.Sampler.

    Answers are drawn `rows` at a time, each such batch from a random stream of its own.
    """

    def __init__(
        self,
        directory: Path,
        dtype: str,
        adapter: Path | None = None,
        rows: int | None = None,
        other_adapters: Sequence[Path] = (),
    ) -> None:
        super().__init__(directory)
        self._adapters = loaded_adapter(adapter, other_adapters)
        self._model = causal(directory, dtype)
        self._layers = _attach(self._model, list(self._adapters))
        self._adapter: Path | None = None
        self.set_adapter(adapter)
        self._rows = rows or BATCH_ROWS
        self.stop_ids = self._checkpoint.stop_ids

    def set_adapter(self, adapter: Path | None) -> None:
        if adapter is not None:
            number = self._adapters[adapter]
            if adapter != self._adapter:
                self._layers.set_adapter(_adapter_name(number))
        self._adapter = adapter

    def _active_adapter(self) -> contextlib.AbstractContextManager[None]:
        """Return a context with the adapters disabled, if the base model is active."""
        bare = self._layers is not None and self._adapter is None
        return self._layers.disable_adapter() if bare else contextlib.nullcontext()

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        rooms = rooms_of(prompts, sampling, self.max_context)
        # Longest first, and the answers to one prompt together: neighbours are of like length, so
        # little is padded, and the largest batch fails first if any.
        order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
        samples: dict[int, Completion] = {}
        number = 0
        while order:
            batch = order[: max(1, self._rows // self._share)]
            drawn = self._fitting(
                len(batch),
                lambda: self._batch(
                    [prompts[n] for n in batch],  # noqa: B023  (called at once)
                    [rooms[n] for n in batch],  # noqa: B023
                    sampling,
                    (seed + number) % 2**31,  # noqa: B023
                ),
            )
            if drawn is None:
                continue
            order, number = order[len(batch) :], number + 1
            self.tokens += sum(len(sample.token_ids) for sample in drawn)
            samples |= zip(batch, drawn, strict=True)
        return [samples[n] for n in range(len(prompts))]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        rooms: Sequence[int],
        sampling: Sampling,
        seed: int,
    ) -> list[Completion]:
        import torch

        pad = self.stop_ids[0]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, so answers start together
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        self._model.generation_config = generation(sampling, max(rooms), self.stop_ids)
        torch.manual_seed(seed)
        with torch.inference_mode(), self._active_adapter():
            output = self._model.generate(
                input_ids=ids.to(self._model.device), attention_mask=mask.to(self._model.device)
            )
        stops = frozenset(self.stop_ids)
        return [
            Completion.cut(row[:room], stops, seed)
            for row, room in zip(output[:, width:].tolist(), rooms, strict=True)
        ]


class Talker:
    """A causal model that streams its answer, one prompt at a time.

    `speech` is the directory of its tokenizer and template. A model with a PEFT adapter can also
    answer as its base.
    """

    def __init__(self, model: Any, base: Path, speech: Path) -> None:
        base_checkpoint = checkpoint.read(base)
        self.tokenizer = (
            base_checkpoint.tokenizer
            if speech == base
            else chat_template.load_tokenizer(str(speech))
        )
        stops = {*base_checkpoint.stop_ids, *chat_template.stop_ids(self.tokenizer, None)}
        self.stop_ids, self.max_context = sorted(stops), base_checkpoint.max_context
        self._model = model.to(_device()).eval()

    def say(
        self, prompt: Sequence[int], sampling: Sampling, seed: int, as_base: bool = False
    ) -> Generator[str, None, Completion]:
        """Yield the answer to a prompt, piece by piece as it is drawn; the completion is the
        generator's return value. Closing it early stops sampling. `as_base` disables the adapter.

        Raises InputError for a prompt that leaves no room (see Sampling.room).
        """
        import torch
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        [room] = rooms_of([prompt], sampling, self.max_context)
        ids = torch.tensor([list(prompt)]).to(self._model.device)
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=_PATIENCE
        )
        stopped, drawn = threading.Event(), queue.SimpleQueue[Any]()

        def stop(so_far: Any, *_: Any) -> Any:
            return torch.full((1,), stopped.is_set(), device=so_far.device)

        def draw() -> None:
            try:
                torch.manual_seed(seed)
                bare = self._model.disable_adapter() if as_base else contextlib.nullcontext()
                with torch.inference_mode(), bare:
                    output = self._model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        generation_config=generation(sampling, room, self.stop_ids),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stop]),
                    )
                drawn.put(output[0, len(prompt) :].tolist())
            except BaseException as error:  # noqa: BLE001  (raised again where it is listened to)
                drawn.put(error)
                streamer.end()

        thread = threading.Thread(target=draw, name="talker", daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stopped.set()
            thread.join()
        result = drawn.get()
        if isinstance(result, BaseException):
            raise result
        return Completion.cut(result, frozenset(self.stop_ids), seed)


class TransformersScorer(_Transformers):
    """A sequence classifier with one label. See engines.Scorer."""

    def __init__(self, directory: Path, dtype: str) -> None:
        from transformers import AutoModelForSequenceClassification

        super().__init__(directory)
        checkpoint.one_label(self._checkpoint)
        self._model = float32_head(_load(AutoModelForSequenceClassification, directory, dtype))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        sequences = [self._checkpoint.classified(sequence) for sequence in sequences]
        scores = [0.0] * len(sequences)
        # Longest first: neighbours are of like length, and the largest batch fails first if any.
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        while order:
            size = max(1, BATCH_TOKENS // len(sequences[order[0]]) // self._share)
            rows = [sequences[i] for i in order[:size]]
            values = self._fitting(len(rows), lambda: self._batch(rows))  # noqa: B023
            if values is None:
                continue
            batch, order = order[:size], order[size:]
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
                self.tokens += len(sequences[index])
        return scores

    def _batch(self, sequences: list[Sequence[int]]) -> list[float]:
        import torch

        # The model reads its score at the last token that is not padding, which is the last of
        # each sequence by now: so the pad id must be one that no sequence holds.
        used = {token for sequence in sequences for token in sequence}
        pad = next(token for token in range(len(used) + 1) if token not in used)
        self._model.config.pad_token_id = pad
        width = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), width), pad)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(list(sequence))
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._model.device),
                attention_mask=(ids != pad).long().to(self._model.device),
            ).logits
        return [float(value) for value in logits[:, 0].float().cpu()]


class TransformersLikelihood(_Transformers):
    """A causal model that reads, with a LoRA adapter if one is given. See engines.Likelihood."""

    def __init__(self, directory: Path, dtype: str, adapter: Path | None = None) -> None:
        super().__init__(directory)
        self._model = causal(directory, dtype)
        _attach(self._model, [adapter] if adapter else [])

    def log_probs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        values_by_row: list[list[float]] = [[] for _ in sequences]
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        vocabulary = int(self._model.config.get_text_config().vocab_size)
        while order:
            width = len(sequences[order[0]])
            # the logits of what is read, not the ids, are what fills the memory
            n_logits = width - min(starts[i] for i in order) + 1
            size = min(BATCH_TOKENS // width, BATCH_LOGITS // (n_logits * vocabulary))
            batch = order[: max(1, size // self._share)]
            rows, firsts = [sequences[i] for i in batch], [starts[i] for i in batch]
            values = self._fitting(len(rows), lambda: self._batch(rows, firsts))  # noqa: B023
            if values is None:
                continue
            order = order[len(batch) :]
            for index, value in zip(batch, values, strict=True):
                values_by_row[index] = value
        return values_by_row

    def _batch(self, sequences: list[Sequence[int]], starts: list[int]) -> list[list[float]]:
        import torch

        width = max(len(sequence) for sequence in sequences)
        ids = torch.zeros((len(sequences), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):  # padded on the right: nothing looks ahead
            ids[row, : len(sequence)] = torch.tensor(list(sequence))
            mask[row, : len(sequence)] = 1
        ids = ids.to(self._model.device)
        first = min(starts)
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids,
                attention_mask=mask.to(self._model.device),
                logits_to_keep=width - first + 1,  # the one at i - 1 says how likely token i is
                use_cache=False,
            ).logits[:, :-1]
            aimed = ids[:, first:, None]
            chosen = logits.gather(2, aimed).squeeze(2).float()
            # row by row: a copy of all logits in float32 would double the memory
            values = torch.stack(
                [
                    logit - row.float().logsumexp(dim=-1)
                    for logit, row in zip(chosen, logits, strict=True)
                ]
            ).cpu()
        return [
            row[start - first : len(sequence) - first].tolist()
            for row, start, sequence in zip(values, starts, sequences, strict=True)
        ]
