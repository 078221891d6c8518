"""How fast a trained model answers: latency of one utterance, throughput of many, for texts new to it and met before.

What is timed is :meth:`SentimentPredictor.predict`, from strings and raw features to predictions. Texts have MOSI's
lengths. "Met before": the same transcripts with other features, whose text stream the predictor has kept (not with
LoRA on the LM).

    python benchmarks/inference.py [--output FILE.json] [--base_model smollm2-135m] [--variants fp32 bf16 ...] [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Clock, environment, print_machine, print_markdown, summary, use_threads, write_json
from variants import make_config
from workload import Geometry, make_utterances

from deepmlf_llm import DeepMLFModel
from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import RecipeParser, run_recipe
from deepmlf_llm.inference.predictor import SentimentPredictor


@dataclass(frozen=True)
class Variant:
    """A model to ask: how its base is loaded, whether the LM has LoRA, whether all is merged."""

    dtype: str = "float32"
    quantization: str = "none"
    lm_lora: bool = False
    merged: bool = False


VARIANTS = {
    "fp32": Variant(),
    "bf16": Variant("bfloat16"),
    "nf4": Variant(quantization="nf4"),
    "fp32, LM LoRA": Variant(lm_lora=True),
    "fp32, LM LoRA, merged": Variant(lm_lora=True, merged=True),
}


def make_model(variant: Variant, base_model: str, geometry: Geometry) -> Any:
    """As after training, but for the values of its weights, on which no time depends."""
    lm = load_base_model(base_model, quantization=variant.quantization, dtype=variant.dtype)
    lora = {"r": 16, "target_modules": ["q_proj", "v_proj"]} if variant.lm_lora else {}
    config = make_config(lm, geometry, "fusion", **lora)
    model = DeepMLFModel(lm, config)
    model = model.merge_and_unload() if variant.merged else model
    return model.cuda() if torch.cuda.is_available() and variant.quantization == "none" else model


def measure(
    model: Any, tokenizer: Any, utterances: Sequence[dict[str, Any]], singles: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of single utterances and utterances a second in batches of 32, text new and met before."""
    one, many = SentimentPredictor(model, tokenizer, batch_size=1), SentimentPredictor(model, tokenizer, batch_size=32)
    random = np.random.default_rng(1)
    ask(many, utterances[:32])
    latency, passes = {"new": Clock(), "met": Clock()}, {"new": Clock(), "met": Clock()}
    for utterance in utterances[:singles]:
        forget(model)
        with latency["new"]:
            ask(one, [utterance])
        other = other_take(utterance, random)
        with latency["met"]:
            ask(one, [other])
    for _ in range(rounds):
        forget(model)
        with passes["new"]:
            ask(many, utterances)
        others = [other_take(utterance, random) for utterance in utterances]
        with passes["met"]:
            ask(many, others)
    return {
        "latency_ms": {text: percentiles(clock.seconds) for text, clock in latency.items()},
        "utterances_per_second": {
            text: summary([len(utterances) / seconds for seconds in clock.seconds]) for text, clock in passes.items()
        },
    }


def ask(predictor: SentimentPredictor, utterances: Sequence[dict[str, Any]]) -> None:
    features = {name: [u[name] for u in utterances] for name in predictor.config.modalities}
    predictor.predict([u["text"] for u in utterances], **features)


def forget(model: Any) -> None:
    """Drops the text that is kept."""
    if not model.deepmlf_config.has_lm_lora:
        model.enable_text_cache("memory", fusion_tokens=True)


def other_take(utterance: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """The same words with other features."""
    return {
        name: random.standard_normal(value.shape, dtype=np.float32) if isinstance(value, np.ndarray) else value
        for name, value in utterance.items()
    }


def percentiles(values: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile of seconds, in milliseconds."""
    middle, high = np.percentile(values, [50, 95]) * 1e3
    return {"median": float(middle), "p95": float(high), "n": len(values)}


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, facts in result["variants"].items():
        latency, rate = facts["latency_ms"], facts["utterances_per_second"]
        cells = [f"{latency[text]['median']:.0f} / {latency[text]['p95']:.0f}" for text in ("new", "met")]
        rows.append([name, *cells, *(f"{rate[text]['median']:.1f}" for text in ("new", "met"))])
    columns = [
        "model",
        "one utterance, ms (median / p95)",
        "text met before",
        "utterances/s, batches of 32",
        "text met before",
    ]
    print_markdown(columns, rows)
    print_machine(result["environment"])


def main() -> None:
    parser = RecipeParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--base_model", help="a LLaMA-class base model; default: smollm2-135m (--quick: tiny-llama)")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="what is measured"
    )
    parser.add_argument("--utterances", type=int, help="utterances of a timed pass; default: 128 (--quick: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes")
    parser.add_argument("--threads", type=int, help="compute threads; default: OMP_NUM_THREADS or one a core")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to try the command: figures mean nothing")
    args = parser.parse_args()
    use_threads(args.threads)
    base_model = args.base_model or ("tiny-llama" if args.quick else "smollm2-135m")
    count = args.utterances or (8 if args.quick else 128)
    geometry, tokenizer = Geometry(), load_tokenizer(base_model)
    utterances = make_utterances(count, geometry)
    variants = {}
    for name in args.variants:
        model = make_model(VARIANTS[name], base_model, geometry)
        facts = measure(model, tokenizer, utterances, min(count, 32), args.rounds)
        variants[name] = {**facts, "model": asdict(VARIANTS[name])}
    result = {"base_model": base_model, "utterances": count, "variants": variants, "environment": environment()}
    show(result)
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
