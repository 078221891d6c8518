"""Memory of one GPU, by what takes it: low, expected, high.

What a step makes comes from a dry step (:mod:`~deepmlf_llm.planning.dry_step`). What an engine splits follows from its
rules: ZeRO (arXiv 1910.02054, section 5) splits over N processes the optimizer's state (1), and gradients (2), and
weights (3), the frozen ones included. Weights that are trained are fp32, and AdamW keeps two numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmlf_llm.planning.dry_step import StepBytes

GIB = 2**30
_CONTEXT = (0.35, 0.55, 0.9)  # GiB: CUDA's own, kernels, cuBLAS workspaces
_NCCL = (0.1, 0.3, 0.7)  # GiB: buffers of collectives, where there are several processes
_CACHING = (1.0, 1.03, 1.12)  # blocks of PyTorch's allocator over the bytes of its tensors
_MOST_LIVE = 1_000_000_000  # bytes of weights that are read again before DeepSpeed's stage3_max_reuse_distance


@dataclass(frozen=True)
class Layout:
    """How a model lies on GPUs.

    Args:
        processes: one a GPU.
        stage: of ZeRO; 0: plain data parallelism (DDP).
        offload_optimizer, offload_weights: to the CPU (or NVMe).
    """

    processes: int
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def name(self) -> str:
        """As ``--ds`` names it."""
        if self.stage == 0:
            return "one GPU" if self.processes == 1 else "DDP"
        return f"zero{self.stage}" + ("_offload" if self.offload_optimizer or self.offload_weights else "")


@dataclass(frozen=True)
class Range:
    """Bytes: at best, as expected, at worst."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, size: float) -> Range:
        return cls(size, size, size)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)


@dataclass(frozen=True)
class Gathered:
    """Weights that ZeRO-3 makes whole, bytes.

    Args:
        table: the input embeddings. A step reads them first, when nothing of it is there.
        module: the most that one module has, of those that run later.
        layers: all layers of the LM.
        stays: what a step reads again is kept: where every pass runs the whole LM, so that its modules come in an
            order that DeepSpeed knows from the step before. Else each goes as its module has run.
    """

    table: int
    module: int
    layers: int
    stays: bool = False

    def beside(self, step: StepBytes, copies: float) -> Range:
        """A step, at once; ``copies`` of a weight are there while it is gathered."""
        again, largest = min(self.layers, _MOST_LIVE), max(self.table, self.module)
        early = max(copies * self.table, again) - step.peak  # the text has been read, and nothing else
        likely = max(early, (again if self.stays else 0) + copies * self.module)
        return Range(self.module, likely, max(likely, min(step.weights, 4 * largest + 2 * _MOST_LIVE)))


def memory_rows(
    step: StepBytes, layout: Layout, width: int, gathered: Gathered, context: bool = True, one_memory: bool = False
) -> dict[str, Range]:
    """What takes memory on one GPU -> how much, and "total".

    Args:
        step: of a dry step; under ZeRO 2 and 3 of one whose gradients go as they come.
        layout: of the model.
        width: d of the LM; buckets hold d^2 elements unless a file says otherwise.
        gathered: what ZeRO-3 makes whole.
        context: count CUDA's own memory and its allocator's blocks.
        one_memory: a CPU computes, so what is offloaded to it is in the same memory, once more where it is used; and
            gloo gathers a weight in memory of its own, from a copy of this process's share, and then copies it.
    """
    n, stage, trained = layout.processes, layout.stage, step.trained
    share = n if stage >= 3 else 1
    rows = {"weights": Range.exactly(step.weights / share if one_memory or not layout.offload_weights else 0)}
    if stage >= 3:
        whole = n == 1 and one_memory
        rows["gathered weights"] = Range.exactly(0) if whole else gathered.beside(step, 2 + 1 / n if one_memory else 1)
    states = 2 * trained if stage == 0 else 3 * trained / n  # ZeRO keeps its share of the weights once more
    away = layout.offload_optimizer and not one_memory
    rows["optimizer"] = Range.exactly(0 if away else states)
    if stage >= 2:
        rows["gradients"] = Range.exactly(0 if away else trained / n)
    if layout.offload_optimizer and one_memory:
        rows["offload buffers"] = Range.exactly(trained / n + 2 * step.largest)
    bucket = min(trained, 4 * width**2)
    if stage >= 1:
        rows["buckets"] = Range(bucket, bucket + min(trained, bucket), 2 * bucket + trained)
    elif n > 1:
        rows["buckets"] = Range(trained, trained, trained)
    rows["batch"] = Range.exactly(step.batch)
    rows["step"] = Range(step.peak, step.peak, 1.05 * step.peak)
    held = sum(rows.values(), Range.exactly(0))
    if context:
        rows["allocator"] = Range(*(getattr(held, k) * (c - 1) for k, c in zip(held.__dict__, _CACHING, strict=True)))
        rows["CUDA context"] = Range(*(c * GIB for c in _CONTEXT))
        if n > 1:
            rows["NCCL"] = Range(*(c * GIB for c in _NCCL))
    return {**rows, "total": sum(rows.values(), Range.exactly(0))}
