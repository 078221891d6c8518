"""Checkpoints of a trainer: trainable weights only, all that happened at their step, and never half of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from deepmlf_llm.adapters import files
from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.training import checkpoints, optimizer_state
from deepmlf_llm.training.averaging import MovingAverage, trained_tensors
from deepmlf_llm.training.callbacks import AfterEachStep
from deepmlf_llm.training.faults import Faults
from deepmlf_llm.training.finite import FiniteSteps
from deepmlf_llm.training.launch import wait_for_everyone
from deepmlf_llm.training.losses import LossWindow, mean_window
from deepmlf_llm.training.trusted import tensors_only


class CheckpointingTrainer(Trainer):
    """Writes whole checkpoints and reads them again.

    Args:
        keep_checkpoints: beside the best one; None keeps all.
        average_last: evaluations whose weights are averaged at the end, each of which is saved and kept until then.
        ema_decay: of an exponential moving average of the trained weights; 0: none is made.
        faults: what is simulated.
        others: as in ``transformers.Trainer``.
    """

    window: LossWindow
    finite: FiniteSteps

    def __init__(
        self,
        *args: Any,
        keep_checkpoints: int | None = None,
        average_last: int = 0,
        ema_decay: float = 0.0,
        faults: Faults | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.keep_checkpoints = keep_checkpoints
        self.faults = faults
        if faults is not None:
            self.add_callback(faults)
        self.average_last = average_last
        self.ema = MovingAverage(ema_decay) if ema_decay else None
        if self.ema is not None:
            self.add_callback(AfterEachStep(self._update_ema))
        self._saved: tuple[int, int] | None = None  # step and length of the log at the newest checkpoint
        self._frozen: dict[str, Tensor] = {}  # of the adapter, whole, while it is saved

    def _update_ema(self) -> None:
        if self.ema is not None:
            self.ema.update(trained_tensors(self.model))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A new best model is always saved, whatever the saving schedule says, and so is one that may be averaged."""
        self.control.should_save |= self.average_last > 0
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = True
        return is_best

    def averaged_steps(self) -> list[int]:
        """Steps of the last evaluations, as many as are to be averaged. From the log: a run that was cut and went on
        has the same."""
        metric = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        steps = [line["step"] for line in self.state.log_history if metric in line and line["step"] > 0]
        return steps[-self.average_last :] if self.average_last else []

    def drop_averaged(self) -> None:
        """After the end of the run: the checkpoints that were kept for the average alone go."""
        if self.average_last:
            checkpoints.prune(Path(self.args.output_dir), self.keep_checkpoints, self.state.best_global_step)

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
            if self.is_deepspeed_enabled:
                put_weights(self.model, files.read_adapter(best)[1])
            else:
                self._load_best_model()

    # ---- the optimizer's state, whole ----

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups in the optimizer's order, by the weights of the model."""
        raise NotImplementedError

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under DeepSpeed as without it: one whole state, so that any number of processes can go on from it."""
        if not self.is_deepspeed_enabled or not optimizer_state.can_gather(self.deepspeed):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state.gather(self.deepspeed, self.optimizer_groups())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / optimizer_state.FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As in Trainer; DeepSpeed's own way of loading is left out where the checkpoint has the whole state."""
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if checkpoint is None or not self.is_deepspeed_enabled or not optimizer_state.holds_optimizer(checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        optimizer_state.scatter(self.deepspeed, self.optimizer_groups(), optimizer_state.read(checkpoint))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        this = (self.state.global_step, len(self.state.log_history))
        if self._saved in (None, this) and checkpoints.flaw(directory) is None:
            return  # the schedule and a new best asked for the same one
        if self.args.should_save:
            checkpoints.remove(directory)
        wait_for_everyone()
        with checkpoints.being_written(directory, checkpoint_bytes(model)):
            super()._save_checkpoint(model, trial)
            if self.faults is not None:
                self.faults.check_room(self.state.global_step)
            write_aside(directory / self._window_file, json.dumps(self._window_state()))
            if self.ema is not None and self.args.should_save:
                self.ema.save(directory)
            wait_for_everyone()
            if self.args.should_save:
                checkpoints.commit(directory, {"step": self.state.global_step, "processes": self.args.world_size})
        if self.args.should_save:
            also = self.averaged_steps()
            checkpoints.prune(directory.parent, self.keep_checkpoints, self.state.best_global_step, this[0], also)
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
        state = {"logged": self._globalstep_last_logged, "loss": float(self._tr_loss), **self.window.state()}
        return {**state, "skipped": self.finite.skipped}

    def _restore(self) -> None:
        """At the beginning of a resumed run, what Trainer does not know: the moving average and the open window of the
        log. Checkpoints of earlier versions have no such window, nor its file."""
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.ema is not None and self.state.global_step > 0:
            self.ema.load(directory, trained_tensors(self.model))
        windows = [json.loads(file.read_text()) for file in sorted(directory.glob("log_window_*.json"))]
        if self.state.global_step == 0 or not windows:
            return
        if len(windows) == self.args.world_size:
            windows = [json.loads((directory / self._window_file).read_text())]
        self._globalstep_last_logged = windows[0]["logged"]
        self.finite.skipped = windows[0].get("skipped", 0)
        self._tr_loss += sum(window["loss"] for window in windows) / len(windows)
        self.window.load(mean_window(windows))

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, which under ZeRO-3 gathers trained weights only; every process calls it."""
        self._frozen = frozen_shards(self.model)
        super().save_model(*args, **kwargs)
        self._frozen = {}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter only: no tokenizer, no pickled arguments."""
        if self.args.should_save:
            if state_dict is not None:
                state_dict = {**self._frozen, **state_dict}
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)


def put_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives the weights of the adapter these values, on every process, however an engine has split them.

    Args:
        model: a :class:`~deepmlf_llm.model.DeepMLFModel`.
        tensors: by the keys of an adapter's file.
    """
    members = trained_tensors(model)
    split = [tensor for tensor in members.values() if hasattr(tensor, "ds_id")]
    with gathered(split, write=True), torch.no_grad():
        for name, tensor in members.items():
            tensor.copy_(tensors[name])


@contextmanager
def gathered(parameters: list[Any], write: bool = False) -> Iterator[None]:
    """Inside, weights that ZeRO-3 has split are whole; with ``write`` what the first process sets counts for all."""
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
        yield


def frozen_shards(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the adapter that are not trained (a frozen AV encoder), whole, where ZeRO-3 has split them."""
    parameters = dict(model.named_parameters())
    split = {n: p for n, p in parameters.items() if ".deepmlf." in n and not p.requires_grad and hasattr(p, "ds_id")}
    if not split:
        return {}
    with gathered(list(split.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in split.items()}


def checkpoint_bytes(model: nn.Module) -> int:
    """About what a checkpoint takes up: the trained weights in fp32, and the two moments that Adam keeps of each."""
    trained = (p for p in model.parameters() if p.requires_grad)
    return 3 * 4 * sum(getattr(p, "ds_numel", p.numel()) for p in trained)
