"""The transformers engine with its continuous batching: an answer begins as soon as another ends.

transformers (5.19) runs a manager in a thread of its own, which draws a token for every request
under way, a step at a time. One is kept open over calls, so that a batch joins what is under way
whenever it comes. What a manager was opened with is fixed: how to draw, the adapter (kept prefixes
are of one), the memory. Where these change, it is drained and another one is opened.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from factory.engines import Completion, Sampling, rooms_of
from factory.engines.batch import Batch
from factory.engines.pipelining import release_turn
from factory.engines.transformers import TransformersSampler, first_line, generation, has_gpu
from factory.errors import StageError

LANES = 2  # while one shard's last answers are drawn, the next one's first are
STEP_TOKENS = 1024  # read or drawn in one step: 8192, its default, makes a mask of hundreds of MB
PAGE = 32  # tokens; a prefix is shared by whole pages
FLASH_PAGE = 256  # what flash attention's kernels take
FLASH_ROWS = 128  # requests at once where nothing is said
MASKED_ROWS = 32  # without flash attention each reads the cache of all: cost grows with its square
CPU_BYTES = 2 * 2**30  # of cache; as much as vLLM's on a CPU
SPARE = 1.25  # a cache is opened for requests so much longer than the longest that is known
_LOOK = 0.1  # seconds between looks at whether the manager is still there
_PATIENCE = 60.0  # seconds that a step under way may take to end


class ContinuousSampler(TransformersSampler):
    """As TransformersSampler, with `rows` requests at once. `share` is how much of a GPU's free
    memory may hold the cache. See engines.Sampler.

    All answers of a manager come from one stream of random numbers, seeded by the batch that opened
    it; what is in a step with what hangs on when batches come.
    """

    lanes = LANES
    _open: _Manager | None = None

    def __init__(
        self,
        directory: Path,
        dtype: str,
        adapter: Path | None = None,
        rows: int | None = None,
        others: Sequence[Path] = (),
        share: float = 0.9,
    ) -> None:
        self._opening = threading.Lock()
        super().__init__(directory, dtype, adapter, rows, others)
        self.name += ", continuous batching"
        if not getattr(self._model, "_supports_attention_backend", False):
            # others would not hand the pages on to their attention, and answer without them
            raise _unfit(self._model, "its attention does not take a paged cache")
        self._attention = _flash(self._model)
        self._rows = rows or (FLASH_ROWS if self._attention else MASKED_ROWS)
        self._share = share

    def set_adapter(self, adapter: Path | None) -> None:
        if adapter != self._worn:
            with self._opening:
                self._end(drain=True)
        super().set_adapter(adapter)

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        rooms = rooms_of(prompts, sampling, self.max_context)
        if not prompts:
            return []
        longest = max(len(ids) + room for ids, room in zip(prompts, rooms, strict=True))
        with self._opening:
            manager = self._manager(sampling, seed, longest)
            answers = manager.ask(prompts, rooms)
        try:
            with release_turn():
                drawn = answers.result()
        except BaseException:
            with self._opening:
                if self._open is manager:
                    self._end()
            raise
        stops = frozenset(self.stop_ids)
        samples = [Completion.cut(tokens, stops, manager.seed) for tokens in drawn]
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        return samples

    def close(self) -> None:
        if (manager := self._open) is not None:
            manager.close(drain=False)  # now, also when a lane is waiting until it is drained
        with self._opening:
            self._end()
        super().close()

    def _manager(self, sampling: Sampling, seed: int, longest: int) -> _Manager:
        """The one that is open, if these requests suit it, or else a new one."""
        drawing = (sampling.temperature, sampling.top_p)
        if self._open is not None and self._open.drawing == drawing and self._open.fits(longest):
            return self._open
        self._end(drain=True)
        page = FLASH_PAGE if self._attention else PAGE
        pages, suits = self._pages(longest, page)
        self._open = _Manager(
            self._model,
            drawing,
            suits,
            generation(sampling, sampling.max_tokens, self.stop_ids),
            {
                "page_size": page,
                "num_blocks": pages,
                "max_requests_per_batch": self._rows,
                "max_batch_tokens": max(STEP_TOKENS, self._rows),
                "max_memory_percent": 1.0,  # counted here
                "auto_switch_to_flash": False,  # it would look for a kernel on the Hub
                "seed": seed % 2**31,
            },
            self._attention,
            self._dressed(),
        )
        return self._open

    def _pages(self, longest: int, page: int) -> tuple[int, int]:
        """How many pages hold `rows` requests of `longest` tokens and some more; and the longest
        requests that such a cache suits. Where memory ends before, it is what there is: requests
        that find no room wait, or give up theirs and are read again later. Raises StageError where
        that does not hold one."""
        import torch

        if has_gpu():
            torch.cuda.empty_cache()
            free = int(torch.cuda.mem_get_info()[0] * self._share)
        else:
            free = CPU_BYTES
        most = free // (page * _token_bytes(self._model, self._attention is not None))
        one = -(-longest // page)
        if one > most:
            raise StageError(
                f"a request of {longest} tokens needs {one} pages of {page} tokens, and memory has "
                f"room for {most}",
                "lower max_tokens, or say how.batching: static",
            )
        roomy = min(int(longest * SPARE), self.max_context)
        wanted = self._rows * -(-roomy // page)
        return (wanted, roomy) if wanted <= most else (most, most * page)

    def _end(self, drain: bool = False) -> None:
        if self._open is not None:
            self._open.close(drain)
            self._open = None


class _Manager:
    """transformers' manager, with any number of callers."""

    def __init__(
        self,
        model: Any,
        drawing: tuple[float, float],
        suits: int,
        generation: Any,
        settings: dict[str, Any],
        attention: str | None,
        dressed: contextlib.AbstractContextManager[None],
    ) -> None:
        from transformers import ContinuousBatchingConfig

        _quiet()
        self.drawing, self.seed = drawing, int(settings["seed"])
        self._model, self._suits = model, suits
        self._kept = contextlib.ExitStack()
        self._kept.enter_context(dressed)
        if attention is not None:
            before = model.config._attn_implementation
            self._kept.callback(model.set_attn_implementation, before)
            model.set_attn_implementation(attention)
        try:
            self._manager = model.init_continuous_batching(
                generation, ContinuousBatchingConfig(**settings)
            )
        except ValueError as error:
            self._kept.close()
            raise _unfit(model, first_line(error)) from error
        self._numbers = itertools.count()
        self._owners: dict[str, tuple[Batch, int]] = {}
        self._error: StageError | None = None  # once there is one, nothing more is asked
        self._asking = threading.Lock()
        self._closed = False
        self._reader: threading.Thread | None = None

    def fits(self, longest: int) -> bool:
        """Whether the cache is large enough for requests of so many tokens."""
        return self._error is None and longest <= self._suits

    def ask(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]
    ) -> Future[list[list[int]]]:
        """Queue requests; what comes of it is the tokens that each goes on with."""
        batch = Batch(len(prompts))
        with self._asking:
            if self._error is not None:
                raise self._error
            for number, (ids, room) in enumerate(zip(prompts, rooms, strict=True)):
                name = str(next(self._numbers))
                self._owners[name] = batch, number
                self._manager.add_request(list(ids), name, max_new_tokens=room)
            # Begun when the first batch is there as a whole, so that its answers hang on nothing
            # else. By a daemon, which makes transformers' own thread one: else it would keep the
            # process alive if nobody closes it.
            if self._reader is None:
                starter = threading.Thread(target=self._manager.start, daemon=True)
                starter.start()
                starter.join()
                self._reader = threading.Thread(target=self._read, name="continuous", daemon=True)
                self._reader.start()
        return batch.done

    def close(self, drain: bool) -> None:
        """End the manager's thread: when all answers are there, or after the step under way."""
        self._closed = True
        if self._reader is not None:
            self._stop(None if drain else _PATIENCE, hard=not drain)
            self._reader.join(timeout=_PATIENCE)
        self._kept.close()

    def _stop(self, timeout: float | None, hard: bool) -> None:
        """Of two that stop it at once, whoever closes it and a reader that saw a request fail for
        that, transformers lets one look at a thread that the other has put away: it has ended."""
        try:
            self._manager.stop(timeout=timeout, hard_stop=hard)
        except AttributeError:
            if self._manager.is_running():
                raise

    def _read(self) -> None:
        """Hand out answers as they come, until the manager is gone or a request has failed; who
        then still waits is told why, whatever happened here."""
        failed: str | None = "its answers could not be read"
        begun = True
        try:
            failed = self._hand_out()
            begun = self._manager.batch_processor is not None
            if failed is not None:
                self._stop(_PATIENCE, hard=True)
        finally:
            with self._asking:
                self._error = self._told(failed, begun)
                owners, self._owners = self._owners, {}
            for batch, _ in owners.values():
                batch.fail(self._error)

    def _hand_out(self) -> str | None:
        """Until the manager is gone; or the words of the first request that failed."""
        while True:
            running = self._manager.is_running()  # asked first: what it gave at its end is read
            output = self._manager.get_result(timeout=_LOOK)
            if output is None:
                if not running:
                    return None
            elif output.error is None:
                batch, number = self._owners.pop(output.request_id)
                batch.put(number, output.generated_tokens)
            else:
                return str(output.error)

    def _told(self, failed: str | None, begun: bool) -> StageError:
        """Why there will be no more answers, with its fix."""
        import torch

        cause = self._manager.background_thread_status.fatal_error
        why = first_line(cause) if cause else failed or "its thread is gone"
        if cause is None and self._closed:
            told = StageError("the engine was closed", "run the same command again")
        elif isinstance(cause, MemoryError | torch.OutOfMemoryError):
            told = StageError(
                f"memory ran out in continuous batching: {why}",
                "finished shards are kept, so run again with a lower how.max_num_seqs or "
                "how.gpu_memory_utilization, or say how.batching: static",
            )
        elif not begun:
            told = _unfit(self._model, why)
        else:
            told = StageError(
                f"transformers' continuous batching stopped: {why}",
                "its own words are above; finished shards are kept, so run again, or say "
                "how.batching: static",
            )
        told.__cause__ = cause
        return told


def _flash(model: Any) -> str | None:
    """Flash attention, where it is installed and takes this model: without it every request reads
    the cache of all others behind a mask."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if not has_gpu() or model.dtype == torch.float32 or not model._supports_flash_attn:
        return None
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def _token_bytes(model: Any, flash: bool) -> int:
    """What a token in the cache takes: its keys and values in every layer, those of one layer as
    they are read, and without flash attention a column of the mask and a copy for every head."""
    config = model.config.get_text_config()
    try:
        heads = config.num_attention_heads
        grouped = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
    except (AttributeError, RuntimeError) as error:  # of another make, or another in every layer
        raise _unfit(model, first_line(error)) from error
    kept = 2 * config.num_hidden_layers * grouped * width
    read = 2 * grouped * width if flash else (2 * heads + grouped) * width + STEP_TOKENS
    return int((kept + read) * model.dtype.itemsize)


def _quiet() -> None:
    """Its log has a handler of its own, which transformers' verbosity does not reach."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)


def _unfit(model: Any, why: str) -> StageError:
    return StageError(
        f"transformers has no continuous batching for {type(model).__name__}: {why}",
        "say how.batching: static",
    )
