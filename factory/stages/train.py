"""reward and dpo: a recipe translated into TRL's own config classes, nothing more.

Checkpoints go to the work directory by steps, so a kill costs the steps since the last one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory import chat
from factory.artifact import Rows
from factory.errors import RecipeError, StageError, nearest
from factory.knobs import GATE, REFERENCE, Knobs
from factory.stages.contract import How, Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome, Place

PAPER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMPLETE = "complete"  # written into a checkpoint last: a half-written one is not resumed from


class Lora(Knobs):
    """LoRA as in CroCo's published scripts."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = PAPER_TARGETS


class TrainHow(How):
    """`micro_batch`: rows on the device at once; `save_steps`: optimizer steps between
    checkpoints."""

    micro_batch: int = Field(1, ge=1)
    save_steps: int = Field(50, ge=1)


class _Training(Stage):
    """What both trainings share; defaults are CroCo's published ones."""

    seeded: ClassVar[bool] = True
    read: ClassVar[str]  # the role of its training rows
    rows_kind: ClassVar[str]

    base: Annotated[str, REFERENCE] = "policy"
    epochs: float = Field(1.0, gt=0)
    batch: int = Field(64, ge=1)  # rows an optimizer step, whatever the devices
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_length: int = Field(4096, ge=8)
    held_out: float = Field(0.01, ge=0, lt=1)
    min_pairs: Annotated[int, GATE, Field(ge=2)] = 8
    lora: Lora = Lora()
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    how: TrainHow = TrainHow()

    @model_validator(mode="after")
    def _batches_fit(self) -> _Training:
        if self.batch % self.how.micro_batch:
            raise ValueError(
                f"batch {self.batch} is not a multiple of how.micro_batch {self.how.micro_batch}"
            )
        return self

    def least(self) -> dict[str, int]:
        return {self.read: self.min_pairs}

    def run(self, job: Job) -> Outcome:
        import torch
        from transformers import PrinterCallback

        [spec] = job.slices
        base = job.place(spec, "base")
        table = job.table(spec, self.read, self.rows_kind)
        tokenizer = chat.load_tokenizer(str(base.path))
        rows = [
            {side: row[side] for side in ("prompt_id", "prompt", "chosen", "rejected")}
            for row in table.to_pylist()
        ]
        lengths = [_lengths(tokenizer, row) for row in rows]
        fits = [row for row, n in zip(rows, lengths, strict=True) if max(n) <= self.max_length]
        counts = Rows(
            into=len(rows),
            out=len(fits),
            dropped={"too_long": len(rows) - len(fits)} if len(fits) < len(rows) else {},
        )
        if len(fits) < self.min_pairs:
            raise StageError(
                f"{job.step}: only {len(fits)} of {len(rows)} pairs fit max_length",
                f"raise stages.{self.name}.max_length over {self.max_length}",
            )
        train, held_out = split(fits, self.held_out, job.seed)
        torch.manual_seed(job.seed)
        trainer = self._trainer(base, tokenizer, train, held_out, job)
        trainer.remove_callback(PrinterCallback)  # our progress and the manifest's curve say it
        trainer.train(resume_from_checkpoint=last_checkpoint(job.work / "checkpoints"))
        history = trainer.state.log_history
        if any(not math.isfinite(entry.get("loss", 0.0)) for entry in history):
            raise StageError(f"{job.step}: the loss is not finite", "lower the learning rate")
        figures = trainer.evaluate() if held_out else {}
        self._save(trainer.model, base, job.out)
        tokenizer.save_pretrained(str(job.out))
        return Outcome(
            {spec.name: counts},
            determinism="distribution",
            stats={
                "trained_on": len(train),
                "held_out": len(held_out),
                "steps": trainer.state.global_step,
                "curve": [_short(entry) for entry in history if "loss" in entry],
                "final": _short(figures),
            },
            template=chat.contract(
                tokenizer, chat.stop_ids(tokenizer, trainer.model.generation_config)
            )
            if self.kind == "adapter"
            else None,
            tokens=int(sum(map(sum, lengths)) * self.epochs),
        )

    def _trainer(
        self, base: Place, tokenizer: Any, train: list[Any], held_out: list[Any], job: Job
    ) -> Any:
        raise NotImplementedError

    def _save(self, model: Any, base: Place, out: Path) -> None:
        raise NotImplementedError

    def _arguments(self, job: Job) -> dict[str, Any]:
        """The part of TRL's config that both trainings have."""
        import torch

        gpu = torch.cuda.is_available()
        return {
            "output_dir": str(job.work / "checkpoints"),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.how.micro_batch,
            "per_device_eval_batch_size": self.how.micro_batch,
            "gradient_accumulation_steps": self.batch // self.how.micro_batch,
            "lr_scheduler_type": "cosine",
            "warmup_steps": self.warmup,  # transformers 5: below 1 it is a share of the steps
            "weight_decay": self.weight_decay,
            "max_length": self.max_length,
            "seed": job.seed,
            "data_seed": job.seed,
            "bf16": self.dtype == "bfloat16" and gpu,
            "use_cpu": not gpu,
            "gradient_checkpointing": gpu,  # TRL's default everywhere; on a CPU it only costs time
            "dataloader_pin_memory": gpu,
            "logging_steps": 1,
            "save_steps": self.how.save_steps,
            "save_total_limit": 2,
            "eval_strategy": "no",  # once, after training: see run
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _lora(self, task: str, **more: Any) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=list(self.lora.targets),
            task_type=task,
            **more,
        )


class Reward(_Training):
    """A reward model from English preferences: a classifier with one label, trained as LoRA and
    merged, so that every engine loads it as it is."""

    name: ClassVar[str] = "reward"
    kind: ClassVar[str] = "model"
    repo: ClassVar[str] = "reward"
    read: ClassVar[str] = "preferences"
    rows_kind: ClassVar[str] = "preferences"

    lr: float = Field(1e-4, gt=0)  # TRL's default for reward models

    def slices(self, scope: Scope) -> list[SliceSpec]:
        base = scope.model(self.base, "base", self.name)
        return [
            SliceSpec(self.name, spec.name, None, (Read(self.read, spec.step, spec.name), base))
            for spec in scope.slices("preferences", self.name)
        ]

    def _trainer(
        self, base: Place, tokenizer: Any, train: list[Any], held_out: list[Any], job: Job
    ) -> Any:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification
        from trl import RewardConfig, RewardTrainer

        model = AutoModelForSequenceClassification.from_pretrained(
            str(base.path), num_labels=1, dtype=getattr(torch, self.dtype)
        )
        return RewardTrainer(
            model=model,
            args=RewardConfig(learning_rate=self.lr, **self._arguments(job)),
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=self._lora("SEQ_CLS", modules_to_save=["score"]),
            callbacks=[_watcher(job)],
        )

    def _save(self, model: Any, base: Place, out: Path) -> None:
        merged = model.merge_and_unload()
        merged.config.name_or_path = ""
        merged.save_pretrained(str(out))


class Dpo(_Training):
    """LoRA adapters by DPO with the sigmoid loss, from the policy itself; the reference is the
    policy with the adapter off. `each: language` trains one adapter a language, `all` one on the
    pairs of all languages; a list names some of them."""

    name: ClassVar[str] = "dpo"
    kind: ClassVar[str] = "adapter"
    repo: ClassVar[str] = "dpo"
    read: ClassVar[str] = "pairs"
    rows_kind: ClassVar[str] = "pairs"

    lr: float = Field(5e-6, gt=0)
    beta: float = Field(0.1, gt=0)
    each: Annotated[Literal["language", "all"] | tuple[str, ...], REFERENCE] = "language"

    def slices(self, scope: Scope) -> list[SliceSpec]:
        base = scope.model(self.base, "base", self.name)
        pairs = {spec.name: spec for spec in scope.slices("pair", self.name)}
        single = tuple(name for name, spec in pairs.items() if spec.language)
        if isinstance(self.each, str) and not single:
            raise RecipeError(
                f"stages.dpo.each: {self.each} is of single languages, which have no pairs here",
                f"write each: [{', '.join(pairs)}], or stages.pair.pool: both",
            )
        groups = (
            single
            if self.each == "language"
            else (self.each,)
            if isinstance(self.each, str)
            else self.each
        )
        return [self._slice(group, pairs, base) for group in groups]

    def _slice(self, group: str, pairs: dict[str, SliceSpec], base: Any) -> SliceSpec:
        if group != "all" and group not in pairs:
            raise RecipeError(
                f"stages.dpo.each names {group!r}, which the recipe has no pairs in"
                + nearest(group, ["all", *pairs]),
                f"use all or one of {', '.join(pairs)}",
            )
        # all: of every single language; cross-lingual pairs go by their own name
        specs = [spec for spec in pairs.values() if group == spec.name] or [
            spec for spec in pairs.values() if spec.language
        ]
        reads = tuple(Read(self.read, spec.step, spec.name) for spec in specs)
        language = None if group == "all" else specs[0].language
        return SliceSpec(f"{self.name}[{group}]", group, language, (*reads, base))

    def _trainer(
        self, base: Place, tokenizer: Any, train: list[Any], held_out: list[Any], job: Job
    ) -> Any:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import DPOConfig, DPOTrainer

        model = AutoModelForCausalLM.from_pretrained(
            str(base.path), dtype=getattr(torch, self.dtype)
        )
        return DPOTrainer(
            model=model,
            ref_model=None,  # with LoRA: the same model, adapter off
            args=DPOConfig(
                learning_rate=self.lr, beta=self.beta, loss_type=["sigmoid"], **self._arguments(job)
            ),
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=self._lora("CAUSAL_LM"),
            callbacks=[_watcher(job)],
        )

    def _save(self, model: Any, base: Place, out: Path) -> None:
        model.save_pretrained(str(out))
        (out / "README.md").unlink(missing_ok=True)  # PEFT's template; ours comes from the manifest
        path = out / "adapter_config.json"
        config = json.loads(path.read_text())
        # PEFT wrote this machine's path; people need the repo and the commit it stood at.
        config["base_model_name_or_path"] = base.name
        config["revision"] = base.revision
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def split(rows: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(train, held out). Whole prompts are held out, in every language at once, chosen by a hash
    of seed and prompt id: every process draws the same split, and more rows move no old one.
    At least one prompt is held out if `share` is not 0, and at least one trained on."""

    def draw(prompt_id: str) -> float:
        digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    drawn = {prompt_id: draw(prompt_id) for prompt_id in {row["prompt_id"] for row in rows}}
    held = {prompt_id for prompt_id, value in drawn.items() if value < share}
    if share and not held:
        held = {min(drawn, key=drawn.__getitem__)}
    if len(held) == len(drawn):
        held.remove(max(drawn, key=drawn.__getitem__))
    return (
        [row for row in rows if row["prompt_id"] not in held],
        [row for row in rows if row["prompt_id"] in held],
    )


def last_checkpoint(directory: Path) -> str | None:
    """The newest whole checkpoint, if any; half-written ones are removed."""
    found = []
    for path in directory.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    newest = max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
    return str(newest) if newest else None


def _lengths(tokenizer: Any, row: Any) -> list[int]:
    """Tokens of both sides, each with its prompt."""
    return [
        len(chat.conversation_ids(tokenizer, [*row["prompt"], *row[side]]))
        for side in ("chosen", "rejected")
    ]


def _short(entry: dict[str, Any]) -> dict[str, float]:
    """A log entry to five significant digits, without the trainer's own timings."""
    dull = ("runtime", "per_second", "flos", "num_tokens", "entropy")
    return {
        key: float(f"{value:.5g}")
        for key, value in entry.items()
        if isinstance(value, int | float) and not any(word in key for word in dull)
    }


def _watcher(job: Job) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Tells how far training is and marks whole checkpoints."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.progress(state.global_step, state.max_steps, "steps")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            path.touch()

    return Watcher()
