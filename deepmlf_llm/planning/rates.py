"""How long a step takes: FLOPs over a rate, or the launches of its kernels where these take longer."""

from __future__ import annotations

from deepmlf_llm.planning.memory import Range

PEAK_TFLOPS = {
    "a100": 312,
    "h100": 989,
    "h200": 989,
    "b200": 2250,
    "l40s": 362,
    "a10": 125,
    "rtx4090": 165,
    "mi300x": 1307,
}
"""Dense bf16 TFLOP/s by the makers' data sheets."""

_USED = (0.55, 0.4, 0.2)  # share of the peak that matrices of a training step reach
_LAUNCH = (4e-6, 8e-6, 20e-6)  # seconds that a process takes to issue one operator


def step_seconds(flops: float, operators: int, tflops: float, batches: int = 1, recomputes: bool = False) -> Range:
    """Seconds of an optimizer step on one GPU.

    Args:
        flops: of one batch.
        operators: of one batch.
        tflops: peak of the GPU, or a measured rate of its matrix products.
        batches: accumulated.
        recomputes: activations are computed again: a third more.
    """
    work = flops * (4 / 3 if recomputes else 1)
    low, expected, high = (
        batches * max(work / (tflops * 1e12 * used), operators * launch)
        for used, launch in zip(_USED, _LAUNCH, strict=True)
    )
    return Range(low, expected, high)
