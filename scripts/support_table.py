"""Writes docs/support.md: every declared decoder family, and what is seen to work on a tiny random model of it.

python scripts/support_table.py            # writes the file
python scripts/support_table.py --check    # fails if the file says something else
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from deepmlf_llm.backbones import Decoder, keep_weights_in_place  # noqa: E402
from deepmlf_llm.config.method import DeepMLFConfig  # noqa: E402
from deepmlf_llm.model.peft_model import DeepMLFModel  # noqa: E402
from deepmlf_llm.modules import FeedForward  # noqa: E402
from tests.families import FAMILY_NAMES, VOCABULARY, tiny_family  # noqa: E402

TARGET = REPOSITORY / "docs" / "support.md"
HEADER = """# Decoder families and what works with each

Made by `python scripts/support_table.py`, which tries each of these on a tiny random model of the family on CPU; a test
holds this page to it. Quantized bases (bitsandbytes) need `nn.Linear` layers: GPT-2's Conv1D layers stay in 16 bits.

| family | {columns} |
|---|{rule}
{rows}

- **FFW shared, copied**: the MM Block's FFW computes what the LM's FFW computes, before training.
- **gates shut**: the injected decoder is the base model, bit for bit (the probe at every injection).
- **text once**: the text apart, without a graph, gives the same polarities as everything at once, both scopes.
- **trains**: every trainable parameter gets a gradient. **save, load**: bit for bit. **LM LoRA**, **merge**: to 1e-5.
- **nf4**: the base in 4 bits trains.
"""


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(2, 14).reshape(2, 6) % VOCABULARY
    return {"input_ids": ids, "audio": torch.linspace(-1, 1, 2 * 3 * 4).reshape(2, 3, 4), "labels": torch.ones(2)}


def model(lm: Any, **changes: Any) -> DeepMLFModel:
    torch.manual_seed(0)
    return DeepMLFModel(lm, DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 4}}, **changes)).eval()


def ffw(name: str, weights: str) -> bool:
    decoder = Decoder(tiny_family(name))
    parts = decoder.ffw_parts(1)
    x = torch.randn(2, 3, decoder.width)
    hidden = parts.up(x)
    if parts.fused_gate:
        gate, up = hidden.chunk(2, dim=-1)
        hidden = parts.activation(gate) * up
    elif parts.gate is not None:
        hidden = parts.activation(parts.gate(x)) * hidden
    else:
        hidden = parts.activation(hidden)
    expected = parts.down(hidden)
    expected = expected if parts.post_norm is None else parts.post_norm(expected)
    return torch.allclose(FeedForward(parts, weights)(x), expected, atol=1e-6)


def gates_shut(name: str) -> bool:
    model(tiny_family(name))  # the probe raises otherwise
    return True


def text_once(name: str) -> bool:
    same = []
    for scope in ("joint", "fusion"):
        one = model(tiny_family(name), ffw_scope=scope)
        apart = one(**batch()).polarity
        one.fused_decoder.text_once = False
        same.append(torch.allclose(apart, one(**batch()).polarity, atol=1e-5))
    return all(same)


def all_get_gradients(one: DeepMLFModel) -> bool:
    one.train()
    one(**batch()).loss.backward()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in one.parameters() if p.requires_grad)


def save_load(name: str) -> bool:
    one = model(tiny_family(name))
    with tempfile.TemporaryDirectory() as directory:
        one.save_pretrained(directory)
        other = DeepMLFModel.from_pretrained(directory, base=tiny_family(name))
    return torch.equal(one(**batch()).polarity, other(**batch()).polarity)


def lm_lora(name: str) -> bool:
    return all_get_gradients(model(tiny_family(name), r=2, target_modules="all-linear"))


def merge(name: str) -> bool:
    one = model(tiny_family(name), r=2, target_modules="all-linear")
    before = one(**batch()).polarity
    return torch.allclose(one.merge_and_unload()(**batch()).polarity, before, atol=1e-5)


def nf4(name: str) -> bool:
    from deepmlf_llm.backbones.loading import load_base_model

    with tempfile.TemporaryDirectory() as directory:
        tiny_family(name).save_pretrained(directory)
        lm = load_base_model(directory, quantization="nf4")
    keep_weights_in_place(lm)
    return all_get_gradients(model(lm))


FEATURES: dict[str, Callable[[str], bool]] = {
    "FFW shared": lambda name: ffw(name, "shared"),
    "FFW copied": lambda name: ffw(name, "copy"),
    "gates shut": gates_shut,
    "text once": text_once,
    "trains": lambda name: all_get_gradients(model(tiny_family(name))),
    "save, load": save_load,
    "LM LoRA": lm_lora,
    "merge": merge,
    "nf4": nf4,
}


def table() -> str:
    rows = []
    for name in FAMILY_NAMES:
        cells = ["yes" if works(name) else "no" for works in FEATURES.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return HEADER.format(columns=" | ".join(FEATURES), rule="---|" * len(FEATURES), rows="\n".join(rows))


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return 0
    made = table()
    if "--check" in arguments:
        return 0 if TARGET.read_text() == made else 1
    TARGET.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
