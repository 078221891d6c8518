"""Whether LoRA on the LM can be folded into its weights."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from deepmlf_llm.backbones import is_quantized
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError


def check_mergeable(lm: Any, adapter: str, config: DeepMLFConfig) -> None:
    """Whether what is merged would predict what the adapter does.

    Args:
        lm: the causal LM under the adapter, with PEFT's layers in it.
        adapter: its name.
        config: of it.

    Raises:
        ConfigError: the LM is quantized, and sums of 4-bit weights do not fit 4 bits; or its head is its embeddings,
            and what is folded into one changes the other.
    """
    if is_quantized(lm):
        raise ConfigError(
            "a quantized base cannot be merged into: load the adapter on base.dequantize() (same outputs) or on "
            "the 16-bit original, then merge (deepmlf merge --base dequantized|16bit)"
        )
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    if _base_weight(head) is not _base_weight(embeddings):
        return
    if adapter in getattr(head, "lora_A", ()):
        adapted = "the LM's head, which is its embeddings, too"
    elif adapter in getattr(embeddings, "lora_embedding_A", ()) and config.readout != "heads":
        adapted = f"the embeddings, which are also the head that readout={config.readout!r} reads"
    else:
        return
    raise ConfigError(
        f"cannot merge: LoRA is on {adapted} (tied weights), so a merged model would predict something else; use the "
        "adapter as it is, or train one without it (exclude_modules)"
    )


def _base_weight(module: Any) -> Any:
    """Of an embedding or a linear layer, LoRA on it or not."""
    return (module.get_base_layer() if isinstance(module, BaseTunerLayer) else module).weight
