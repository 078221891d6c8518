"""`make test DEVICE=...` builds models where it says, and says where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from deepmlf_llm.backbones import loading
from tests import devices
from tests.families import randomise, tiny_batch, tiny_config, tiny_family


def test_models_and_what_they_get_lie_on_the_device():
    with devices.built_on("meta", by_hand=True):
        lm, batch = tiny_family("llama"), tiny_batch()
        assert {p.device.type for p in lm.parameters()} == {"meta"}
        assert {x.device.type for x in batch.values()} == {"meta"}
        assert torch.rand(2, generator=torch.Generator()).is_meta
        assert torch.zeros(2, device="cpu").device.type == "cpu"
        from deepmlf_llm.model.peft_model import DeepMLFModel

        model = randomise(DeepMLFModel(lm, tiny_config()))
        assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.zeros(1).device.type == "cpu"


def test_where_our_code_moves_batches_toys_alone_are_there():
    before = loading.toy_model
    with devices.built_on("meta", by_hand=False):
        assert loading.toy_model("tiny-llama").device.type == "meta"
        assert torch.zeros(1).device.type == "cpu"
    assert loading.toy_model is before


def test_the_suite_is_run_where_it_is_asked_to(device):
    assert device == devices.chosen()
    assert devices.missing("cpu") is None


def test_a_device_that_is_not_there_ends_the_session_in_one_sentence(repository):
    code = (
        "import torch, pytest; torch.cuda.is_available = lambda: False; "
        "raise SystemExit(pytest.main(['tests/test_paths.py', '-q', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={**os.environ, devices.VARIABLE: "cuda"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "DEVICE=cuda: torch" in done.stdout + done.stderr
    assert "leave DEVICE out" in done.stdout + done.stderr
