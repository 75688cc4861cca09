"""Settings of any training in a recipe, and the task that a trainer gets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from factory.artifacts import checkpoints as checkpoint_folders
from factory.config import Knobs

# The projections of Llama-like models, as CroCo's published scripts have them.
PAPER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Dtype = Literal["bfloat16", "float16", "float32"]
RewardName = Literal["model", "language", "length", "format", "exact"]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class Lora(Knobs):
    """LoRA as in CroCo's published scripts. `targets: all-linear` is every linear layer but the
    output head, for models whose layers have other names. `rslora` scales by alpha over the root
    of r (arXiv 2312.03732). `dora` learns magnitudes beside directions (arXiv 2402.09353), which
    vLLM does not take: every stage that loads the adapter needs how.engine: transformers."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = PAPER_TARGETS
    rslora: bool = False
    dora: bool = False


class ProbeKnobs(Knobs):
    """How answers are drawn after the training of an adapter, beside its base's: held-out prompts
    first, and no answer longer than the longest trained on. `temperature` is by default that of
    online, rl or else generate, the policy's own, and 1 where nothing samples."""

    prompts: int = Field(16, ge=1)  # at most so many
    n: int = Field(2, ge=1)  # answers to each
    temperature: float | None = Field(None, ge=0)
    max_tokens: int = Field(512, ge=1)  # of an answer, at most

    @property
    def temperature_or_default(self) -> float:
        """The temperature, 1 where none is known."""
        return 1.0 if self.temperature is None else self.temperature


class Running(Knobs):
    """`micro_batch`: rows on a device at once. `processes`: one a device, started by accelerate; by
    default one for each GPU that is visible, as far as they can share the batch. `save_steps`:
    optimizer steps between checkpoints. `evaluations`: evaluations on held-out rows during
    training. `precompute_reference`: compute the reference model's log-probabilities once, before
    training; `auto` does so with more than one epoch. `engine`: the engine that the probe compares
    with PEFT, and that draws the answers of online and rl where there is a GPU. `probe`: what is
    drawn afterwards, see ProbeKnobs."""

    micro_batch: int = Field(1, ge=1)
    save_steps: int = Field(50, ge=1)
    evaluations: int = Field(4, ge=1)
    precompute_reference: Literal["auto", "always", "never"] = "auto"
    attn: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    report_to: Literal["none", "trackio", "wandb"] = "none"
    processes: int | None = Field(None, ge=1)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    probe: ProbeKnobs = ProbeKnobs()


class Task(Knobs):
    """One training: a model, rows on disk, all knobs, and the paths of checkpoints and weights.

    Plain data, passed to other processes as JSON."""

    step: str
    method: Literal["reward", "sft", "preference", "online", "rl"]
    base: Path
    start: Path | None = None  # the adapter that training goes on with
    held_against: bool = False  # whether the reference is another model than the start
    reference: Path | None = None  # its adapter, None for the base alone
    rows: Path
    work: Path
    out: Path
    seed: int

    lr: float
    epochs: float
    batch: int
    warmup: float
    weight_decay: float
    max_length: int
    group_by_length: bool = False
    lora: Lora
    checkpoints: tuple[float, ...] = ()
    stop_early: bool = False
    dtype: Dtype
    how: Running

    loss: str | dict[str, float] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    use_weighting: bool = False
    ld_alpha: float | None = None
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    packing: bool = False
    disable_dropout: bool = True

    reward: Path | None = None  # online, rl: the model that reads answers
    max_tokens: int = 0
    temperature: float = 1.0
    algorithm: Literal["grpo", "rloo"] = "grpo"
    rewards: dict[RewardName, float] = Field(default_factory=dict)
    length: int | None = None
    format: str | None = None
    n: int = 2
    scale: str = "group"

    def checkpoint_path(self, share: float) -> Path:
        """Return the directory of the adapter saved after this share of the steps, until the
        end."""
        return self.work / checkpoint_folders.folder(checkpoint_folders.format_share(share))

    @property
    def accumulation(self) -> int:
        """Micro batches of one process that make an optimizer step."""
        return self.batch // (self.how.micro_batch * self.processes)

    @property
    def processes(self) -> int:
        """Processes that train; see launch.spread."""
        return self.how.processes or 1
