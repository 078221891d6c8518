"""After which LM layers an MM Block sits: the forms a placement may take, and the layers it means in a given LM."""

from __future__ import annotations

import re
from typing import Any

from deepmlf_llm.config.rules import brief, is_integer
from deepmlf_llm.errors import ConfigError

_DEEPEST = 99_999  # no LM has more layers
_FORM = re.compile(r"(last|even|from):([0-9]{1,5})")
_LIST = re.compile(r"\s*[0-9]{1,5}(\s*,\s*[0-9]{1,5})*\s*,?\s*")


def parse_fusion_layers(spec: Any) -> list[int] | str:
    """Normalises a placement: a list of layer indices, or one of the forms ``last:k``, ``even:k``, ``from:i``.

    Raises:
        ConfigError: neither a list of distinct non-negative integers nor such a form.
    """
    if isinstance(spec, str):
        if _LIST.fullmatch(spec):
            spec = [int(part) for part in spec.split(",") if part.strip()]
        elif (form := _FORM.fullmatch(spec)) and (int(form[2]) > 0 or form[1] == "from"):
            return spec
    if is_integer(spec):
        spec = [spec]
    if isinstance(spec, (list, tuple)):
        layers = list(spec)
        good = layers and all(is_integer(i) and 0 <= i <= _DEEPEST for i in layers)
        if good and len(set(layers)) == len(layers):
            return sorted(layers)
    raise ConfigError(
        f"fusion_layers={brief(spec)}: expected a list of distinct layer indices (from 0), 'last:k', 'even:k' or "
        "'from:i'"
    )


def resolve_fusion_layers(spec: list[int] | str, num_layers: int) -> list[int]:
    """The LM layers (0-based, ascending) that an MM Block follows.

    ``even:k`` spaces k blocks evenly with the last layer included: layer ``ceil((j + 1) num_layers / k) - 1``.

    Raises:
        ConfigError: a layer lies outside ``0 .. num_layers - 1``, or more blocks are asked for than there are layers;
            the message says what would fit.
    """
    if isinstance(spec, list):
        outside = [i for i in spec if i >= num_layers]
        if not outside:
            return spec
        inside = [i for i in spec if i < num_layers]
        fits = f"{inside} or 'last:{min(len(spec), num_layers)}'" if inside else f"'last:{min(len(spec), num_layers)}'"
        raise ConfigError(
            f"fusion_layers={brief(spec)}: {brief(outside)} not in 0..{num_layers - 1}, the layers of this LM; {fits} "
            "would fit"
        )
    kind, number = spec.split(":")
    count = int(number)
    if count > num_layers or (kind == "from" and count >= num_layers):
        raise ConfigError(
            f"fusion_layers={spec!r}: this LM has {num_layers} layers (0..{num_layers - 1}); "
            f"'{kind}:{num_layers - 1 if kind == 'from' else num_layers}' would fit"
        )
    if kind == "last":
        return list(range(num_layers - count, num_layers))
    if kind == "from":
        return list(range(count, num_layers))
    return [-(-(j + 1) * num_layers // count) - 1 for j in range(count)]
