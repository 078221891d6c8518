"""Cases of on_gpu.py: decoders up to LLaMA-70B's geometry, every variant on the same batches, MFU and its method.

Weights are random where only size matters (LLaMA 1B, 8B, 70B), so nothing is downloaded. MFU: the floating-point
operations that the method needs (:func:`needed_flops`) over those that the device's own bf16 matmul, measured in the
same run, would have done in that time.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from measuring import Clock, operations, summary
from published_layout import PublishedLoop, blocks_after
from torch import nn
from variants import VARIANTS, OurLoop
from workload import Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import keep_weights_in_place, load_base_model, load_tokenizer
from deepmlf_llm.backbones.packing import VARLEN, varlen_kernel
from deepmlf_llm.backbones.quantization import quantization_config
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available
from deepmlf_llm.errors import ConfigError

_LLAMA = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
_SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
_TINY = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMAS: dict[str, dict[str, Any]] = {
    "tiny": {**_TINY, "num_key_value_heads": 2, "vocab_size": 320},
    SMOLLM2: {**_SMALL, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "llama-1b": {**_LLAMA, **_1B, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "llama-8b": {**_LLAMA, **_8B, "num_key_value_heads": 8},
    "llama-70b": {**_LLAMA, **_70B, "num_key_value_heads": 8},
}
MEASURED = ("yardstick", "joint", "fusion", "fusion_cached", "cached_best")


@torch.no_grad()
def random_llama(sizes: Mapping[str, Any], kind: str, device: str) -> Any:
    """A LLaMA decoder with random weights, made layer by layer on ``device``: never whole in a wider dtype.

    Args:
        sizes: of its ``LlamaConfig``.
        kind: ``"nf4"`` (projections of the layers; the rest bf16) or a dtype, ``"bfloat16"`` or ``"float32"``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if kind == "nf4" else getattr(torch, kind)
    with torch.device("meta"):
        lm = LlamaForCausalLM(LlamaConfig(**sizes, dtype=dtype)).to(dtype)
    to_pack = set()
    if kind == "nf4":
        to_pack = {child for child in lm.modules() if isinstance(child, nn.Linear) and child is not lm.lm_head}
    for module in list(lm.modules()):
        if module in to_pack:  # its place has been taken: with weights of its own it would fill the device
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            # Norm weights are the only vectors.
            values = values.fill_(1.0) if values.dim() == 1 else values.normal_(std=0.02)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        for name, child in module.named_children():
            if child in to_pack:
                setattr(module, name, random_linear(child.in_features, child.out_features, dtype, device))
    lm.tie_weights()
    lm.model.rotary_emb = type(lm.model.rotary_emb)(config=lm.config).to(device)  # its tables are no parameters
    if kind == "nf4":
        lm.config.quantization_config = quantization_config("nf4", dtype)
        keep_weights_in_place(lm)
    return lm.eval().requires_grad_(False)


def random_linear(width: int, out: int, dtype: torch.dtype, device: str) -> Any:
    """A layer of bitsandbytes, nf4, that computes in ``dtype``."""
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(width, out, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    values = torch.empty(out, width, dtype=dtype, device=device).normal_(std=0.02)
    packed.weight = bnb.nn.Params4bit(values, requires_grad=False, quant_type="nf4", module=packed).to(device)
    return packed


def needed_flops(config: Any, name: str, text: int, tokens: int, layers: Sequence[int], rank: int) -> float:
    """Floating-point operations of the LM's and the MM Blocks' matmuls that one training step needs.

    A multiply and an add count two, forward one pass, backward one for the gradient of a frozen weight's input and two
    where a weight trains. Not counted: padding, recomputation, attention maps, norms, the AV encoder, heads and the
    optimizer (together under 2 % at 1B and above).

    Args:
        config: of the LM.
        name: of a variant.
        text, tokens: real text tokens and fusion tokens in the batch.
        layers: LM layers that MM Blocks follow.
        rank: of the FFW's LoRA.
    """
    d, ffw = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or d // config.num_attention_heads
    inner, narrow = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = d * (2 * inner + 2 * narrow) + 3 * d * ffw
    low_rank = 3 * rank * (d + ffw)
    _, cached, settings, blocks = VARIANTS[name]
    layers = layers[:blocks]
    count, below = layers[-1] + 1 if settings.get("truncate_lm") else config.num_hidden_layers, layers[0] + 1
    apart = settings.get("fusion_entry") or settings.get("freeze_fusion_tokens")  # nothing runs below the first block
    forward = 2 * layer * ((count - (below if apart else 0)) * tokens + (0 if cached else count * text))
    backward = 2 * layer * (count - (below if apart else 0)) * tokens
    joint = VARIANTS[name][0] == "joint"
    if joint:
        backward += 2 * layer * (count - below) * text
    if settings.get("objective"):  # the LM's loss: logits of the text, and the gradient that comes back from them
        backward += 2 * 2 * d * config.vocab_size * text
    in_blocks = tokens + (text if joint else 0)
    blocks = len(layers) * (in_blocks * (2 * 2 * 3 * d * ffw + 3 * 2 * low_rank) + tokens * 3 * 2 * 2 * d * inner)
    return float(forward + backward + blocks)


class Case:
    """One base model, one batch size: variants on the same base and the same batches.

    Args:
        spec: ``model[@layers]:kind:batch``, e.g. ``"llama-8b:nf4:8"``; ``@layers`` takes the lowest ones only, of a
            model that does not fit whole.
        device: where.
        batches: of an epoch's length-grouped batches, how many.
        utterances: of the epoch.

    Raises:
        ConfigError: no such model, kind or batch.
    """

    def __init__(self, spec: str, device: str, batches: int = 3, utterances: int = 320) -> None:
        named, kind, batch = (*spec.split(":"), "", "")[:3]
        name, _, layers = named.partition("@")
        if name not in LLAMAS or kind not in ("nf4", "bfloat16", "float32") or not batch.isdigit() or int(batch) < 2:
            known = ", ".join(LLAMAS)
            raise ConfigError(
                f"case {spec!r}: expected MODEL[@LAYERS]:KIND:BATCH, models {known}, kinds nf4, bfloat16, float32"
            )
        self.name, self.kind, self.batch, self.device = name, kind, int(batch), device
        self.sizes = {**LLAMAS[name], **({"num_hidden_layers": int(layers)} if layers else {})}
        self.share = self.sizes["num_hidden_layers"] / LLAMAS[name]["num_hidden_layers"]
        self.geometry = Geometry()
        self.tokenizer = load_tokenizer(SMOLLM2 if smollm2_available() and name != "tiny" else "tiny-llama")
        drawn = with_token_ids(make_utterances(utterances, self.geometry), self.tokenizer, self.geometry.max_tokens)
        epoch = grouped(drawn, self.batch)
        self.batches, self.longest = representative(epoch, min(batches, len(epoch))), epoch[-1]

    def base(self) -> Any:
        if self.name == SMOLLM2 and self.kind != "nf4" and smollm2_available():
            lm = load_base_model(SMOLLM2, dtype=self.kind).to(self.device)
        else:
            lm = random_llama(self.sizes, self.kind, self.device)
        if varlen_kernel() is not None and self.kind != "float32" and self.device != "cpu":
            lm.set_attn_implementation(VARLEN)  # rows that come padded, as the yardstick's, go to sdpa all the same
        return lm

    def measure(self, lm: Any, variant: str, rounds: int, peak_flops: float | None) -> dict[str, Any]:
        """One variant's figures: ``rounds`` passes over the batches; the peak is of the epoch's longest batch too."""
        on_cuda = self.device != "cpu"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        utterances = [utterance for batch in self.batches for utterance in batch]
        if variant == "yardstick":
            loop: Any = PublishedLoop(lm, self.tokenizer, utterances, self.geometry, self.batch)
            once, per_pass, one_step = loop.step, self.batch, loop.step
        else:
            loop = OurLoop(lm, self.tokenizer, [*self.batches, self.longest], self.geometry, *VARIANTS[variant])
            once, per_pass = partial(loop.epoch, len(self.batches)), len(utterances)
            one_step = partial(loop.step, len(self.batches) // 2)
            loop.step(-1)
        clock = Clock()
        for timed in (False, *[True] * rounds):
            with clock if timed else Clock():
                once()
        samples = summary([per_pass / seconds for seconds in clock.seconds])
        text = sum(len(utterance["input_ids"]) for utterance in utterances) / len(utterances)
        facts: dict[str, Any] = {"samples_per_second": samples}
        facts["real_tokens_per_second"] = samples["median"] * (text + 12)
        facts |= {"peak_bytes": torch.cuda.max_memory_allocated()} if on_cuda else {}
        if variant != "yardstick" and peak_flops:
            config, layers = lm.config, loop.model.active_stack.layers
            flops = needed_flops(config, variant, round(text * per_pass), 12 * per_pass, layers, 64)
            facts["mfu"] = flops / per_pass * samples["median"] / peak_flops
        facts["operators"] = operations(one_step)
        if variant != "yardstick":
            loop.model.eject()
        return facts


def measure_case(
    spec: str, device: str, rounds: int = 3, peak_flops: float | None = None, variants: Sequence[str] = MEASURED
) -> dict[str, Any]:
    """Variants of a case; one that does not fit says so instead of figures. The yardstick has no 4-bit form."""
    case = Case(spec, device)
    lm = case.base()
    result: dict[str, Any] = {"mm_blocks_after": blocks_after(lm.config.num_hidden_layers), "variants": {}}
    if case.share < 1:
        layers, all_layers = lm.config.num_hidden_layers, LLAMAS[case.name]["num_hidden_layers"]
        result["scaled"] = (
            f"{layers} of {all_layers} layers ran; of all of them expect {case.share:.3f} of the samples/s"
        )
    for variant in variants if case.kind != "nf4" else variants[1:]:
        try:
            result["variants"][variant] = case.measure(lm, variant, rounds, peak_flops)
        except torch.OutOfMemoryError:
            result["variants"][variant] = {"does_not_fit": True}
            lm = None  # with whatever hooks the variant has left in it
            gc.collect()
            torch.cuda.empty_cache()
            lm = case.base()
        gc.collect()
    return result
