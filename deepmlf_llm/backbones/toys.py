"""Randomly initialised toy decoders and a byte-level tokenizer, for tests: they know nothing and need no download."""

from __future__ import annotations

from typing import Any

import torch

TOYS = ("tiny-llama", "tiny-mistral", "tiny-gpt2")
_VOCABULARY = 320
_SIZES = {
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def toy_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A toy causal LM, the same weights for the same ``seed``; ``changes`` go to its config."""
    import transformers

    llama = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "tiny-llama": ("LlamaConfig", "LlamaForCausalLM", {**llama, "num_key_value_heads": 2}),
        "tiny-mistral": ("MistralConfig", "MistralForCausalLM", {**llama, "num_key_value_heads": 2}),
        "tiny-gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 4, "n_head": 4}),
    }
    config_name, model_name, sizes = kinds[name]
    config = getattr(transformers, config_name)(**{**_SIZES, **sizes, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_name)(config)
    model.name_or_path = model.config._name_or_path = name
    return model.eval()


def toy_tokenizer() -> Any:
    """One token per byte, after pad, bos and eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
