"""TrainingArguments and the DeepSpeed configuration of a run, checked against each other before anything loads."""

from __future__ import annotations

import math
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm import shipped
from deepmlf_llm.errors import ConfigError, MissingPackageError, Problems
from deepmlf_llm.extras import installed, require
from deepmlf_llm.reading import read_json
from deepmlf_llm.tasks.metrics import higher_is_better
from deepmlf_llm.training.deepspeed_agreement import async_io_problem, contradictions
from deepmlf_llm.training.deepspeed_schema import AUTO, schema_problems, unknown_to, without_problems
from deepmlf_llm.training.launch import detect, on_terminal
from deepmlf_llm.training.settings import RunSettings


def read_deepspeed(settings: RunSettings) -> dict[str, Any] | None:
    """The DeepSpeed configuration; None where the run uses none.

    Raises:
        ConfigError: not there, no JSON, or with settings that this recipe decides.
    """
    path = settings.deepspeed
    if path is None:
        return None
    require("deepspeed", f"--ds {path}")
    try:
        config = read_json(shipped.locate(shipped.DEEPSPEED, path), settings=True)
    except OSError as error:
        known = shipped.hint(shipped.DEEPSPEED, path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"--ds {path}: cannot be read ({error.strerror}){known}") from None
    except ValueError as error:
        raise ConfigError(f"--ds {path}: is not JSON ({error})") from None
    nothing = f"has no section zero_optimization{shipped.hint(shipped.DEEPSPEED, path)}"
    if not isinstance(config, dict):
        raise ConfigError(f"--ds {path}: {nothing}")
    problems = Problems(ConfigError, f"--ds {path}")
    problems.check("zero_optimization" in config, nothing)
    problems.messages.extend(schema_problems(config))
    config = without_problems(config)  # looked into below
    problems.messages.extend(unknown_to(config, version("deepspeed")))
    problems.messages.extend(
        contradictions(config, _batch(settings), settings.trainer_values()["max_grad_norm"], uses_bf16(settings))
    )
    splits = zero_stage(config) == 3
    if splits:
        problems.messages.extend(f"{why}: use --ds zero2" for why in needs_whole_model(settings))
    problems.check(
        settings.quantization != "int8" or (not splits and torch.cuda.is_available()),
        "quantization='int8' works under DeepSpeed on CUDA with ZeRO 1 or 2 only: use nf4",
    )
    problems.raise_if_any()
    problems.messages.extend(filter(None, [async_io_problem(config)]))
    problems.raise_if_any()
    # What is left out is the run's to say; DeepSpeed's own defaults would contradict it.
    return {**dict.fromkeys((*_batch(settings), "gradient_clipping"), AUTO), **config}


def _batch(settings: RunSettings) -> dict[str, tuple[int, str]]:
    """DeepSpeed's batch keys -> (what the settings make of it, how)."""
    processes = detect().processes
    per_device, accumulated = settings.resolve_batch(processes)
    return {
        "train_micro_batch_size_per_gpu": (per_device, f"a step of {settings.batch_size} utterances"),
        "gradient_accumulation_steps": (accumulated, f"gradient_accumulation_steps={accumulated}"),
        "train_batch_size": (
            per_device * accumulated * processes,
            f"{per_device} utterances x {accumulated} batches x {processes} processes",
        ),
    }


def zero_stage(config: dict[str, Any] | None) -> int:
    """ZeRO stage of a DeepSpeed configuration; 0 without one, or where its section is left out for its mistakes."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))


def needs_whole_model(settings: RunSettings) -> list[str]:
    """What of these settings needs the whole model in each process, which ZeRO-3 splits; each with its reason."""
    reasons = []
    if settings.text_cache != "none":
        reasons.append(
            f"text_cache={settings.text_cache!r} needs the whole frozen LM in each process, ZeRO-3 splits it"
        )
    if settings.lm_init != "pretrained":
        reasons.append("lm_init='random' draws the whole LM in each process, ZeRO-3 would draw its parts otherwise")
    if settings.ema_decay or settings.average_last:
        reasons.append("ema_decay and average_last need the whole trained weights in each process, ZeRO-3 splits them")
    return reasons


def without_splitting(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The configuration for a plan among processes that are not there, and would not give their shares of the model."""
    if zero_stage(config) != 3 or config is None:
        return config
    zero = {name: value for name, value in config["zero_optimization"].items() if name != "offload_param"}
    return {**config, "zero_optimization": {**zero, "stage": 2}}


def uses_bf16(settings: RunSettings) -> bool:
    """Whether to compute under bf16 autocast: as set, else where the GPU can."""
    given = settings.trainer.get("bf16")
    if given is not None:
        return bool(given)
    return torch.cuda.is_available() and not settings.trainer.get("use_cpu") and torch.cuda.is_bf16_supported()


def make_arguments(
    settings: RunSettings, output_dir: Path, processes: int, utterances: int, deepspeed: dict[str, Any] | None
) -> Any:
    """``TrainingArguments`` of a run; torch.distributed starts here, except under DeepSpeed.

    Args:
        settings: the run's.
        output_dir: its directory; not touched.
        processes: how many train together.
        utterances: in the training split.
        deepspeed: from :func:`read_deepspeed`.

    Raises:
        ConfigError: the arguments refuse a value.
    """
    from transformers import TrainingArguments

    values = settings.trainer_values()
    per_device, _ = settings.resolve_batch(processes)
    steps = settings.planned_steps(utterances, processes)
    cpu = values.setdefault("use_cpu", not torch.cuda.is_available())
    bf16 = uses_bf16(settings)
    metric = values["metric_for_best_model"]
    values.setdefault("warmup_steps", min(math.ceil(settings.warmup_epochs * steps.per_epoch), steps.total // 2))
    values.setdefault("report_to", report_to(settings))
    values.setdefault("disable_tqdm", not on_terminal())
    values.setdefault("greater_is_better", higher_is_better(metric.removeprefix("eval_")))
    values.setdefault("dataloader_pin_memory", not cpu)
    values.setdefault("ddp_find_unused_parameters", False)
    values.setdefault("ddp_broadcast_buffers", False)  # running statistics are averaged, see gradients.py
    if cpu and deepspeed is None and processes > 1:
        values.setdefault("ddp_backend", "gloo")
    if values.get("gradient_checkpointing"):
        values.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    os.environ.setdefault("WANDB_DIR", str(output_dir))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output_dir / "tensorboard")  # else a folder named after the host
    values.update(
        output_dir=str(output_dir),
        per_device_train_batch_size=per_device,
        bf16=bf16 and deepspeed is None,
        deepspeed=_with_precision(deepspeed, bf16),
        remove_unused_columns=False,
        label_names=["labels"],
        save_total_limit=None,  # old checkpoints go after the new one is whole, see checkpoints.py
        logging_nan_inf_filter=False,
    )
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TrainingArguments: {' '.join(str(error).split())}") from error


def report_to(settings: RunSettings) -> list[str] | str:
    """Where a run's log goes beside ``metrics.jsonl``, by the names of transformers.

    Raises:
        MissingPackageError: what is asked for is not installed.
    """
    if settings.log_to is None:
        return "tensorboard" if installed("tensorboard") else "none"
    wanted = [name for name in settings.log_to if name != "jsonl"]
    if "wandb" in wanted and not installed("wandb"):
        raise MissingPackageError("log_to=wandb needs the package wandb: pip install wandb")
    if "tensorboard" in wanted:
        require("tensorboard", "log_to=tensorboard")
    return wanted or "none"


def _with_precision(config: dict[str, Any] | None, bf16: bool) -> dict[str, Any] | None:
    """bf16 as autocast over fp32 weights: DeepSpeed's own bf16 mode would round the trained weights themselves."""
    if config is None or not bf16:
        return config
    return {**config, "bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
