"""What fits, how large a batch may be, and what to take: dry steps over layouts, each made once.

A batch's bytes grow nearly in a straight line with its utterances, so two dry steps give the line; what it says fits is
shown by a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from deepmlf_llm.planning.dry_step import DryModel, Step, StepBytes
from deepmlf_llm.planning.memory import Gathered, Layout, Range, memory_rows
from deepmlf_llm.planning.parameters import gathered_weights, parameters_by_part
from deepmlf_llm.planning.resident import Host

_SMALL, _TWICE = 2, 4  # utterances of the two dry steps: of one alone a batch norm is another
_MOST = 4096


@dataclass(frozen=True)
class Choice:
    """One way to run.

    Args:
        layout: of the model.
        quantization: of the frozen base.
        checkpointing: of activations.
    """

    layout: Layout
    quantization: str
    checkpointing: bool

    @property
    def name(self) -> str:
        words = [self.layout.name, *([self.quantization] if self.quantization != "none" else [])]
        return ", ".join([*words, *(["checkpointing"] if self.checkpointing else [])])


@dataclass
class Planner:
    """Plans of one model.

    Args:
        make: a fresh model on the meta device.
        dtype: of the frozen base.
        step: a batch; its utterances, checkpointing and gradients are set here.
        memory: of a GPU, bytes.
        on_gpu: count what CUDA itself takes.
        host: on a CPU: what the process takes beside tensors.
    """

    make: Callable[[], Any]
    dtype: torch.dtype
    step: Step
    memory: float
    on_gpu: bool = True
    host: Host | None = None
    _models: dict[str, tuple[DryModel, int, Gathered]] = field(default_factory=dict)
    _weights: dict[str, int] = field(default_factory=dict)
    _steps: dict[tuple[str, bool, bool, bool, int], StepBytes] = field(default_factory=dict)

    def rows(self, choice: Choice, utterances: int) -> dict[str, Range]:
        """What takes memory with a batch of so many utterances a GPU; estimated from two small batches."""
        small, large = (self._dry(choice, count) for count in (_SMALL, _TWICE))
        grown = (utterances - _SMALL) / (_TWICE - _SMALL)

        def at(name: str) -> int:
            one, two = getattr(small, name), getattr(large, name)
            return max(0, round(one + (two - one) * grown))

        return self._memory(choice, replace(small, peak=at("peak"), batch=at("batch"), text=at("text")))

    def checked(self, choice: Choice, utterances: int) -> dict[str, Range]:
        """The same from a dry step of that size."""
        return self._memory(choice, self._dry(choice, utterances))

    def largest_batch(self, choice: Choice) -> int:
        """Most utterances a GPU whose high estimate fits, shown by a dry step; 0: not one."""
        low, high = 0, _MOST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(self.rows(choice, middle)) else (low, middle - 1)
        while low > 0 and not self._fits(self.checked(choice, low)):
            low = low * 9 // 10
        return low

    def step_bytes(self, choice: Choice, utterances: int) -> StepBytes:
        """Of a dry step."""
        return self._dry(choice, utterances)

    def holds(self, choice: Choice, utterances: int) -> bool:
        """Whether the high estimate of a batch fits."""
        return self._fits(self.rows(choice, utterances))

    def weights(self, choice: Choice) -> float:
        """Bytes of weights on one GPU, without a dry step."""
        if choice.layout.offload_weights:
            return 0.0
        share = choice.layout.processes if choice.layout.stage >= 3 else 1
        return self._weights_of(choice.quantization) / share

    def _weights_of(self, quantization: str) -> int:
        if quantization not in self._weights:
            parts = parameters_by_part(self.make(), self.dtype, quantization)
            self._weights[quantization] = sum(part.size for part in parts)
        return self._weights[quantization]

    def _fits(self, rows: dict[str, Range]) -> bool:
        return rows["total"].high <= self.memory

    def _memory(self, choice: Choice, step: StepBytes) -> dict[str, Range]:
        _, width, gathered = self._model(choice.quantization)
        rows = memory_rows(step, choice.layout, width, gathered, self.on_gpu, one_memory=not self.on_gpu)
        return rows if self.host is None else self.host.rows(rows, choice.quantization)

    def _model(self, quantization: str) -> tuple[DryModel, int, Gathered]:
        if quantization not in self._models:
            model = self.make()
            decoder = model.fused_decoder.decoder
            gathered = gathered_weights(model, self.dtype, quantization)
            self._models[quantization] = DryModel(model, self.dtype, quantization), decoder.width, gathered
        return self._models[quantization]

    def _dry(self, choice: Choice, utterances: int) -> StepBytes:
        step = replace(
            self.step,
            utterances=utterances,
            checkpointing=choice.checkpointing,
            drops_gradients=choice.layout.stage >= 2,
            keeps_inputs=choice.layout.stage >= 3,
        )
        key = (choice.quantization, choice.checkpointing, step.drops_gradients, step.keeps_inputs, utterances)
        if key not in self._steps:
            self._steps[key] = self._model(choice.quantization)[0].run(step)
        return self._steps[key]


def choices(
    processes: int,
    quantization: str,
    checkpointing: bool,
    whole: bool,
    layout: Layout | None = None,
    packs: bool = True,
) -> Iterator[Choice]:
    """From the fastest to the one that takes least.

    Args:
        processes: one a GPU.
        quantization: asked for; with "none" 4 bits are tried too, where the run ``packs``.
        checkpointing: asked for; else tried without and with.
        whole: the run needs whole weights in each process, so ZeRO-3 is left out.
        layout: asked for; default: those that are worth a try.
        packs: the run takes a base in 4 bits.
    """
    kinds = [quantization] if quantization != "none" or not packs else ["none", "nf4"]
    kept = [True] if checkpointing else [False, True]
    layouts = [layout] if layout else [Layout(1)] if processes == 1 else [Layout(processes), Layout(processes, 2)]
    if not whole and layout is None:
        layouts += [*([Layout(processes, 3)] if processes > 1 else []), Layout(processes, 3, True, True)]
    for each in layouts:
        yield from (Choice(each, kind, recomputes) for kind in kinds for recomputes in kept)


def recommend(planner: Planner, among: list[Choice], utterances: int) -> tuple[Choice | None, int, str]:
    """The first choice that holds a whole batch, else the one that holds most: choice, utterances a GPU, and why.

    Args:
        planner: of the model.
        among: see :func:`choices`.
        utterances: wanted a GPU and batch.
    """
    best: tuple[Choice | None, int] = (None, 0)
    refused: list[str] = []
    for choice in among:
        if planner.weights(choice) > planner.memory or not planner.holds(choice, 1):
            refused.append(choice.name)
            continue
        largest = planner.largest_batch(choice)
        if largest >= utterances:
            why = "holds a whole batch" + (f"; {len(refused)} faster layouts do not" if refused else ", and is fastest")
            return choice, utterances, why
        refused.append(choice.name)
        if largest > best[1]:
            best = choice, largest
    found, largest = best
    if found is None:
        return None, 0, "nothing fits: take more GPUs, GPUs with more memory, or a smaller base model"
    return found, largest, f"holds most of a batch ({largest} of {utterances}); accumulate the rest"
