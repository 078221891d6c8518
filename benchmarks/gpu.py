"""The same comparison on one CUDA device, up to LLaMA-70B's geometry, against what the device can do.

Weights are random where only size matters (LLaMA 1B, 8B, 70B), so nothing is downloaded. A variant's line says samples
and real tokens a second, peak memory, and MFU: the floating-point operations that the method needs, over those that the
device's own bf16 matmul, measured in the same run, would have done in that time (see :func:`needed_flops`).

    python benchmarks/gpu.py [--cases smollm2-135m:bfloat16:32 llama-70b:nf4:8] [--output FILE.json]
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Clock, environment, operations, print_markdown, summary, write_json
from published_layout import PublishedLoop, blocks_after
from torch import nn
from variants import VARIANTS, OurLoop
from workload import TRAINING_SPLIT, Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import keep_weights_in_place, load_base_model, load_tokenizer
from deepmlf_llm.backbones.packing import VARLEN, varlen_kernel
from deepmlf_llm.backbones.quantization import quantization_config
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available
from deepmlf_llm.commands.shell import RecipeParser, run_recipe
from deepmlf_llm.errors import ConfigError

_LLAMA = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
_SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
LLAMAS: dict[str, dict[str, Any]] = {
    SMOLLM2: {**_SMALL, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "llama-1b": {**_LLAMA, **_1B, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "llama-8b": {**_LLAMA, **_8B, "num_key_value_heads": 8},
    "llama-70b": {**_LLAMA, **_70B, "num_key_value_heads": 8},
}
CASES = (f"{SMOLLM2}:bfloat16:32", "llama-1b:bfloat16:32", "llama-8b:nf4:8", "llama-8b:bfloat16:64", "llama-70b:nf4:8")


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
    for module in list(lm.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            # Norm weights are the only vectors.
            values = values.fill_(1.0) if values.dim() == 1 else values.normal_(std=0.02)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        if kind == "nf4":
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and child is not lm.lm_head:
                    setattr(module, name, _nf4(child, dtype, device))
    lm.tie_weights()
    lm.model.rotary_emb = type(lm.model.rotary_emb)(config=lm.config).to(device)  # its tables are no parameters
    if kind == "nf4":
        lm.config.quantization_config = quantization_config("nf4", dtype)
        keep_weights_in_place(lm)
    return lm.eval().requires_grad_(False)


def _nf4(linear: nn.Linear, dtype: torch.dtype, device: str) -> nn.Module:
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    values = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=device).normal_(std=0.02)
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
    if name == "joint":
        backward += 2 * layer * (count - below) * text
    in_blocks = tokens + (text if name == "joint" else 0)
    blocks = len(layers) * (in_blocks * (2 * 2 * 3 * d * ffw + 3 * 2 * low_rank) + tokens * 3 * 2 * 2 * d * inner)
    return float(forward + backward + blocks)


def ceilings(device: str, size: int = 8192, repeats: int = 20) -> dict[str, float]:
    """What this device does at best, measured now: bf16 matmul (FLOP/s) and copying (bytes/s read and written)."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    source = torch.empty(size * size * 4, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matmul, copy = Clock(), Clock()
    for timed in (False, True):
        with matmul if timed else Clock():
            for _ in range(repeats):
                torch.mm(a, a, out=out)
        with copy if timed else Clock():
            for _ in range(repeats):
                target.copy_(source)
    return {
        "matmul_flops": 2 * size**3 * repeats / matmul.seconds[0],
        "copy_bytes": 2 * source.numel() * repeats / copy.seconds[0],
    }


class Case:
    """One base model, one batch size: all variants on the same batches.

    Args:
        spec: ``model:kind:batch``, e.g. ``"llama-8b:nf4:8"``.
        device: where.
        batches: of an epoch's length-grouped batches, how many.

    Raises:
        ConfigError: no such model, kind or batch.
    """

    def __init__(self, spec: str, device: str, batches: int = 5, geometry: Geometry | None = None) -> None:
        name, kind, batch = (*spec.split(":"), "", "")[:3]
        if name not in LLAMAS or kind not in ("nf4", "bfloat16", "float32") or not batch.isdigit() or int(batch) < 2:
            known = ", ".join(LLAMAS)
            raise ConfigError(
                f"--cases {spec!r}: expected MODEL:KIND:BATCH, models {known}, kinds nf4, bfloat16, float32"
            )
        self.name, self.kind, self.batch, self.device = name, kind, int(batch), device
        self.geometry = geometry or Geometry()
        self.tokenizer = load_tokenizer(SMOLLM2 if smollm2_available() else "tiny-llama")
        drawn = with_token_ids(make_utterances(TRAINING_SPLIT, self.geometry), self.tokenizer, self.geometry.max_tokens)
        epoch = grouped(drawn, self.batch)
        self.batches, self.longest = representative(epoch, batches), epoch[-1]

    def base(self) -> Any:
        if self.name == SMOLLM2 and self.kind != "nf4" and smollm2_available():
            lm = load_base_model(SMOLLM2, dtype=self.kind).to(self.device)
        else:
            lm = random_llama(LLAMAS[self.name], self.kind, self.device)
        if varlen_kernel() is not None and self.kind != "float32":
            lm.set_attn_implementation(VARLEN)  # rows that come padded, as the yardstick's, go to sdpa all the same
        return lm

    def loop(self, variant: str) -> Any:
        if variant == "yardstick":
            utterances = [utterance for batch in self.batches for utterance in batch]
            return PublishedLoop(self.base(), self.tokenizer, utterances, self.geometry, self.batch)
        batches = [*self.batches, self.longest]
        return OurLoop(self.base(), self.tokenizer, batches, self.geometry, *VARIANTS[variant])

    def measure(self, variant: str, rounds: int, peak_flops: float) -> dict[str, Any]:
        """One variant's figures: ``rounds`` passes over the batches; the peak is of the epoch's longest batch too."""
        torch.cuda.reset_peak_memory_stats()
        loop = self.loop(variant)
        if variant == "yardstick":
            once, per_pass, one_step = loop.step, self.batch, loop.step
        else:
            once, per_pass = partial(loop.epoch, len(self.batches)), self.batch * len(self.batches)
            one_step = partial(loop.step, len(self.batches) // 2)
            loop.step(-1)
        clock = Clock()
        for timed in (False, *[True] * rounds):
            with clock if timed else Clock():
                once()
        samples = summary([per_pass / seconds for seconds in clock.seconds])
        utterances = [utterance for batch in self.batches for utterance in batch]
        text = sum(len(utterance["input_ids"]) for utterance in utterances) / len(utterances)
        facts = {"samples_per_second": samples, "peak_bytes": torch.cuda.max_memory_allocated()}
        facts["real_tokens_per_second"] = samples["median"] * (text + 12)
        if variant != "yardstick":
            config, layers = loop.model.config, loop.model.base_model.active_stack.layers
            flops = needed_flops(config, variant, round(text * per_pass), 12 * per_pass, layers, 64)
            facts["mfu"] = flops / per_pass * samples["median"] / peak_flops
        facts["operators"] = operations(one_step)
        return facts


def measure_case(spec: str, rounds: int, peak_flops: float) -> dict[str, Any]:
    """All variants of a case; one that does not fit says so instead of figures. The yardstick has no 4-bit form."""
    case = Case(spec, "cuda")
    result: dict[str, Any] = {"mm_blocks_after": blocks_after(LLAMAS[case.name]["num_hidden_layers"]), "variants": {}}
    for variant in (*(["yardstick"] if case.kind != "nf4" else []), *VARIANTS):
        try:
            result["variants"][variant] = case.measure(variant, rounds, peak_flops)
        except torch.cuda.OutOfMemoryError:
            result["variants"][variant] = {"does_not_fit": True}
        gc.collect()
        torch.cuda.empty_cache()
    return result


def show(result: dict[str, Any]) -> None:
    """The Markdown report."""
    rows = []
    for spec, case in result["cases"].items():
        base = case["variants"].get("yardstick", {}).get("samples_per_second", {}).get("median")
        for variant, facts in case["variants"].items():
            if "does_not_fit" in facts:
                rows.append([spec, variant, "does not fit", "", "", "", ""])
                continue
            rate = facts["samples_per_second"]
            spread = f"{rate['median']:.1f} ({rate['low']:.1f} .. {rate['high']:.1f})"
            ratio = f"{rate['median'] / base:.2f}" if base else "-"
            mfu = f"{facts['mfu']:.0%}" if "mfu" in facts else "-"
            memory = f"{facts['peak_bytes'] / 1e9:.1f}"
            rows.append([spec, variant, spread, ratio, f"{facts['real_tokens_per_second']:.0f}", memory, mfu])
    columns = ["base:kind:batch", "variant", "samples/s", "x yardstick", "real tokens/s", "peak GB", "MFU"]
    print_markdown(columns, rows)
    limits = result["ceilings"]
    matmul, copy = limits["matmul_flops"] / 1e12, limits["copy_bytes"] / 1e9
    print(f"\nCeilings measured in this run: bf16 matmul {matmul:.0f} TFLOP/s, copy {copy:.0f} GB/s.")


def run(cases: Sequence[str], rounds: int, output: Path | None) -> int:
    """Measures and reports; without a CUDA device it says so and does nothing."""
    if not torch.cuda.is_available():
        print("skipped: these benchmarks need a CUDA device, and torch sees none here.")
        return 0
    limits = ceilings("cuda")
    measured = {spec: measure_case(spec, rounds, limits["matmul_flops"]) for spec in cases}
    result = {"cases": measured, "ceilings": limits, "geometry": asdict(Geometry()), "environment": environment()}
    show(result)
    if output:
        write_json(output, result)
    return 0


def main() -> int:
    parser = RecipeParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="MODEL:KIND:BATCH")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each variant")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    return run(args.cases, args.rounds, args.output)


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
