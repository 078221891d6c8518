"""A GGUF file of a tiny LLaMA with a tokenizer of single bytes, written by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, GROUPS, HIDDEN, LAYERS, POSITIONS = 32, 4, 2, 48, 2, 64
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
KINDS = [2, 3, 3, *[6] * 256, *[1] * (len(VOCABULARY) - 259)]  # unknown, control, bytes, normal
_HEAD = WIDTH // HEADS
_BLOCK = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (_HEAD * GROUPS, WIDTH),
    "attn_v": (_HEAD * GROUPS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}


def write_gguf(
    path: Path, architecture: str = "llama", without: str = "", parts: int = 1, padding: int | None = None
) -> Path:
    """Writes the file; ``without``: names of tensors that hold it are left out; ``padding``: the id of that token."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_vocab_size(len(VOCABULARY))
    if parts > 1:
        writer.add_uint16("split.count", parts)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(VOCABULARY)
    writer.add_token_scores([0.0] * len(VOCABULARY))
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if padding is not None:
        writer.add_pad_token_id(padding)
        writer.add_add_bos_token(False)
    shapes = {"token_embd": (len(VOCABULARY), WIDTH), "output_norm": (WIDTH,), "output": (len(VOCABULARY), WIDTH)}
    for layer in range(LAYERS):
        block = {**_BLOCK, "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        if not without or without not in name:
            values = (random.normal(size=shape) * 0.05 + name.endswith("norm")).astype(np.float32)
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
