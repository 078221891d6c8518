"""Stage 2 of the fusion curriculum: a run that begins with an AV encoder which was trained alone, frozen or not."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.adapters.av_encoder_file import read_av_encoder, write_av_encoder
from deepmlf_llm.backbones import base_fingerprint, load_base_model
from deepmlf_llm.config.design import text_alone_problems
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError, RunError
from deepmlf_llm.fusion.build import build_av_encoder
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.training.assemble import method_config
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.starting import restore

from .conftest import DIMS
from .test_run import run_until, weights_of

MakeSettings = Callable[..., RunSettings]
AV = ".av_encoder."


def make_encoder(directory: Path, seed: int = 5, **settings: Any) -> Path:
    """An AV encoder as a run of stage 1 leaves it, in a folder of the run."""
    torch.manual_seed(seed)
    values = {"av_encoder": {"num_layers": 1, **settings}, "modalities": {n: {"dim": d} for n, d in DIMS.items()}}
    config = DeepMLFConfig.from_dict(values)
    encoder = build_av_encoder(config)
    with torch.no_grad():
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    write_av_encoder(directory / "av_encoder", encoder.state_dict(), config, "mean")
    return directory


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("stage1"))


def encoder_in(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.rpartition(AV)[2]: value for name, value in weights.items() if AV in name}


def test_a_run_begins_with_the_encoder_and_trains_it_unless_frozen(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, stage1: Path, capsys: Any
) -> None:
    told = read_av_encoder(stage1 / "av_encoder").tensors

    def moved(**changes: Any) -> tuple[list[str], dict[str, int]]:
        place = str(tmp_path / str(len(changes)))
        settings = toy_settings(av_encoder_from=str(stage1), max_steps=1, output_dir=place, **changes)
        parameters = run_training(settings, toy_data)["train"]["parameters"]
        found = encoder_in(weights_of(settings))
        assert found.keys() == told.keys()
        return [name for name, value in found.items() if not torch.equal(told[name], value)], parameters

    trained, all_of_it = moved()
    assert trained
    kept, without = moved(freeze_av_encoder=True, warmup_epochs=0)
    assert kept == []
    size = sum(value.numel() for value in told.values())
    assert without == {**all_of_it, "trainable": all_of_it["trainable"] - size}
    assert f"AV encoder from {stage1}, frozen" in capsys.readouterr().out


def test_a_frozen_encoder_gives_one_context_an_utterance_and_keeps_its_statistics(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    stage1 = make_encoder(tmp_path / "stage1", feature_norm="batch")
    told = read_av_encoder(stage1 / "av_encoder").tensors
    values = {"av_encoder_from": str(stage1), "av_encoder__feature_norm": "batch", "max_steps": 3}
    settings = toy_settings(**values, freeze_av_encoder=True)
    run_training(settings, toy_data)
    found = encoder_in(weights_of(settings))
    assert any("running_mean" in name for name in told)
    assert all(torch.equal(found[name], value) for name, value in told.items())
    model = DeepMLFModel.from_pretrained(tmp_path / "run" / "adapter", is_trainable=True).train()
    assert model.deepmlf_config.freeze_av_encoder
    assert not any(p.requires_grad for p in model.active_stack.av_encoder.parameters())
    assert all(p.requires_grad for p in model.active_stack.heads.parameters())
    model.to("cpu")
    features = {n: (torch.randn(2, 4, d), torch.ones(2, 4).bool()) for n, d in DIMS.items()}
    first, again = (model.active_stack.av_encoder(features).frames for _ in range(2))
    assert torch.equal(first, again)  # with dropout .1 in its settings
    model.set_adapter("default")
    assert not any(p.requires_grad for p in model.active_stack.av_encoder.parameters())


def test_a_run_that_goes_on_needs_the_encoder_no_more(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage1 = make_encoder(tmp_path / "stage1")
    values = {"av_encoder_from": str(stage1), "freeze_av_encoder": True, "save_strategy": "steps", "save_steps": 2}
    whole = toy_settings(**values, max_steps=5, output_dir=str(tmp_path / "whole"))
    cut = toy_settings(**values, max_steps=5, output_dir=str(tmp_path / "cut"))
    expected = run_training(whole, toy_data)
    run_until(monkeypatch, cut, toy_data, 3)
    shutil.rmtree(stage1)
    assert run_training(cut, toy_data)["metrics"] == expected["metrics"]
    assert all(torch.equal(weights_of(cut)[name], value) for name, value in weights_of(whole).items())
    make_encoder(tmp_path / "stage1", seed=6)
    with pytest.raises(RunError, match=r"holds another run \(av_encoder_from: '\w+' there, '\w+' here\)"):
        run_training(cut, toy_data)


def test_a_checkpoint_gives_the_frozen_encoder_back(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, stage1: Path
) -> None:
    """DeepSpeed's own files lack it, and a run that goes on does not read the encoder's file."""
    values = {"av_encoder_from": str(stage1), "freeze_av_encoder": True, "max_steps": 1}
    run_training(toy_settings(**values), toy_data)
    fresh = DeepMLFModel(load_base_model("tiny-llama"), method_config(toy_settings(**values), toy_data))
    restore(fresh, tmp_path / "run" / "checkpoint-1")
    told = read_av_encoder(stage1 / "av_encoder").tensors
    assert all(
        torch.equal(value.cpu(), told[name]) for name, value in fresh.active_stack.av_encoder.state_dict().items()
    )
    trained = DeepMLFModel(load_base_model("tiny-llama"), method_config(toy_settings(), toy_data))
    before = trained.active_stack.av_encoder.join.weight.clone()
    restore(trained, tmp_path / "run" / "checkpoint-1")  # its engine's files have it
    assert torch.equal(trained.active_stack.av_encoder.join.weight, before)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"av_encoder__width": 24}, r"av_encoder.width=30 there, 24 here"),
    "frames": ({"av_encoder__max_frames": 55}, r"av_encoder.max_frames=50 there, 55 here"),
    "a modality fewer": ({"modalities": ["audio"]}, r"the data: no 'vision'"),
    "nothing there": ({"av_encoder_from": "nowhere"}, r"av_encoder_from=nowhere: nowhere: no av_encoder.json"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_by_name_before_a_base_loads(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, stage1: Path, case: str
) -> None:
    changes, words = MISFITS[case]
    settings = toy_settings(**{"av_encoder_from": str(stage1), "base_model": "nobody/nothing", **changes})
    with pytest.raises(AdapterError, match=words):
        run_training(settings, toy_data)
    assert not (tmp_path / "run").exists()


def test_contradictions_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        RunSettings.from_dict(
            {
                **{"init_from": "a", "av_encoder_from": "b", "freeze_av_encoder": True, "av_learning_rate": 1e-3},
                **{"av_weight_decay": 0.1, "lm_init": "random", "quantization": "nf4"},
            }
        )
    for words in (
        "init_from and av_encoder_from: the adapter has an AV encoder of its own",
        "av_learning_rate with freeze_av_encoder",
        "av_weight_decay with freeze_av_encoder",
        "quantization='nf4' with lm_init='random'",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"modalities": ["none"], "frame_dropout": 0.1, "cmixup_alpha": 1.0},
            "frame_dropout, cmixup_alpha: changes audio",
        ),
        (
            {"average_last": 2, "save_strategy": "best"},
            "average_last=2 with save_strategy='best': .* 'epoch' or 'steps'",
        ),
        ({"cmixup_labels": "all"}, "cmixup_labels='all' without cmixup_alpha: nothing is blended"),
        ({"cmixup_bandwidth": 0.2}, "cmixup_bandwidth=0.2 without cmixup_alpha: nothing is blended"),
    ],
)
def test_what_would_do_nothing_is_refused_and_its_parts_are_not(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunSettings.from_dict(values)
    good = {"modalities": ["audio"], "save_strategy": "epoch", "cmixup_alpha": 1.0}
    RunSettings.from_dict({**values, **good})


@pytest.mark.parametrize("dry_run", [False, True])
def test_data_without_modalities_have_none_to_drop(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, dry_run: bool
) -> None:
    bare = dataclasses.replace(toy_data, modalities={})
    with pytest.raises(ConfigError, match="modality_dropout: changes audio and vision, and this run reads no modality"):
        run_training(toy_settings(modality_dropout=0.1, base_model="nobody/nothing"), bare, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_there_is_nothing_to_freeze_in_a_model_that_reads_text_alone() -> None:
    assert text_alone_problems(DeepMLFConfig(freeze_av_encoder=True)) == [
        "modalities: none, with freeze_av_encoder: there is no AV encoder to keep; leave it out"
    ]
    assert text_alone_problems(DeepMLFConfig()) == []


def test_the_readout_of_stage_1_is_no_setting_of_stage_2(toy_settings: MakeSettings, toy_data: TrainingData) -> None:
    with pytest.raises(ConfigError, match="av_readout='last': a setting of `deepmlf pretrain-av`"):
        run_training(toy_settings(av_readout="last"), toy_data)


def test_a_random_lm_is_recorded_and_made_again(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    settings = toy_settings(lm_init="random", ffw_scope="fusion", text_cache="memory", max_steps=2, seed=9)
    result = run_training(settings, toy_data)
    adapter = DeepMLFModel.from_pretrained(tmp_path / "run" / "adapter")
    assert adapter.deepmlf_config.base_init_seed == 9
    assert result["base_model"]["name"] == "tiny-llama"
    assert result["base_model"]["digest"] == base_fingerprint(adapter.get_base_model())["digest"]
    assert result["base_model"]["digest"] != base_fingerprint(load_base_model("tiny-llama"))["digest"]


def test_a_random_lm_is_refused_under_zero_3(toy_settings: MakeSettings, toy_data: TrainingData) -> None:
    with pytest.raises(ConfigError, match="lm_init='random' draws the whole LM in each process"):
        run_training(toy_settings(lm_init="random", deepspeed="zero3"), toy_data)


def test_weights_are_loaded_whole(toy_settings: MakeSettings, toy_data: TrainingData, stage1: Path) -> None:
    """Tensors that are not the encoder's, in a file that is sound: refused when they meet the model."""
    file = read_av_encoder(stage1 / "av_encoder")
    name = next(iter(file.tensors))
    with pytest.raises(AdapterError, match="missing"):
        file.check_tensors({**file.tensors, f"{name}.more": file.tensors[name]})
    assert load_file(stage1 / "av_encoder" / "av_encoder.safetensors").keys() == file.tensors.keys()
