"""Mirrors ``deepmlf_llm/commands/plan.py``."""

from __future__ import annotations

import json

import pytest

from deepmlf_llm.commands import train
from deepmlf_llm.commands.plan import _among, main
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.planning.cpu_rates import CpuRates
from deepmlf_llm.training import planned
from deepmlf_llm.training.settings import RunSettings

TINY = ["--base_model", "tiny-llama", "--fusion_layers", "even:2", "--text_tokens", "20", "--frames", "audio=30x16"]


def test_says_parameters_memory_time_and_what_to_take(capsys):
    main([*TINY, "--gpus", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["gpus"] == 2
    assert found["batch"] == {"a_gpu": 16, "accumulated": 1}
    assert found["recommendation"]["choice"] == "DDP"
    assert found["recommendation"]["utterances"] == 16
    assert found["memory"]["total"]["low"] < found["memory"]["total"]["expected"] < found["memory"]["total"]["high"]
    assert found["largest_batch"] >= 16
    assert found["step"]["seconds"]["expected"] > 0


@pytest.mark.parametrize(
    ("given", "splits", "packs"),
    [
        ({}, True, True),
        ({"ema_decay": 0.98}, False, True),
        ({"average_last": 3}, False, True),
        ({"lm_init": "random"}, False, False),
        ({"ffw_scope": "fusion", "text_cache": "memory"}, False, True),
    ],
)
def test_what_a_run_would_refuse_is_not_recommended(given, splits, packs):
    among = _among(RunSettings.from_dict({"base_model": "tiny-llama", **given}), 2)
    assert any(choice.layout.stage == 3 for choice in among) is splits
    assert any(choice.quantization == "nf4" for choice in among) is packs


@pytest.mark.parametrize("stage", ["zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_a_stage_that_is_asked_for_is_the_one_that_is_planned(stage, capsys):
    main([*TINY, "--gpus", "2", "--ds", stage, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["choice"] == stage
    rows = found["memory"]
    assert (rows["optimizer"]["expected"] == 0) is stage.endswith("offload")
    assert ("gathered weights" in rows) is ("zero3" in stage)
    assert (rows["weights"]["expected"] == 0) is (stage == "zero3_offload")


def test_shows_a_plan_to_people(capsys):
    main([*TINY, "--ffw_scope", "fusion", "--text_cache", "memory", "--readout", "both"])
    said = capsys.readouterr().out
    for word in ("MM Blocks", "CUDA context", "largest batch that fits", "take: one GPU"):
        assert word in said


def test_a_run_is_planned_with_the_lengths_of_its_data(capsys, isolated_cache):
    train.main(["--plan", "--base_model", "tiny-llama", "--fusion_layers", "even:2", "--batch_size", "4"])
    said = capsys.readouterr().out
    assert "tiny-llama on 1 GPU(s)" in said
    assert "take: one GPU" in said
    with pytest.raises(ConfigError, match="--frames audio=9x9: a run has the lengths of its data"):
        train.main(["--plan", "--frames", "audio=9x9"])


@pytest.mark.cpu
def test_a_cpu_is_measured_and_its_process_counted(capsys, monkeypatch):
    rates = CpuRates(1, 1e11, 5e11, 1e10, 1e-5, 1e9, imported=300 << 20, process=350 << 20)
    monkeypatch.setattr(planned, "measure_cpu", lambda: rates)
    main([*TINY, "--gpu", "cpu", "--gpu_memory", "1", "--batch_size", "8", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = found["memory"]
    assert rows["process"]["expected"] == 350 << 20
    assert "CUDA context" not in rows
    assert rows["total"]["expected"] > rows["process"]["expected"] + rows["step"]["expected"]
    assert 0 < found["largest_batch"] < 4096
    slow = CpuRates(**{**rates.as_dict(), "operator": 1e-3})
    monkeypatch.setattr(planned, "measure_cpu", lambda: slow)
    main([*TINY, "--gpu", "cpu", "--batch_size", "8", "--json"])
    slower = json.loads(capsys.readouterr().out)
    assert slower["step"]["seconds"]["expected"] > 20 * found["step"]["seconds"]["expected"]
    assert slower["largest_batch"] > found["largest_batch"]  # the machine's memory, not 1 GiB


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus 0: expected a whole number"),
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpu_memory", "much"], "--gpu_memory much: expected a number"),
        (["--frames", "audio=many"], "--frames audio=many: expected modality=FRAMESxWIDTH"),
        (["--ds", "zero9"], "--ds zero9: cannot be read"),
        (["--fusion_layer", "1"], "fusion_layer"),
    ],
    ids=str,
)
def test_refuses_by_name(words, message):
    with pytest.raises(ConfigError, match=message):
        main([*TINY, *words])
