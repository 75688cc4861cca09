"""Train in one process: from the last complete checkpoint to weights on disk."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from factory.artifacts import checkpoints
from factory.artifacts.files import write_atomically
from factory.engines import chat_template
from factory.errors import Interrupted, StageError
from factory.stage.job import Progress
from factory.training import dataset, monitoring, trainers
from factory.training.resume import COMPLETE, Request, last_checkpoint
from factory.training.settings import Task

LOG = "log.jsonl"  # what was logged so far, a line each time
RESULT = "result.json"  # what the main process found, for whoever started it
ERROR, FIX = "error: ", "fix: "  # how a process ends its log where it fails


def train(task: Task, progress: Progress, starter: int | None = None) -> dict[str, Any]:
    """Train to the end and write the weights to `task.out`.

    Returns history, final figures on held-out rows, steps, stop ids, seconds, and `working`:
    seconds of training alone. That is the mean step time since the last start times all steps,
    without the first step, which is slower; None for a single step. Raises Interrupted after a
    signal, with a checkpoint saved; StageError when the loss is not finite."""
    import torch
    from transformers import PrinterCallback

    began = time.monotonic()
    request = Request(task.work, starter)
    tokenizer = chat_template.load_tokenizer(str(task.base))
    torch.manual_seed(task.seed)
    parts = dataset.read(task.rows)
    step_ends: list[float] = []  # of steps

    def step_done(done: int, total: int, unit: str, tokens: int = 0) -> None:
        step_ends.append(time.monotonic())
        progress(done, total, unit, tokens)

    watcher = _progress_callback(request, step_done, task.stop_early)
    trainer = trainers.build(task, tokenizer, *parts, [watcher])
    trainer.remove_callback(PrinterCallback)  # our progress and the manifest's curve say it
    trainer.add_callback(_checkpoint_callback(trainer, task))
    stops = chat_template.stop_ids(tokenizer, getattr(trainer.model, "generation_config", None))
    if task.method in ("sft", "preference"):
        dataset.check_stops(tokenizer, parts[0][0], stops, task.step)
    with request.listening():
        trainer.train(resume_from_checkpoint=last_checkpoint(task.work))
    history = trainer.state.log_history
    if not monitoring.finite(history):
        raise StageError(
            f"{task.step}: the loss is not finite after {trainer.state.global_step} steps",
            "lower lr; if it stays so, look for empty or odd rows",
        )
    if trainer.state.global_step < trainer.state.max_steps and request.requested():
        why = request.signal.name if request.signal else "the process that started it"
        raise Interrupted(
            f"{task.step}: told to stop by {why} after step {trainer.state.global_step}",
            "run the same command again: it goes on from the checkpoint",
        )
    steps = trainer.state.global_step
    final = _final(trainer, parts[1] is not None)
    _save(trainer, task)
    return {
        "history": history,
        "final": final,
        "steps": steps,
        "kept": {
            checkpoints.format_share(share): step_of(share, trainer.state.max_steps)
            for share in task.checkpoints
            if task.checkpoint_path(share).exists()
        },
        "collapsed": watcher.collapsed,
        "planned_steps": trainer.state.max_steps,
        "stops": stops,
        "seconds": time.monotonic() - began,
        "working": steps * (step_ends[-1] - step_ends[0]) / (len(step_ends) - 1)
        if len(step_ends) > 1
        else None,
    }


def _final(trainer: Any, held_out: bool) -> dict[str, float]:
    """Return the figures on held-out rows after the last step."""
    if not held_out or trainer.eval_dataset is None:
        return {}
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if evaluations and evaluations[-1]["step"] == trainer.state.global_step:
        return monitoring.short({k: v for k, v in evaluations[-1].items() if k != "step"})
    return monitoring.short(trainer.evaluate())


def _save(trainer: Any, task: Task) -> None:
    """Write the adapter, or a reward model merged into its base; the main process writes."""
    if task.method != "reward":
        _save_adapter(trainer, task.out)
    elif trainer.accelerator.is_main_process:
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.config.name_or_path = ""
        merged.save_pretrained(str(task.out))
    if trainer.accelerator.is_main_process:
        for share in task.checkpoints:
            if task.checkpoint_path(share).exists():  # not those after an early end
                shutil.copytree(
                    task.checkpoint_path(share),
                    task.out / checkpoints.folder(checkpoints.format_share(share)),
                )


def _save_adapter(trainer: Any, to: Path) -> None:
    """Write the adapter as it is now. Every process has to call this: each may hold a part."""
    sharded = trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    # TRL keeps a copy of the adapter it started from beside it, as the reference
    model.save_pretrained(str(to), state_dict=state, selected_adapters=["default"])
    (to / "README.md").unlink(missing_ok=True)  # PEFT's; ours comes from the manifest


def write(task: Task, result: dict[str, Any]) -> None:
    """Write a result for the process that started this one."""
    write_atomically(task.work / RESULT, json.dumps(result).encode())


def _progress_callback(request: Request, progress: Progress, stop_early: bool) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Callback that reports progress, marks complete checkpoints, and stops training on
        request, when the loss is not finite or, if `stop_early`, when it has collapsed."""

        collapsed: str | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps, "steps")
            if _any_process(request.requested()) and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero:  # for whoever looks on: only a checkpoint keeps it
                with (Path(args.output_dir) / LOG).open("a") as file:
                    line = {"step": state.global_step, **monitoring.short(logs or {})}
                    file.write(json.dumps(line) + "\n")
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                control.should_training_stop = True
            if stop_early and self.collapsed is None:
                self.collapsed = monitoring.collapse(state.log_history)
            if self.collapsed is not None:  # the figures, and so the reason, are those of all
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero:
                (path / COMPLETE).touch()

    return Watcher()


def _checkpoint_callback(trainer: Any, task: Task) -> Any:
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):  # type: ignore[misc]
        """Callback that saves the adapter after the shares of the steps in `task.checkpoints`. A
        copy appears by a rename; a repeated step replaces it."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for share in task.checkpoints:
                if state.global_step != step_of(share, state.max_steps):
                    continue
                path = task.checkpoint_path(share)
                half = path.with_name(f".{path.name}")
                _save_adapter(trainer, half)
                if state.is_world_process_zero:
                    shutil.rmtree(path, ignore_errors=True)
                    half.rename(path)

    return Keeper()


def step_of(share: float, steps: int) -> int:
    """Return the step after which this share of the steps is done, at least 1."""
    return max(1, round(share * steps))


def _any_process(flag_here: bool) -> bool:
    """Return whether the flag is set in any process: all must stop after the same step."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag_here
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flag = torch.tensor([int(flag_here)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
