"""``run_training``: from settings to a trained adapter and its result, or on from where the same run was cut."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from deepmlf_llm.adapters.card import add_results
from deepmlf_llm.backbones.vocabulary import check_ids, embedding_rows
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.predictions import FILE
from deepmlf_llm.training import launch as launching
from deepmlf_llm.training.assemble import (
    base_of,
    check_batches,
    load_model,
    make_trainer,
    method_config,
    selecting_metric,
)
from deepmlf_llm.training.checkpoints import all_checkpoints, step_of
from deepmlf_llm.training.data import TrainingData, as_read, load_data, training_split
from deepmlf_llm.training.environment import environment, parameter_counts
from deepmlf_llm.training.faults import Fault, Faults, parse_faults
from deepmlf_llm.training.kept_texts import keep_texts, say_size, texts_of
from deepmlf_llm.training.launch import Launch, say
from deepmlf_llm.training.lifetime import carry_out
from deepmlf_llm.training.optimizer_state import holds_optimizer
from deepmlf_llm.training.place import place_of
from deepmlf_llm.training.result import fusion_facts, measured, opening_lines, train_facts
from deepmlf_llm.training.resuming import AUTO as AUTO_RESUME
from deepmlf_llm.training.resuming import agreed_checkpoint, check_resume, is_elsewhere, notes_of, take_checkpoint
from deepmlf_llm.training.run_directory import ADAPTER
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.shared_base import SharedBase
from deepmlf_llm.training.starting import Start, fact_name, find_start, restore, start_of
from deepmlf_llm.training.stopping import RunStopped, StopRequest, keep_talking
from deepmlf_llm.training.trainer_arguments import make_arguments, zero_stage
from deepmlf_llm.training.watch import PeerWatch

STALLED = 0.8  # of a collective operation's timeout, after which the process that stands still is named


def run_training(
    settings: RunSettings,
    data: TrainingData | None = None,
    dry_run: bool = False,
    opened: Callable[[Path], None] | None = None,
    trust_run: bool = False,
    shared: SharedBase | None = None,
    resume: str = AUTO_RESUME,
    faults: str | None = None,
    world: int | None = None,
) -> dict[str, Any]:
    """Trains an adapter, or goes on with the same run; every process of a launcher calls it.

    Args:
        settings: the run's.
        data: the splits; default: what ``settings.data`` names.
        dry_run: load and check everything, say what would be trained, write nothing.
        opened: called with the run's directory by every process, as the training begins.
        trust_run: go on from checkpoints that others than this user could have written; they are read as tensors only
            all the same.
        shared: of the runs of this process, which have the same settings but for the seed and the directory.
        resume: where it goes on from, see :func:`~deepmlf_llm.training.resuming.check_resume`.
        faults: what is simulated, see :mod:`~deepmlf_llm.training.faults`.
        world: of a dry run: plan it for so many processes.

    Returns:
        What ``result.json`` holds: status, config, seed, metrics (validation, test), heads (each modality's own),
        train, data, base_model, environment.

    Raises:
        DeepMLFError: the input is at fault; nothing half-written is left.
        RunStopped: a signal asked for the end; the run has saved where it is, and the same call goes on.
    """

    def begin(launch: Launch, deepspeed: dict[str, Any] | None, stop: StopRequest) -> _Run:
        return _Run(settings, data, launch, deepspeed, opened, stop, trust_run, shared, resume, parse_faults(faults))

    return carry_out(begin, settings, dry_run, world)


class _Run:
    """The steps of one run, in order."""

    product = ADAPTER

    def __init__(
        self,
        settings: RunSettings,
        data: TrainingData | None,
        launch: Launch,
        deepspeed: dict[str, Any] | None,
        opened: Callable[[Path], None] | None,
        stop: StopRequest,
        trust_run: bool = False,
        shared: SharedBase | None = None,
        resume: str = AUTO_RESUME,
        faults: Sequence[Fault] = (),
    ) -> None:
        self.shared, self.resume = shared, resume
        self.faults = Faults(list(faults), launch.rank) if faults else None
        self.launch, self.deepspeed, self.opened = launch, deepspeed, opened
        self.stop, self.trust_run = stop, trust_run
        self.has_stopped_together = False
        self.base_name = self._base(settings)
        self.data = load_data(settings) if data is None else data
        self.train_split = training_split(settings, self.data)
        selecting = selecting_metric(settings, self.data.rules)
        self.settings, self.directory = place_of(
            selecting, self.product, self.base_name, self.data, self.train_split, launch, deepspeed
        )
        self.config = method_config(self.settings, self.data)
        self.start = self._start()
        self.directory.check()
        check_resume(resume, self.directory)

    def _base(self, settings: RunSettings) -> str:
        """Name of the base model."""
        return base_of(settings, self.launch)

    def _start(self) -> Start | None:
        """The weights to begin with; None for fresh ones, and in a run that goes on, which needs no others."""
        goes_on = bool(all_checkpoints(self.directory.path)) or is_elsewhere(self.resume, self.directory)
        goes_on |= self.directory.finished() is not None
        start = find_start(self.settings, needed=not goes_on)
        if start is None:
            return None
        self.directory.facts[fact_name(self.settings)] = start.digest
        for note in start.check(self.config) if not goes_on else ():
            say(note, self.launch)
        return None if goes_on else start

    def result(self) -> dict[str, Any]:
        """Of this run, or of the same run finished before."""
        done = self.directory.finished()
        if done is not None:
            where = shown(self.directory.path)
            say(f"finished before: {where} (another seed or output_dir makes a new run)", self.launch)
            return done
        began = time.monotonic()
        arguments, model, tokenizer, splits = self.load()
        with self.directory.claimed(self.launch.is_main):
            if self.launch.is_main:
                for note in take_checkpoint(self.resume, self.directory, self.trust_run):
                    say(note, self.launch)
            launching.wait_for_everyone()
            own = (self.settings, self.config, arguments, model, tokenizer, splits)
            watch = PeerWatch(self.launch, STALLED * arguments.ddp_timeout)
            trainer = make_trainer(*own, self.launch, self.directory, self.stop, watch, self.faults)
            self.describe(model, arguments)
            if self.settings.text_cache != "none":
                model.to(arguments.device)
                keep_texts(model, splits, self.launch)
            if self.opened is not None:
                self.opened(self.directory.path)
            output = self.train(trainer)
            with watch.watching():
                result = self.conclude(trainer, splits, output, began)
            if self.launch.is_main:
                self.directory.write_result(result)
                trainer.drop_averaged()
            launching.wait_for_everyone()
        if self.shared is not None:
            self.shared.take_back(model)
        return result

    def plan(self) -> dict[str, Any]:
        """What the run would be."""
        arguments, model, _, splits = self.load()
        if not (all_checkpoints(self.directory.path) or is_elsewhere(self.resume, self.directory)):
            self.begin_with(model)
        self.describe(model, arguments)
        steps = self.settings.planned_steps(len(splits["train"]), self.launch.processes)
        say(f"{steps.total} steps, {steps.per_epoch} an epoch, {arguments.warmup_steps:g} of warm-up", self.launch)
        check_batches(splits["train"], self.settings, arguments, self.launch)
        held = 0
        if self.settings.text_cache != "none":
            held = say_size(model, texts_of(splits), self.launch)
        facts = {"steps": steps.total, "parameters": parameter_counts(model), "text_cache_bytes": held}
        return {"status": "planned", "config": self.settings.to_dict(), "train": facts}

    def load(self) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Arguments, model, tokenizer, splits: all that can be refused, before anything is written."""
        size = len(self.train_split)  # type: ignore[arg-type]
        arguments = make_arguments(self.settings, self.directory.path, self.launch.processes, size, self.deepspeed)
        launching.start_process_group(self.deepspeed is not None)
        settings = self.settings.changed(dtype=self.directory.facts["dtype"])
        model, tokenizer = load_model(settings, self.base_name, self.config, arguments, self.deepspeed, self.shared)
        splits = self.tokenise(tokenizer)
        for name, split in splits.items():
            check_ids(split.input_ids, embedding_rows(model.get_base_model()), tokenizer, name)
        return arguments, model, tokenizer, splits

    def tokenise(self, tokenizer: Any) -> dict[str, Any]:
        """The three splits with token ids."""
        parts = {"train": self.train_split, "valid": self.data.valid, "test": self.data.test}
        splits = {name: as_read(part, name, tokenizer, self.config) for name, part in parts.items()}
        cut = [f"{s.truncated} of {len(s)} in {name}" for name, s in splits.items() if s.truncated]
        if cut:
            say(f"transcripts cut at {self.config.text.max_tokens} tokens: {', '.join(cut)}", self.launch)
        return splits

    def describe(self, model: Any, arguments: Any) -> None:
        """What is about to be trained, in a few lines."""
        say(opening_lines(model, arguments, self.launch, self.directory.path, self._step_size()), self.launch)

    def _step_size(self) -> int:
        return self.settings.step_size(self.launch.processes)

    def _worlds(self) -> dict[str, Any]:
        """In what worlds the run trained, where there was more than one."""
        return {"worlds": self.directory.worlds} if len(self.directory.worlds) > 1 else {}

    def begin_with(self, model: Any) -> None:
        """The weights to begin with; not in a run that goes on, whose checkpoint has them further on."""
        start = self.start or start_of(self.settings)  # no checkpoint of the run was whole
        for note in start.put_into(model) if start is not None else ():
            say(note, self.launch)

    def train(self, trainer: Any) -> Any:
        """From the newest whole checkpoint, where there is one.

        Raises:
            RunStopped: a signal asked for the end.
        """
        checkpoint, notes = agreed_checkpoint(self.directory, self.trust_run, self.launch)
        for note in notes:
            say(note, self.launch)
        if checkpoint is not None:
            say(f"going on from {checkpoint.name}", self.launch)
            for note in notes_of(self.directory.changed, self.settings):
                say(note, self.launch)
            restore(trainer.model, checkpoint, whole=self.deepspeed is not None and holds_optimizer(checkpoint))
        else:
            self.begin_with(trainer.model)
        if self.launch.is_main:
            world = {"processes": self.launch.processes, "zero_stage": zero_stage(self.deepspeed)}
            self.directory.enter_world(0 if checkpoint is None else step_of(checkpoint) or 0, **world)
        faulty = nullcontext() if self.faults is None else self.faults.of_writes()
        with self.stop.graceful():
            with faulty, trainer.watch.watching():
                output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                stops = trainer.stops()
                if stops:
                    keep_talking()
                    trainer.save_where_it_is()
            if stops:  # said in here: as it ends, graceful() answers a signal without a word
                self.has_stopped_together = True
                say(f"stopped at step {trainer.state.global_step}: the same command goes on from there", self.launch)
                raise RunStopped(self.stop.number or signal.SIGTERM)
        return output

    def conclude(self, trainer: Any, splits: dict[str, Any], output: Any, began: float) -> dict[str, Any]:
        """The best adapter, its metrics on validation and, this once, on test; written out."""
        from deepmlf_llm.training.scores import score, write_beside

        validation, selection = self.selected(trainer, splits["valid"])
        test = score(trainer, splits["test"], "test", self.config.dataset)
        self.save(trainer)
        used = {name: {"utterances": len(split), "truncated": split.truncated} for name, split in splits.items()}
        result = {
            "status": "finished",
            "config": self.settings.to_dict(),
            "seed": trainer.args.seed,
            **measured(validation, test),
            **({} if selection is None else {"selection": selection}),
            "train": train_facts(trainer, output, began, self.launch, self._step_size()) | self._worlds(),
            "data": {**self.data.facts, "used": used},
            "environment": environment(),
        }
        self.complete(result, trainer.model)
        if self.launch.is_main:
            self.directory.publish_adapter()
            for note in write_beside(self.directory.path, (validation, test), test, FILE):
                say(note, self.launch)
        return result

    def selected(self, trainer: Any, validation: Any) -> tuple[Any, dict[str, Any] | None]:
        """Puts the best weights into the model: their score on validation, and how they were chosen."""
        from deepmlf_llm.training.selection import select

        return select(trainer, validation, self.config.dataset, self.launch)

    def save(self, trainer: Any) -> None:
        """What was trained, written aside."""
        trainer.save_model(str(self.directory.adapter_aside))

    def complete(self, result: dict[str, Any], model: Any) -> None:
        """What a result says of fusion and of the base; the adapter's card with it."""
        result["train"] |= fusion_facts(model)
        result["base_model"] = {"name": self.base_name, **(model.deepmlf_config.base_fingerprint or {})}
        if self.launch.is_main:
            add_results(self.directory.adapter_aside, result)
