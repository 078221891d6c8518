"""When a run logs, evaluates and saves: at most one moment a step, so that a checkpoint holds all of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from deepmlf_llm.training.batching import BalancedBatches
from deepmlf_llm.training.callbacks import RunIsOver

_NOTHING = (False, False, False)


class Schedule(TrainerCallback):
    """Tells the batches which epoch begins, and gathers what falls due at a step.

    Trainer acts twice at the last step of an epoch: after the step, then after the epoch, each time in the order log,
    evaluation, checkpoint. A checkpoint of the first time would lack the evaluation of the second. So what falls due
    after such a step waits for the epoch's end. A run that was asked to stop does at its last step what the step alone
    asks for, and saves: the end of its epoch has not come.

    Args:
        batches: of this process.
        accumulated: batches a step.
        began: called when training begins, or goes on.
        seeds_steps: whether the random numbers of a step depend on seed, step and process alone, and not on what came
            before.
    """

    def __init__(
        self, batches: BalancedBatches, accumulated: int, began: Callable[[], None], seeds_steps: bool = True
    ) -> None:
        self.batches, self.began, self.seeds_steps = batches, began, seeds_steps
        self.steps = -(-len(batches) // accumulated)
        self.save_asked = False  # likewise
        self.stop_asked = False  # set by the trainer, on all processes in the same step
        self._waiting = _NOTHING  # log, evaluate, save

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        set_seed(args.seed + args.process_index)  # weights are made with one seed everywhere, dropout is not
        if state.global_step > 0:
            args.eval_on_start = False  # the run started before
        self.began()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise RunIsOver
        self.batches.set_epoch(state.global_step // self.steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seeds_steps:
            set_seed(seed_of_step(args.seed, state.global_step, args.process_index))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.EPOCH:
            control.should_evaluate = True  # what the last steps brought is looked at too
        control.should_training_stop |= self.stop_asked
        if control.should_training_stop or control.should_epoch_stop or self._is_last_of_epoch(state):
            self._waiting = (control.should_log, control.should_evaluate, control.should_save)
            control.should_log = control.should_evaluate = control.should_save = False
            return control
        control = self._close_window(control)
        control.should_save |= self.save_asked  # its window of the log stays open, and nothing is computed otherwise
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.save_asked = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        log, evaluate, save = self._waiting
        self._waiting = _NOTHING
        cut = self.stop_asked and not self._is_last_of_epoch(state) and state.global_step < state.max_steps
        control.should_log = log or (control.should_log and not cut)
        control.should_evaluate = evaluate or (control.should_evaluate and not cut)
        control.should_save = save or (control.should_save and not cut)
        control = self._close_window(control)
        control.should_save |= self.stop_asked or self.save_asked
        return control

    def _is_last_of_epoch(self, state: Any) -> bool:
        return bool(state.global_step % self.steps == 0)

    @staticmethod
    def _close_window(control: Any) -> Any:
        """A window of the log never straddles a scheduled checkpoint."""
        control.should_log |= control.should_save or control.should_evaluate
        return control


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """Of dropout and of all else that a process draws in a step: another one for each, in 32 bits."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
