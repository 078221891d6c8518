"""docs/adapter-format.md lists every tensor of an adapter with its shape, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepmlf_llm.adapters.compatibility import adapter_tensors
from tests.families import MODALITIES, tiny_family, tiny_model

PREFIX = "base_model.deepmlf."
CASES = {
    "llama": {"feature_norm": "batch"},
    "gpt2": {"ffw_weights": "copy", "head_norm": "layer"},
    "phi3": {
        "fusion_token_init": "lm",
        "objective": {"lambda_polarity": 0.05, "lambda_prototypes": 0.1},
        "readout_layers": "mix",
        "num_outputs": 1,
        "unimodal_targets": ["A", "V"],
    },
    "mistral": {"token_topology": "segregated", "mixing_head": {"width": 10, "num_heads": 2, "ffw_width": 14}},
}


@pytest.fixture(scope="module")
def listed(repository: Path) -> dict[str, str]:
    """Pattern of a key -> its shape, from the page's table."""
    text = (repository / "docs" / "adapter-format.md").read_text(encoding="utf-8")
    found = {}
    for module, tensors in re.findall(r"^\| `([\w.<>]+)` \| (`\w+` [^|]+) \|", text, flags=re.M):
        for name, shape in re.findall(r"`(\w+)` ([^,`|]+)", tensors):
            found[f"{module}.{name}"] = shape.strip()
    return found


def adapter_of(family: str):
    given = dict(CASES[family])
    av_encoder = {"width": 12, "num_layers": 2, "num_heads": 3, "ffw_width": 16, "max_frames": 5}
    av_encoder |= {"feature_norm": given.pop("feature_norm", "none")}
    given = {"num_outputs": 2, **given}
    return tiny_model(tiny_family(family), av_encoder=av_encoder, gca_heads=2, gca_head_width=7, **given)


def general(key: str) -> tuple[str, str, str]:
    """A key as the page writes it; its modality and role."""
    holders = "encoders|norms|modalities"
    modality = next((name for name in MODALITIES if re.search(rf"\.({holders})\.{name}\.", key)), "")
    role = next((role for role in ("gate", "up", "down") if re.search(rf"\.(ffw_lora|own)\.{role}\.", key)), "")
    if modality:
        key = re.sub(rf"\.({holders})\.{modality}\.", r".\1.<modality>.", key)
    if role:
        key = re.sub(rf"\.(ffw_lora|own)\.{role}\.", r".\1.<role>.", key)
    key = re.sub(r"^mm_blocks\.\d+", "mm_blocks.<layer>", key)
    return re.sub(r"\.layers\.\d+", ".layers.<i>", key), modality, role


def sizes(shape: str, modality: str, role: str, family: str) -> list[int]:
    """The numbers of ``"2bhe x c"`` for a tiny model."""
    inner = 48 if family != "gpt2" else 128
    rows = {"up": 2 * inner if family == "phi3" else inner, "gate": inner, "down": 32}
    widths = {"up": 32, "gate": 32, "down": inner}
    known = {
        **{"d": 32, "n": 3, "b": 2, "h": 2, "e": 7, "r": 4, "m": 2, "c": 12, "a": 16, "w": 8, "u": 10, "v": 14},
        **{"k": 7, "q": 2, "o": CASES[family].get("num_outputs", 2)},
        **{"f": MODALITIES[modality]["dim"] if modality else 0, "out": rows.get(role), "in": widths.get(role)},
    }

    def term(text: str) -> int:
        if text in known:
            return known[text]
        number, letters = re.fullmatch(r"(\d*)([a-z]*)", text).groups()
        product = int(number or 1)
        for letter in letters:
            product *= known[letter]
        return product

    return [] if shape == "scalar" else [sum(map(term, size.split("+"))) for size in shape.split(" x ")]


def test_every_tensor_is_listed_with_its_shape(listed):
    seen = set()
    for family in CASES:
        tensors = {k.removeprefix(PREFIX): t for k, t in adapter_tensors(adapter_of(family), "default").items()}
        for key, tensor in tensors.items():
            pattern, modality, role = general(key)
            assert pattern in listed, key
            shape = listed[pattern]
            if family == "mistral" and pattern == "heads.task.1.weight":
                assert shape == "w x 2d+c"
                shape = "w x u+d+c"  # as the page says beside it
            assert list(tensor.shape) == sizes(shape, modality, role, family), key
            seen.add(pattern)
    assert seen == set(listed)
