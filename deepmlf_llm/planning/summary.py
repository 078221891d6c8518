"""A plan as text."""

from __future__ import annotations

from typing import Any

from deepmlf_llm.planning.memory import GIB


def shown(found: dict[str, Any]) -> str:
    """For people.

    Args:
        found: what :func:`deepmlf_llm.commands.plan.plan` has found.
    """
    device = found["device"]
    lines = [
        f"{found['base_model']} on {found['gpus']} {device}(s)",
        "",
        "parameters                total        trained      GB",
    ]
    for part in found["parameters"]:
        lines.append(f"  {part['name']:16}{part['total']:>17,}{part['trained']:>15,}{part['size'] / 1e9:>8.2f}")
    if "memory" in found:
        lines += ["", f"GiB of one {device:15}   low  expected      high"]
        for name, part in found["memory"].items():
            sizes = "".join(f"{part[k] / GIB:10.2f}" for k in ("low", "expected", "high"))
            lines.append(f"  {name:22}{sizes}")
        step = found["step"]
        seconds = " / ".join(f"{step['seconds'][k]:.2f}" for k in ("low", "expected", "high"))
        lines += [
            "",
            f"step: {step['flops_a_gpu'] / 1e12:.2f} TFLOP each in {step['batches']} batch(es), {seconds} s",
            f"largest batch that fits: {found['largest_batch']} utterances each",
        ]
    advice = found["recommendation"]
    lines += ["", f"take: {advice['choice'] or 'nothing here'} ({advice['why']})"]
    return "\n".join(lines)
