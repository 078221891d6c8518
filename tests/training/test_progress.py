from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from deepmlf_llm.training import progress as showing
from deepmlf_llm.training.progress import BarProgress, PlainProgress, show_progress


def state(step: int = 0) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, epoch=1.0, is_world_process_zero=True)


def test_plain_progress_is_one_line_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(showing, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(showing, "memory_in_use", lambda: "2.0 GB")
    progress = PlainProgress(seconds=10, utterances=32, mfu_per_speed=20.0)
    progress.on_train_begin(None, state(0), None)
    shown = []
    for second in range(601):
        now = float(second)
        progress.on_log(None, state(5), None, {"loss": 1.25})
        if capsys.readouterr().out:
            shown.append(second)
    assert shown == [10, 20, 40, 80, 140, 200, 260, 320, 380, 440, 500, 560]
    progress.on_log(None, state(5), None, {"eval_mae": 0.5, "eval_corr": 0.75})
    assert capsys.readouterr().out == "step 5/10  epoch 1.00  validation MAE 0.5000  Corr 0.7500\n"
    now = 720.0  # two minutes after that line
    progress.on_step_end(None, state(6), None)
    told = "0.01 steps/s, 0.3 utterances/s, MFU 16.7%, 2.0 GB, at most 8.0 min left"
    assert capsys.readouterr().out == f"step 6/10  epoch 1.00  loss 1.2500  {told}\n"
    progress.mfu_per_speed = 0.0  # not known
    now = 840.0
    progress.on_step_end(None, state(6), None)
    assert "MFU" not in capsys.readouterr().out
    progress.on_log(None, state(6), None, {"train_runtime": 3.0})
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarProgress()
    bar.on_train_begin(None, state(0), None)
    bar.on_step_end(None, state(5), None)
    bar.on_log(None, state(5), None, {"loss": 1.25})
    for _ in range(2):
        bar.on_prediction_step(None, state(5), None, eval_dataloader=range(2))
    bar.on_evaluate(None, state(5), None)
    bar.on_log(None, state(5), None, {"eval_mae": 0.5, "eval_corr": 0.75})
    bar.on_train_end(None, state(10), None)
    out, err = capsys.readouterr()
    assert out == "step 5/10  epoch 1.00  validation MAE 0.5000  Corr 0.7500\n"
    assert "5/10" in err
    assert "loss 1.2500" in err
    assert "evaluating" in err


def test_no_raw_dictionaries() -> None:
    removed: list[Any] = []
    added: list[Any] = []
    trainer = SimpleNamespace(remove_callback=removed.append, add_callback=added.append)
    for bar in (True, False):
        show_progress(trainer, bar)
    assert removed == [PrinterCallback, ProgressCallback] * 2
    assert [type(callback) for callback in added] == [BarProgress, PlainProgress]
