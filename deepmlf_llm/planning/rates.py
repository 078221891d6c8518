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
_LAUNCH = (3e-6, 4e-6, 12e-6)  # seconds that a process takes to issue one operator; 3.5e-6 to 4e-6 beside an H100
_PACKED = 35  # operators that a product with a 4-bit weight takes as long to issue as; measured beside an H100


def step_seconds(
    flops: float, operators: int, tflops: float, batches: int = 1, recomputes: bool = False, packed_linears: int = 0
) -> Range:
    """Seconds of an optimizer step on one GPU.

    Args:
        flops: of one batch.
        operators: of one batch.
        tflops: peak of the GPU, or a measured rate of its matrix products.
        batches: accumulated.
        recomputes: activations are computed again: a third more.
        packed_linears: layers with 4-bit weights; each is run forward and backward, and once more where it is
            computed again.
    """
    work = flops * (4 / 3 if recomputes else 1)
    operators += _PACKED * packed_linears * (3 if recomputes else 2)
    low, expected, high = (
        batches * max(work / (tflops * 1e12 * used), operators * launch)
        for used, launch in zip(_USED, _LAUNCH, strict=True)
    )
    return Range(low, expected, high)
