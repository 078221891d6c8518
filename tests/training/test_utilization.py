"""Mirrors ``deepmlf_llm/training/utilization.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.training.assemble import method_config
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.utilization import mfu_per_speed, peak_flops, typical_step


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name: str, teraflops: int | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else 1e12 * teraflops)


def test_flops_of_a_step_over_the_rate_of_all_gpus_where_it_is_known(
    toy_data: TrainingData, toy_settings: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_settings()
    config = method_config(settings, toy_data)
    train = [toy_data.train[row] for row in range(40)]
    items = type("Split", (list,), {"input_ids": [[1] * 7, [1] * 11]})(train)
    launch = Launch("torchrun", processes=2)

    def told(deepspeed: object = None, launch: Launch = launch) -> float:
        return mfu_per_speed(settings, config, items, launch, deepspeed)  # type: ignore[arg-type]

    assert told() == 0.0  # no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of tomorrow")
    assert told() == 0.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    frames = {name: round(sum(max(1, len(item[name])) for item in train) / 40) for name in ("audio", "vision")}
    geometry = StepGeometry(8, 9, frames)
    assert typical_step(items, ["audio", "vision"], 8) == geometry
    with torch.device("meta"):
        model = DeepMLFModel(planned_shape("tiny-llama"), config)
    assert told() == pytest.approx(step_flops(model, geometry, False) / (2 * 989e12))
    assert told({"zero_optimization": {"stage": 2}}) == told()
    assert told({"zero_optimization": {"stage": 3}}) == 0.0
    assert told(launch=Launch("torchrun", processes=2, rank=1)) == 0.0
