from __future__ import annotations

import time

import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training import launch as launching
from deepmlf_llm.training.launch import Launch, detect, errors_reported_once, prepare_environment, progress_bar, say

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "DS_ACCELERATOR")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def test_launchers_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect() == Launch("python", 0, 0, 1)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert detect() == Launch("deepspeed", 3, 1, 4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert detect().launcher == "torchrun"
    assert not detect().is_main


def test_plain_python_under_deepspeed_stands_for_a_launcher_of_one() -> None:
    prepare_environment(detect(), with_deepspeed=True)
    found = detect()
    assert (found.rank, found.local_rank, found.processes) == (0, 0, 1)
    import os

    assert 1024 <= int(os.environ["MASTER_PORT"]) < 65536


def test_the_op_that_needs_a_compiler_is_off_on_cpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("on CUDA DeepSpeed does not use it")
    prepare_environment(detect(), with_deepspeed=True)
    import deepspeed.ops

    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_without_deepspeed_nothing_is_set() -> None:
    import os

    prepare_environment(detect(), with_deepspeed=False)
    assert "RANK" not in os.environ


def test_one_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say("hello", Launch("torchrun", rank=1, processes=2))
    say("hello", Launch("torchrun", rank=0, processes=2))
    assert capsys.readouterr().out == "hello\n"
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for rank, expected in (("0", 0), ("1", 1)):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError), errors_reported_once():
            raise ConfigError("x")
        assert len(waits) == expected


def test_progress_in_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launching, "on_terminal", lambda: False)
    with progress_bar(5, "texts", Launch("python"), seconds=0) as advance:
        assert advance is not None
        advance(2)
        advance(3)
    assert capsys.readouterr().out == "texts: 2 of 5\ntexts: 5 of 5\n"
    with progress_bar(5, "texts", Launch("torchrun", rank=1, processes=2)) as nothing:
        assert nothing is None
