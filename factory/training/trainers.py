"""TRL trainers and their configs for a task; of DPOTrainer nothing but the tokenizing of rows is
replaced."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from factory.artifacts.resources import install_command
from factory.engines import chat_template
from factory.engines.transformers import check_gpus, float32_head
from factory.errors import InputError, StageError
from factory.training import answer_rewards, losses
from factory.training.settings import Task

_BESIDE = 0.35  # of a GPU's memory for a vLLM beside policy, reward model and activations


def device_of(task: Task) -> str:
    """Return `cuda` (also for ROCm) or `cpu`. Raises StageError for a dtype that the device
    lacks, or for GPUs that this process was given and that are not there."""
    import torch

    check_gpus()
    if not torch.cuda.is_available():
        return "cpu"
    if task.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise StageError(
            f"{task.step}: {torch.cuda.get_device_name(0)} has no bfloat16",
            "set dtype: float32 (or float16) for this stage",
        )
    return "cuda"


def attention(task: Task) -> str:
    """Return the attention kernel: flash attention where it is installed and there is a GPU,
    else torch's own; `how.attn` overrides it."""
    if task.how.attn != "auto":
        return task.how.attn
    has_flash = importlib.util.find_spec("flash_attn") is not None and device_of(task) == "cuda"
    return "flash_attention_2" if has_flash and task.dtype != "float32" else "sdpa"


def build(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    """Return the trainer of a task. Raises FactoryError."""
    if task.how.report_to != "none" and not importlib.util.find_spec(task.how.report_to):
        raise InputError(
            f"{task.step}: how.report_to is {task.how.report_to}, which is not installed",
            f"pip install {task.how.report_to}, or leave report_to out",
        )
    make = {
        "reward": _reward, "sft": _sft, "preference": _preference, "online": _online, "rl": _rl,
    }[task.method]  # fmt: skip
    return make(task, tokenizer, train, held_out, callbacks)


def arguments(task: Task, evaluate: bool) -> dict[str, Any]:
    """Return the part of TRL's configs that all trainings share."""
    gpu = device_of(task) == "cuda"
    # TRL's figures on held-out rows are means over batches: so each batch is one row
    by_row = task.method != "preference" or not losses.ACROSS_ROWS & set(losses.weights(task.loss))
    return {
        "output_dir": str(task.work),
        "learning_rate": task.lr,
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.how.micro_batch,
        "per_device_eval_batch_size": 1 if by_row else task.how.micro_batch,
        "gradient_accumulation_steps": task.accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": task.warmup,  # transformers 5: below 1 it is a share of the steps
        "weight_decay": task.weight_decay,
        "max_length": task.max_length,
        "seed": task.seed,
        "data_seed": task.seed,
        "train_sampling_strategy": "group_by_length" if task.group_by_length else "random",
        "bf16": task.dtype == "bfloat16" and gpu,
        "fp16": task.dtype == "float16" and gpu,
        "use_cpu": not gpu,
        "ddp_backend": "gloo" if task.processes > 1 and not gpu else None,
        "gradient_checkpointing": gpu,  # TRL's default everywhere; on a CPU it only costs time
        "dataloader_pin_memory": gpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show a loss of NaN as the mean of the others
        "save_steps": task.how.save_steps,
        "save_total_limit": 2,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": 1 / task.how.evaluations if task.how.evaluations > 1 else 10**9,
        "report_to": task.how.report_to,
        # of its own, and the same when it goes on: the stage, and the fingerprint it works under
        "run_name": f"{task.step} {task.work.parent.name}",
        "disable_tqdm": True,
        # GPUs wait for the tokens; trainers that sample have no such field
        **({"dataset_num_proc": _tokenizing()} if gpu and not _samples(task) else {}),
    }


def _samples(task: Task) -> bool:
    return task.method in ("online", "rl")


def _tokenizing() -> int:
    """Return how many processes tokenize the rows of a training."""
    return min(16, len(os.sched_getaffinity(0)))


def lora(task: Task, model: Any, **options: Any) -> Any:
    """Return PEFT's config. Raises StageError when the model lacks layers of the recipe's names."""
    from peft import LoraConfig
    from torch.nn import Linear

    targets = task.lora.targets
    if isinstance(targets, tuple):
        layers = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, Linear)}
        if missing := [name for name in targets if name not in layers]:
            raise StageError(
                f"{task.step}: the model has no linear layers called {', '.join(missing)}",
                f"set lora.targets to all-linear, or to some of {', '.join(sorted(layers))}",
            )
    return LoraConfig(
        r=task.lora.r,
        lora_alpha=task.lora.alpha,
        lora_dropout=task.lora.dropout,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        use_rslora=task.lora.rslora,
        use_dora=task.lora.dora,
        **options,
    )


def load_base(directory: Path, dtype: str, attn: str = "sdpa") -> Any:
    """Load a causal model from disk onto the CPU: the trainer places it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(directory),
        dtype=getattr(torch, dtype),
        attn_implementation=attn,
        trust_remote_code=False,
    )


def _causal(task: Task) -> tuple[Any, Any]:
    """Return (model, config of a new adapter), or (model with the adapter to train further,
    None). TRL then keeps a frozen copy of that adapter as the reference."""
    model = load_base(task.base, task.dtype, attention(task))
    if task.start is None:
        return model, lora(task, model, task_type="CAUSAL_LM")
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, str(task.start), is_trainable=True)
    # Where the base lies here: at every save PEFT looks into its config, on a hub if it must.
    model.peft_config["default"].base_model_name_or_path = str(task.base)
    return model, None


def _reference(task: Task) -> Any:
    """Return a reference that is not the start of training: the base, or it with another
    adapter."""
    model = load_base(task.base, task.dtype, attention(task))
    if task.reference is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(task.reference)).merge_and_unload()


def _reward(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    # TRL writes the tokenizer's pad token into the config
    separate_padding(tokenizer, train, held_out)
    model = AutoModelForSequenceClassification.from_pretrained(
        str(task.base),
        num_labels=1,
        dtype=getattr(torch, task.dtype),
        attn_implementation=attention(task),
        trust_remote_code=False,
    )
    return RewardTrainer(
        model=model,
        args=RewardConfig(
            disable_dropout=task.disable_dropout, **arguments(task, held_out is not None)
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora(task, model, task_type="SEQ_CLS", modules_to_save=["score"]),
        callbacks=callbacks,
    )


def separate_padding(tokenizer: Any, *parts: Any) -> None:
    """Give the tokenizer of a classifier a pad token apart from these rows of preferences (see
    chat_template). Every process of a training, and who saves the tokenizer, gets the same one."""
    chat_template.separate_padding(
        tokenizer,
        (
            [*row["prompt"], *row[side]]
            for part in parts
            for row in part or ()
            for side in ("chosen", "rejected")
        ),
    )


def _sft(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    model, adapter = _causal(task)
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            completion_only_loss=True,  # TRL's default for such rows; said, not left to it
            loss_type=str(task.loss),
            packing=task.packing,
            eval_packing=False,  # figures on held-out rows are means over rows
            **arguments(task, held_out is not None),
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )


def _preference(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    weights = losses.weights(task.loss)
    name = next(iter(weights))
    kind, loss_options = losses.ALONE.get(name, ("dpo", {}))
    config_class, trainer_class = _classes(kind)
    shared = {
        **arguments(task, held_out is not None),
        "beta": task.beta,
        "disable_dropout": task.disable_dropout,
    }
    if kind == "dpo":
        shared |= {
            "loss_type": list(weights),
            "loss_weights": list(weights.values()),
            "label_smoothing": task.label_smoothing,
            "use_weighting": task.use_weighting,
            "ld_alpha": task.ld_alpha,
            "f_divergence_type": task.f_divergence_type,
            "f_alpha_divergence_coef": task.f_alpha_divergence_coef,
            # the sampler reads lengths from a column that nothing else uses
            "remove_unused_columns": not task.group_by_length,
        }
    if kind == "cpo":
        shared |= {"label_smoothing": task.label_smoothing, "simpo_gamma": task.simpo_gamma}
    if kind in ("dpo", "kto"):
        precompute = task.how.precompute_reference
        shared["precompute_ref_log_probs"] = precompute == "always" or (
            precompute == "auto" and task.epochs > 1
        )
    if kind == "kto":  # each answer by itself, beside neighbours that TRL fixes beforehand
        if "label" not in train.column_names:
            train = _answers(train, task.seed)
            held_out = _answers(held_out, task.seed) if held_out is not None else None
        shared["train_sampling_strategy"] = "sequential"
    model, adapter = _causal(task)
    reference = {"ref_model": _reference(task)} if task.held_against else {}
    return trainer_class(
        model=model,
        **reference,
        args=config_class(**{**shared, **loss_options}),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )


def _answers(pairs: Any, seed: int) -> Any:
    """Return both answers of every pair as labelled rows of their own, in random order."""

    def split_pair(pair: Any) -> dict[str, list[Any]]:
        [prompt], answers = pair["prompt"], [*pair["chosen"], *pair["rejected"]]
        return {"prompt": [prompt, prompt], "completion": answers, "label": [True, False]}

    columns = pairs.column_names
    return pairs.map(split_pair, batched=True, batch_size=1, remove_columns=columns).shuffle(
        seed=seed
    )


def _classes(kind: str) -> tuple[Any, Any]:
    """Return TRL's config and trainer classes; some are under trl.experimental."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the card says which loss it was
    if kind == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer
    if kind == "tpo":
        from trl.experimental.tpo import TPOConfig, TPOTrainer

        return TPOConfig, TPOTrainer
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer
    if kind == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer for rows with token ids, which would tokenize their messages anew."""

        def _prepare_dataset(self, rows: Any, *_: Any) -> Any:
            return rows

    return DPOConfig, Tokenized


def drawing(task: Task, tokenizer: Any) -> dict[str, Any]:
    """Return the part of the configs of online and rl that says where answers are drawn: on GPUs by
    a vLLM beside the trainer, whose weights TRL renews; else by the model in training. Raises
    StageError, see without_vllm."""
    return _beside() if without_vllm(task, tokenizer) is None else {}


def slow_drawing(task: Task, tokenizer: Any) -> str | None:
    """Return what to say of a training whose model draws the answers by itself on GPUs, though
    nobody asked for that; None of another. Raises StageError, see without_vllm."""
    why = without_vllm(task, tokenizer) if _samples(task) else None
    if why is None or task.how.engine != "auto" or device_of(task) == "cpu":
        return None
    price = "some 50 times as long, a guess" if task.method == "online" else "longer"
    return f"the model in training draws its answers by itself, which takes {price}: {why}"


def without_vllm(task: Task, tokenizer: Any) -> str | None:
    """Return why no vLLM beside the trainer draws the answers of online and rl; None where one
    does. Raises StageError where how.engine asks for one all the same.

    To OnlineDPO's vLLM TRL hands text: it may read other tokens than everywhere else here."""
    why = None
    if task.how.engine == "transformers":
        return "how.engine is transformers"
    if device_of(task) == "cpu":
        why = "there is no GPU"
    elif importlib.util.find_spec("vllm") is None:
        why = f"vLLM is not installed ({install_command('vllm')})"
    elif task.method != "rl":
        question = chat_template.PROBE[:1]
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        if list(tokenizer(text)["input_ids"]) != chat_template.prompt_ids(tokenizer, question):
            why = "from TRL it would read other tokens of a prompt than the rest of the recipe"
    if why and task.how.engine == "vllm":
        raise StageError(
            f"{task.step}: how.engine is vllm, which cannot draw its answers: {why}",
            "with how.engine: auto the model in training draws by itself where vLLM cannot",
        )
    return why


def _beside() -> dict[str, Any]:
    """Return the settings of a vLLM that shares the trainer's GPU."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its model has to be in this process
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": _BESIDE,
    }


def _judge(task: Task) -> tuple[Any, Any]:
    """Return the classifier that reads sampled answers, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judge = AutoModelForSequenceClassification.from_pretrained(
        str(task.reward),
        num_labels=1,
        dtype=getattr(torch, task.dtype),
        trust_remote_code=False,
    )
    reader = AutoTokenizer.from_pretrained(str(task.reward), trust_remote_code=False)
    # TRL pads with the tokenizer's token and writes it into the config: as the config has it, so
    # that answers are read where this classifier was trained to be read
    if (pad := judge.config.get_text_config().pad_token_id) is not None:
        reader.pad_token = reader.convert_ids_to_tokens(pad)
    else:
        chat_template.separate_padding(reader, ())
    return float32_head(judge), reader


def _rl(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    model, adapter = _causal(task)
    judge, reader = _judge(task) if "model" in task.rewards else (None, None)
    read = {**answer_rewards.functions(task), "model": judge}
    grpo = task.algorithm == "grpo"
    options: dict[str, Any] = {
        **arguments(task, evaluate=False),
        "reward_weights": list(task.rewards.values()),
        "num_generations": task.n,
        "max_completion_length": task.max_tokens,
        "temperature": task.temperature,
        "beta": task.beta,
        "disable_dropout": task.disable_dropout,
        "chat_template_kwargs": chat_template.template_arguments(tokenizer) or None,
    }
    room = options.pop("max_length")  # TRL hands vLLM token ids, so that no text is read anew
    drawn = drawing(task, tokenizer)
    options |= drawn | ({"vllm_max_model_length": room} if drawn else {})
    options |= {"loss_type": task.loss, "scale_rewards": task.scale} if grpo else {}
    config_class, trainer_class = (GRPOConfig, GRPOTrainer) if grpo else (RLOOConfig, RLOOTrainer)
    return trainer_class(
        model=model,
        reward_funcs=[read[name] for name in task.rewards],
        reward_processing_classes=[reader if name == "model" else None for name in task.rewards],
        args=config_class(**options),
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )


def _online(task: Task, tokenizer: Any, train: Any, held_out: Any, callbacks: list[Any]) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    model, adapter = _causal(task)
    judge, reader = _judge(task)
    return OnlineDPOTrainer(
        model=model,
        reward_funcs=judge,
        reward_processing_classes=reader,
        args=OnlineDPOConfig(
            beta=[task.beta],
            loss_type="sigmoid",
            max_new_tokens=task.max_tokens,
            temperature=task.temperature,
            disable_dropout=task.disable_dropout,
            **drawing(task, tokenizer),
            **arguments(task, evaluate=False),
        ),
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )
