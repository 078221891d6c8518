"""After which LM layers an MM Block sits: the forms a placement may take, and the layers it means in a given LM."""

from __future__ import annotations

from typing import Any

from deepmlf_llm.errors import ConfigError


def parse_fusion_layers(spec: Any) -> list[int] | str:
    """Normalises a placement: a list of layer indices, or one of the forms ``last:k``, ``even:k``, ``from:i``.

    Raises:
        ConfigError: neither a list of distinct non-negative integers nor such a form.
    """
    if isinstance(spec, str) and spec.replace(",", "").replace(" ", "").isdigit():
        spec = [int(part) for part in spec.split(",") if part.strip()]
    if isinstance(spec, int) and not isinstance(spec, bool):
        spec = [spec]
    if isinstance(spec, str):
        kind, _, number = spec.partition(":")
        if kind in ("last", "even", "from") and number.isdigit() and (int(number) > 0 or kind == "from"):
            return spec
    elif isinstance(spec, (list, tuple)):
        layers = list(spec)
        good = layers and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in layers)
        if good and len(set(layers)) == len(layers):
            return sorted(layers)
    raise ConfigError(
        f"fusion_layers={spec!r}: expected a list of distinct layer indices (from 0), 'last:k', 'even:k' or 'from:i'"
    )


def resolve_fusion_layers(spec: list[int] | str, num_layers: int) -> list[int]:
    """The LM layers (0-based, ascending) that an MM Block follows.

    ``even:k`` spaces k blocks evenly with the last layer included: layer ``ceil((j + 1) num_layers / k) - 1``.

    Raises:
        ConfigError: a layer lies outside ``0 .. num_layers - 1``, or more blocks are asked for than there are layers.
    """
    if isinstance(spec, list):
        outside = [i for i in spec if i >= num_layers]
        if outside:
            raise ConfigError(f"fusion_layers={spec}: {outside} not in 0..{num_layers - 1}, the layers of this LM")
        return spec
    kind, number = spec.split(":")
    count = int(number)
    if count > num_layers or (kind == "from" and count >= num_layers):
        raise ConfigError(f"fusion_layers={spec!r}: this LM has {num_layers} layers (0..{num_layers - 1})")
    if kind == "last":
        return list(range(num_layers - count, num_layers))
    if kind == "from":
        return list(range(count, num_layers))
    return [-(-(j + 1) * num_layers // count) - 1 for j in range(count)]
