from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.training import trainer as trainer_module
from deepmlf_llm.training.assemble import load_model, make_trainer, method_config
from deepmlf_llm.training.checkpoints import all_checkpoints, step_of
from deepmlf_llm.training.data import TrainingData, tokenised
from deepmlf_llm.training.head_metrics import split_metrics
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.run_directory import RunDirectory
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.stopping import StopRequest
from deepmlf_llm.training.trainer import DeepMLFTrainer
from deepmlf_llm.training.trainer_arguments import make_arguments

MakeTrainer = Callable[..., DeepMLFTrainer]


@pytest.fixture
def make(toy_data: TrainingData, toy_settings: Callable[..., RunSettings], tmp_path: Path) -> MakeTrainer:
    def build(**changes: Any) -> DeepMLFTrainer:
        settings = toy_settings(**changes)
        config = method_config(settings, toy_data)
        arguments = make_arguments(settings, tmp_path / "run", 1, len(toy_data.train), None)  # type: ignore[arg-type]
        model, tokenizer = load_model(settings, settings.base_model, config, arguments, None)
        splits = {name: tokenised(split, name, tokenizer, config.text) for name, split in toy_data.splits().items()}
        launch, directory = Launch("python"), RunDirectory(tmp_path / "run", settings.to_dict(), "toy")
        directory.path.mkdir(exist_ok=True)  # a test may compare two trainers
        trainer: DeepMLFTrainer = make_trainer(
            settings, config, arguments, model, tokenizer, splits, launch, directory, StopRequest(launch)
        )
        return trainer

    return build


def test_groups_have_their_own_rates_and_norms_biases_gates_no_decay(make: MakeTrainer) -> None:
    trainer = make(lora_r=2, av_learning_rate=3e-3, lora_learning_rate=2e-4, av_weight_decay=0.3, weight_decay=0.1)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = {group["name"]: group for group in trainer.optimizer_groups()}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {
        "av_encoder/decayed": (3e-3, 0.3),
        "av_encoder/kept": (3e-3, 0.0),
        "fusion/decayed": (1e-3, 0.1),
        "fusion/kept": (1e-3, 0.0),
        "lm_lora/decayed": (2e-4, 0.1),
    }
    kept = [names[id(p)] for name, group in groups.items() if name.endswith("kept") for p in group["params"]]
    decayed = [names[id(p)] for name, group in groups.items() if name.endswith("decayed") for p in group["params"]]
    assert not [name for name in decayed if name.endswith("bias") or "norm" in name or "gate.alpha" in name]
    assert sum("gate" in name for name in kept) == 4  # two MM Blocks, two gates each
    assert any("fusion_tokens" in name for name in decayed)
    assert sorted([*kept, *decayed]) == sorted(n for n, p in trainer.model.named_parameters() if p.requires_grad)
    assert trainer.create_optimizer() is trainer.create_optimizer()


def test_checkpoints_hold_trainable_weights_only(make: MakeTrainer, tmp_path: Path) -> None:
    trainer = make(max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=2)
    trainer.train()
    directory = tmp_path / "run" / "checkpoint-2"
    trainable = sum(p.numel() * 4 for p in trainer.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * 4 for p in trainer.model.parameters() if not p.requires_grad)
    assert frozen > trainable
    size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
    assert size < 3 * trainable * 1.15 + 100_000  # weights, two moments; a little for everything else
    weights = load_file(directory / "adapter_model.safetensors")
    assert sum(v.numel() for v in weights.values()) == pytest.approx(trainable / 4, rel=0.01)  # and BatchNorm's buffers
    assert not [
        p for p in directory.iterdir() if p.name in ("training_args.bin", "tokenizer.json", "model.safetensors")
    ]


def test_evaluation_keeps_predictions_only(make: MakeTrainer) -> None:
    trainer = make()
    seen: dict[str, Any] = {}
    inner = trainer.compute_metrics
    assert inner is not None

    def spy(evaluated: Any) -> dict[str, float]:
        seen["shapes"] = [p.shape for p in evaluated.predictions]
        result: dict[str, float] = inner(evaluated)
        return result

    trainer.compute_metrics = spy
    logged = trainer.evaluate()
    assert seen["shapes"] == [(12,)] * 4
    parts = split_metrics(logged, "eval")
    assert list(parts["metrics"])[:2] == ["mae", "corr"]
    assert set(parts["heads"]) == {"fusion", "text", "av"}
    assert parts["heads"]["text"].keys() == parts["metrics"].keys()


def test_frozen_weights_do_not_move_and_trained_ones_do(make: MakeTrainer) -> None:
    trainer = make(max_steps=3, eval_strategy="steps", eval_steps=3, lora_r=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, p in trainer.model.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, before[name]), name
    for role, members in trainer.model.parameter_groups().items():
        assert any(not torch.equal(p, before[name]) for name, p in members), role


def test_the_best_evaluation_is_kept_and_restored(make: MakeTrainer, tmp_path: Path) -> None:
    trainer = make(num_train_epochs=4, learning_rate=2e-2, save_strategy="no", save_total_limit=1)
    trainer.train()
    history = {line["step"]: line["eval_mae"] for line in trainer.state.log_history if "eval_mae" in line}
    best = min(history, key=lambda step: history[step])
    assert trainer.state.best_global_step == best
    kept = {p.name for p in (tmp_path / "run").iterdir() if p.is_dir()}
    assert f"checkpoint-{best}" in kept
    assert len(kept) <= 2
    trainer.load_best()
    assert trainer.evaluate(metric_key_prefix="best")["best_mae"] == pytest.approx(history[best], abs=1e-6)


def test_loss_parts_add_up_to_the_loss(make: MakeTrainer) -> None:
    trainer = make(max_steps=4, logging_steps=2, objective__gamma=0.5, gradient_accumulation_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss_task" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        parts = {"task": 1.0, "fusion": 0.4, "av": 0.8, "text": 0.8, "lm": 0.5}
        assert line["loss"] == pytest.approx(sum(w * line[f"loss_{name}"] for name, w in parts.items()), rel=1e-5)


def test_training_loses_modalities_and_frames_and_evaluation_does_not(make: MakeTrainer) -> None:
    """What enters the model, seen at its door: fewer frames in training alone; the loss counts what is left."""
    kept, counts = {True: 0.0, False: 0.0}, []
    for settings in ({}, {"modality_dropout": 0.5, "frame_dropout": 0.5}):
        trainer = make(max_steps=5, eval_strategy="steps", eval_steps=5, **settings)
        seen: dict[bool, list[dict[str, torch.Tensor]]] = {True: [], False: []}

        def watch(model: Any, args: Any, batch: Any, seen: Any = seen) -> None:
            seen[model.training].append(batch)

        trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
        trainer.train()
        frames = {mode: sum(int(b["audio_mask"].sum()) for b in batches) for mode, batches in seen.items()}
        heard = [int((b["audio_mask"].any(1) | b["vision_mask"].any(1)).sum()) for b in seen[True]]
        counts.append(([int(b["loss_counts"]["av"]) for b in seen[True]], heard))
        kept = {mode: frames[mode] / max(kept[mode], 1) for mode in frames}
    assert 0.15 < kept[True] < 0.55
    assert kept[False] == 1.0
    assert all(told == heard for told, heard in counts)
    assert sum(counts[1][1]) < sum(counts[0][1])


def test_cmixup_blends_features_in_training_alone(make: MakeTrainer) -> None:
    """The same batches with and without it, seen at the model's door."""
    seen: list[list[tuple[bool, dict[str, Any]]]] = []
    blending: dict[str, Any] = {"cmixup_alpha": 2.0, "cmixup_bandwidth": 5.0}
    for keys in ({}, blending):
        trainer = make(max_steps=2, eval_strategy="steps", eval_steps=2, **keys)
        batches: list[tuple[bool, dict[str, Any]]] = []

        def watch(model: Any, args: Any, batch: Any, batches: Any = batches) -> None:
            batches.append((model.training, batch))

        trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
        trainer.train()
        seen.append(batches)
    for (training, plain), (_, blended) in zip(*seen, strict=True):
        assert torch.equal(plain["labels"], blended["labels"])
        assert torch.equal(plain["input_ids"], blended["input_ids"])
        same = [torch.equal(a, b) for a, b in zip(plain["audio"], blended["audio"], strict=True)]
        assert sum(same) <= 4 if training else all(same)  # of 8; some are their own partner
        assert ("head_labels" in blended) == training
        assert plain.get("head_labels") is None


def test_steps_have_texts_of_like_length_unless_told_otherwise(make: MakeTrainer) -> None:
    padding = {}
    for grouped in (None, True, False):
        trainer = make(**({} if grouped is None else {"group_by_length": grouped}))
        lengths = trainer.train_dataset.lengths
        batches = [[lengths[row] for row in rows] for rows in trainer.batches]
        padding[grouped] = [sum(max(rows) - length for length in rows) for rows in batches]
    assert padding[None] == padding[True]
    assert sum(padding[True]) < 0.7 * sum(padding[False])


def test_gradient_checkpointing_trains_the_same(make: MakeTrainer) -> None:
    losses = []
    for recompute in (False, True):
        trainer = make(max_steps=3, gradient_checkpointing=recompute, lora_r=2)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_minutes_ask_for_checkpoints_and_a_worker_that_reads_ahead_changes_no_loss(
    make: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves half a minute each time that it is looked at: once a step, and as a checkpoint is written."""
    seconds = itertools.count(0.0, 30.0)
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    steps = {"logging_steps": 1, "max_steps": 6, "save_strategy": "no", "save_total_limit": None}
    steps |= {"eval_strategy": "steps", "eval_steps": 6}
    losses = []
    for changes, expected in (({}, {6}), ({"save_every": 1, "dataloader_num_workers": 1}, {2, 4, 6})):
        trainer = make(**steps, **changes)
        trainer.train()
        assert {step_of(path) for path in all_checkpoints(tmp_path / "run")} == expected
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    assert trainer.optimizer.optimizer.defaults["fused"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_training_goes_on_after_an_evaluation_of_a_quantized_base(make: MakeTrainer, quantization: str) -> None:
    """Some CPUs repack 4-bit weights when evaluating: afterwards no gradient would flow."""
    trainer = make(max_steps=4, quantization=quantization, eval_strategy="steps", eval_steps=2)
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    assert len(norms) == 4
    assert min(norms) > 0


def test_a_diverged_run_ends_with_a_sentence(make: MakeTrainer) -> None:
    from deepmlf_llm.errors import RunError

    trainer = make(max_grad_norm=0, max_steps=10, warmup_epochs=0)
    trainer.args.learning_rate = 1e30  # more than settings allow
    with pytest.raises(RunError, match=r"lower (the learning rate|learning_rate)"):
        trainer.train()
