"""Which names a modality may have: it becomes a keyword of ``forward``, a part of tensor names and a key of files."""

from __future__ import annotations

import keyword

from torch import nn

MASK = "_mask"  # of a modality: the keyword of its mask
# Keywords of transformers' and PEFT's forward, and of the batch; keys of a file of utterances.
RESERVED = frozenset({
    "adapter_names", "args", "attention_mask", "cache", "cache_position", "case", "cls", "config", "context",
    "fusion_state", "head_labels", "id", "input_ids", "inputs_embeds", "kwargs", "label", "label_ids", "labels",
    "logits_to_keep", "loss", "loss_counts", "none", "num_items_in_batch", "num_logits_to_keep", "output_attentions",
    "output_hidden_states", "past_key_values", "polarity", "position_ids", "return_dict", "return_loss", "self",
    "split", "task_ids", "text", "text_state", "token_type_ids", "unimodal_labels", "use_cache",
})  # fmt: skip
_TAKEN = nn.ModuleDict()  # encoders are entries of one: an attribute of it cannot name an entry


def name_problem(name: str) -> str:
    """Why ``name`` cannot name a modality, as the end of a sentence; empty where it can."""
    if not name.isidentifier():
        return "expected an identifier: letters, digits and _, not a digit first"
    if keyword.iskeyword(name):
        return "a keyword of Python"
    if name in RESERVED:
        return "a word of the batch or of the model's forward"
    if name.endswith(MASK):
        return f"names that end in {MASK} are those of masks"
    if name.startswith("_") or hasattr(_TAKEN, name):
        return "an attribute of the module that would hold its encoder"
    if "lora_" in name or name in ("default", "base_layer", "modules_to_save"):
        return "PEFT reads it as a part of its own tensor names"
    return ""
