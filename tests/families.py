"""Tiny random decoders of every declared family, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch

FAMILY_NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"
)  # fmt: skip
WIDTH, LAYERS, HEADS, VOCABULARY = 32, 4, 4, 96
POLARITIES = ("polarity", "fusion_polarity", "text_polarity", "av_polarity")
WINDOW = 5  # sliding attention shorter than the texts of the tests, where a family has it

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_LIKE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = {**_LLAMA_LIKE, "head_dim": 8}
# Dropout above 0 wherever a family has it: a frozen LM that runs in training mode is then found out.
_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_LLAMA_LIKE, "attention_dropout": 0.2}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_LLAMA_LIKE, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _GEMMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_GEMMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_GEMMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**_LLAMA_LIKE, "resid_pdrop": 0.2}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**_LLAMA_LIKE, "hidden_dropout": 0.2, "attention_dropout": 0.2},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_LLAMA_LIKE, "word_embed_proj_dim": WIDTH, "ffn_dim": 48, "dropout": 0.2},
    ),
}


def tiny_family(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random fp32 causal LM of family ``name``; biases and norm weights are random too, so that none can be dropped
    unseen."""
    import transformers

    config_name, model_name, sizes = _KINDS[name]
    config = getattr(transformers, config_name)(**{**_COMMON, **sizes, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = getattr(transformers, model_name)(config)
        with torch.no_grad():
            for parameter in lm.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.mul_(3.0)  # 0.02 leaves every layer close to the identity
    assert lm.config.model_type == name
    if getattr(config, "attn_logit_softcapping", None) is not None:
        lm.set_attn_implementation("eager")  # the sdpa of transformers 5.17 leaves the cap out
    return lm.eval().requires_grad_(False)


MODALITIES = {"audio": {"dim": 3}, "vision": {"dim": 5}}
LENGTHS = (8, 3, 6)  # real tokens of each row; longer and shorter than WINDOW
FRAMES = {"audio": (7, 0, 2), "vision": (4, 0, 0)}  # one row without anything, one with audio only


def tiny_config(**settings: Any) -> Any:
    """A config for :func:`tiny_family`: two MM Blocks, everything else small."""
    from deepmlf_llm.config.method import DeepMLFConfig

    defaults = {
        "num_fusion_tokens": 3,
        "fusion_layers": [1, 3],
        "ffw_lora_r": 4,
        "modalities": MODALITIES,
        "av_encoder": {"width": 12, "num_layers": 2, "num_heads": 3, "ffw_width": 16, "max_frames": 5},
        "head_width": 8,
        "text": {"max_tokens": 20},
    }
    return DeepMLFConfig(**{**defaults, **settings})


def tiny_model(lm: Any, **settings: Any) -> Any:
    """A DeepMLFModel in eval mode whose every added weight is random: nothing starts at 0 or 1 and hides a fault."""
    from deepmlf_llm.model.peft_model import DeepMLFModel

    torch.manual_seed(1)
    model = DeepMLFModel(lm, tiny_config(**settings))
    return randomise(model)


@torch.no_grad()
def randomise(model: Any) -> Any:
    """Moves gates, LoRA, norms and running statistics away from where they start; eval mode."""
    stack = model.base_model.active_stack
    generator = torch.Generator().manual_seed(2)
    tensors = {**dict(stack.named_parameters()), **dict(stack.named_buffers())}
    own = stack.state_dict()  # the rest is the base's
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name in own:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            tensor.add_(0.3 * (noise.abs() if "running_var" in name else noise))
    return model.eval()


def tiny_batch(side: str = "left", padding: int = 0, **changes: Any) -> dict[str, Any]:
    """Three utterances of different length, with every kind of absence.

    Args:
        side: where text is padded.
        padding: further padded positions and frames.
        changes: replace entries.
    """
    generator = torch.Generator().manual_seed(3)
    length = max(LENGTHS) + padding
    ids, mask = torch.zeros(3, length, dtype=torch.long), torch.zeros(3, length, dtype=torch.long)
    for row, count in enumerate(LENGTHS):
        where = slice(length - count, None) if side == "left" else slice(count)
        ids[row, where] = torch.randint(3, VOCABULARY, (count,), generator=generator)
        mask[row, where] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([1.5, -0.4, 0.2])}
    for name, counts in FRAMES.items():
        frames = torch.zeros(3, max(counts) + padding, MODALITIES[name]["dim"])
        real = torch.arange(frames.shape[1]) < torch.tensor(counts)[:, None]
        for row, count in enumerate(counts):
            frames[row, :count] = torch.randn(count, frames.shape[2], generator=generator)
        batch |= {name: frames, f"{name}_mask": real}
    return {**batch, **changes}


def outputs(model: Any, **batch: Any) -> dict[str, torch.Tensor]:
    """What a model predicts for a batch, without a graph."""
    with torch.no_grad():
        out = model(**batch)
    return {name: getattr(out, name) for name in POLARITIES}


def losses_and_gradients(model: Any, **batch: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and predictions of a training step by name, and the gradient of each trained parameter."""
    out = model(**batch)
    model.zero_grad()
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {**out.losses, **{name: getattr(out, name) for name in POLARITIES}}, gradients
