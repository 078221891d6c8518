"""Checkpoints of a trainer: trainable weights only, all that happened at their step, and never half of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.gradients import average_running_statistics
from deepmlf_llm.training.launch import wait_for_everyone
from deepmlf_llm.training.losses import LossWindow
from deepmlf_llm.training.trusted import tensors_only


class CheckpointingTrainer(Trainer):
    """Writes whole checkpoints and reads them again.

    Args:
        keep_checkpoints: beside the best one; None keeps all.
        others: as in ``transformers.Trainer``.
    """

    window: LossWindow

    def __init__(self, *args: Any, keep_checkpoints: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_checkpoints = keep_checkpoints
        self._saved: tuple[int, int] | None = None  # step and length of the log at the newest checkpoint

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A new best model is always saved, whatever the saving schedule says."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = True
        return is_best

    def load_best(self) -> None:
        """Puts the weights of the best evaluation into the model.

        Raises:
            RunError: no evaluation gave a value to select by.
        """
        if self.state.best_global_step is None:
            raise RunError(
                f"no evaluation gave a value of {self.args.metric_for_best_model}: the predictions are constant"
            )
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best)
        with tensors_only(best):
            self._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        this = (self.state.global_step, len(self.state.log_history))
        if self._saved in (None, this) and checkpoints.flaw(directory) is None:
            return  # the schedule and a new best asked for the same one
        average_running_statistics(self.model)
        if self.args.should_save:
            checkpoints.remove(directory)
        wait_for_everyone()
        with checkpoints.being_written(directory, checkpoint_bytes(model)):
            super()._save_checkpoint(model, trial)
            write_aside(directory / self._window_file, json.dumps(self._window_state()))
            wait_for_everyone()
            if self.args.should_save:
                checkpoints.commit(directory, {"step": self.state.global_step, "processes": self.args.world_size})
        if self.args.should_save:
            checkpoints.prune(directory.parent, self.keep_checkpoints, self.state.best_global_step, this[0])
        self._saved = this
        wait_for_everyone()

    def save_where_it_is(self) -> None:
        """After training: a checkpoint of the last step, where there is none."""
        if self._saved is None or self._saved[0] != self.state.global_step:
            self._save_checkpoint(self.model, None)

    @property
    def _window_file(self) -> str:
        return f"log_window_{self.args.process_index}.json"

    def _window_state(self) -> dict[str, Any]:
        """The steps since the last line of the log, so that stopping between two lines changes neither."""
        return {"logged": self._globalstep_last_logged, "loss": float(self._tr_loss), **self.window.state()}

    def _restore_window(self) -> None:
        """At the beginning of a resumed run; checkpoints of earlier versions have no such file, nor an open window."""
        file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / self._window_file
        if self.state.global_step == 0 or not file.is_file():
            return
        stored = json.loads(file.read_text())
        self._globalstep_last_logged = stored["logged"]
        self._tr_loss += stored["loss"]
        self.window.load(stored)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter only: no tokenizer, no pickled arguments."""
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)


def checkpoint_bytes(model: nn.Module) -> int:
    """About what a checkpoint takes up: the trained weights in fp32, and the two moments that Adam keeps of each."""
    trained = (p for p in model.parameters() if p.requires_grad)
    return 3 * 4 * sum(getattr(p, "ds_numel", p.numel()) for p in trained)
