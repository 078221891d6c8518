"""What a run shows of its progress: plain lines, or a bar on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from deepmlf_llm.training.launch import pause

_EVALUATION = "eval_"
MINUTE = 60.0  # seconds


def show_progress(trainer: Any, bar: bool, utterances: int = 0, mfu_per_speed: Callable[[], float] = float) -> None:
    """Ours in the place of the Trainer's own, which prints raw dictionaries; ``utterances`` are those of a step.
    ``mfu_per_speed`` is asked where lines are shown (:func:`~deepmlf_llm.training.utilization.mfu_per_speed`)."""
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    shown = BarProgress() if bar else PlainProgress(utterances=utterances, mfu_per_speed=mfu_per_speed())
    trainer.add_callback(shown)


class PlainProgress(TrainerCallback):
    """Progress where there is no terminal: a line an evaluation, and between them one now and then
    (:func:`~deepmlf_llm.training.launch.pause`), at least ``seconds`` and at most about a minute apart.

    Args:
        seconds: at least between two lines.
        utterances: of a step.
        mfu_per_speed: model FLOPs utilization at one step a second; 0: not known.
    """

    def __init__(self, seconds: float = 30.0, utterances: int = 0, mfu_per_speed: float = 0.0) -> None:
        self.seconds, self.utterances, self.mfu_per_speed = seconds, utterances, mfu_per_speed
        self._loss: float | None = None
        self._last = 0.0
        self._began = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step
        self._last = self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        self._loss = logs.get("loss", self._loss)
        line = evaluation_line(logs)
        if line is not None:
            self._last = time.monotonic()
            print(f"{where(state)}  {line}", flush=True)
        elif "loss" in logs:
            self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._tell(state)

    def _tell(self, state: Any) -> None:
        """A line, where the last one is long enough ago."""
        now = time.monotonic()
        if now - self._last < pause(now - self._began, self.seconds, MINUTE):
            return
        self._last = now
        loss = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        print("  ".join([where(state), *loss, self._left(state, now)]).rstrip(), flush=True)

    def _left(self, state: Any, now: float) -> str:
        done = state.global_step - self._first_step
        if done <= 0:
            return ""
        speed = done / (now - self._began)
        parts = [f"{speed:.2f} steps/s"] + ([f"{speed * self.utterances:.1f} utterances/s"] if self.utterances else [])
        parts += [f"MFU {speed * self.mfu_per_speed:.1%}"] if self.mfu_per_speed else []
        left = (state.max_steps - state.global_step) / speed
        return ", ".join([*parts, memory_in_use(), f"at most {left / 60:.1f} min left"])


def memory_in_use() -> str:
    """Of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU"
    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"


class BarProgress(TrainerCallback):
    """Progress on a terminal: a bar of the steps, a short one below it while a split is evaluated, and a line an
    evaluation."""

    def __init__(self) -> None:
        self._steps: Any = None
        self._batches: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._steps = tqdm(total=state.max_steps, initial=state.global_step, desc="training", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._steps is not None:
            self._steps.update(state.global_step - self._steps.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._steps is None or logs is None:
            return
        line = evaluation_line(logs)
        if line is not None:
            self._steps.write(f"{where(state)}  {line}")
        elif "loss" in logs:
            self._steps.set_postfix_str(f"loss {logs['loss']:.4f}")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or eval_dataloader is None:
            return
        if self._batches is None:
            self._batches = tqdm(total=len(eval_dataloader), desc="evaluating", leave=False, dynamic_ncols=True)
        self._batches.update(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def where(state: Any) -> str:
    """``step 10/40  epoch 1.00``."""
    return f"step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.2f}"


def evaluation_line(logs: dict[str, Any]) -> str | None:
    """What an evaluation found; None for any other entry of the log."""
    if f"{_EVALUATION}f1_weighted" in logs:
        shares = {"F1 weighted": "f1_weighted", "macro": "f1_macro", "accuracy": "acc"}
        return "validation " + "  ".join(f"{shown} {logs[_EVALUATION + name]:.4f}" for shown, name in shares.items())
    if f"{_EVALUATION}mae" not in logs:
        return None
    corr = logs.get(f"{_EVALUATION}corr", math.nan)
    return f"validation MAE {logs[f'{_EVALUATION}mae']:.4f}  Corr {corr:.4f}"
