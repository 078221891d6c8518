"""How fast a trained model answers: latency of one utterance, throughput of many, for texts new to it and met before.

What is timed is :meth:`SentimentPredictor.predict`, from strings and raw features to predictions. Texts have MOSI's
lengths. "Met before": the same transcripts with other features, whose text stream the predictor has kept (not with
LoRA on the LM).

    python benchmarks/inference.py [--output FILE.json] [--base_model smollm2-135m] [--variants fp32 bf16 ...] [--quick]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from measuring import Clock, base_of, benchmark_parser, environment, summary, use_threads, write_json
from tables import latency, machine
from variants import make_config
from workload import Geometry, make_utterances

from deepmlf_llm import DeepMLFModel
from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import run_recipe
from deepmlf_llm.inference.predictor import SentimentPredictor

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "fp32, compiled": {"compiled": True},
    "bf16, compiled": {"dtype": "bfloat16", "compiled": True},
    "fp32, LM LoRA": {"lm_lora": True},
    "fp32, LM LoRA, merged": {"lm_lora": True, "merged": True},
    **{f"fp32, texts in {name}": {"storage": name} for name in ("bfloat16", "float16", "int8")},
}
"""Name -> how the base is loaded (fp32 unless said), whether the LM has LoRA, whether all is merged, or compiled; the
dtype of texts that are kept."""
USUAL = ("fp32", "bf16", "nf4", "fp32, LM LoRA", "fp32, LM LoRA, merged")


def make_model(variant: Mapping[str, Any], base_model: str, geometry: Geometry) -> Any:
    """As after training, but for the values of its weights, on which no time depends: the same in every variant."""
    loaded = {"dtype": "float32", **{k: v for k, v in variant.items() if k in ("dtype", "quantization")}}
    lm = load_base_model(base_model, **loaded)
    lora = {"r": 16, "target_modules": ["q_proj", "v_proj"]} if variant.get("lm_lora") else {}
    torch.manual_seed(0)
    model: Any = DeepMLFModel(lm, make_config(lm, geometry, "fusion", **lora))
    model = model.merge_and_unload() if variant.get("merged") else model
    if variant.get("compiled"):
        model.get_base_model().get_decoder().compile(dynamic=True)
    return model.cuda() if torch.cuda.is_available() and "quantization" not in variant else model


def measure(
    model: Any,
    tokenizer: Any,
    utterances: Sequence[dict[str, Any]],
    singles: int,
    rounds: int,
    storage: str | None = None,
) -> dict[str, Any]:
    """Milliseconds of single utterances and utterances a second in batches of 32, text new and met before; what is
    predicted for the utterances themselves, their texts met before."""
    one, many = SentimentPredictor(model, tokenizer, batch_size=1), SentimentPredictor(model, tokenizer, batch_size=32)
    random = np.random.default_rng(1)
    ask(many, utterances[:32])
    for utterance in utterances[:3]:
        ask(one, [utterance])

    def seconds(predictor: SentimentPredictor, groups: Sequence[Any]) -> dict[str, list[float]]:
        clocks = {"new": Clock(), "met": Clock()}
        for group in groups:
            forget(model, storage)
            with clocks["new"]:
                ask(predictor, group)
            others = [other_take(utterance, random) for utterance in group]
            with clocks["met"]:
                ask(predictor, others)
        return {text: clock.seconds for text, clock in clocks.items()}

    latency = seconds(one, [[utterance] for utterance in utterances[:singles]])
    passes = seconds(many, [utterances] * rounds)
    rates = {text: [len(utterances) / second for second in found] for text, found in passes.items()}
    return {
        "polarities": [prediction.polarity for prediction in ask(many, utterances)],
        "latency_ms": {text: percentiles(found) for text, found in latency.items()},
        "utterances_per_second": {text: summary(found) for text, found in rates.items()},
    }


def ask(predictor: SentimentPredictor, utterances: Sequence[dict[str, Any]]) -> list[Any]:
    features = {name: [u[name] for u in utterances] for name in predictor.config.modalities}
    return predictor.predict([u["text"] for u in utterances], **features)


def forget(model: Any, storage: str | None = None) -> None:
    """Drops the text that is kept."""
    if not model.deepmlf_config.has_lm_lora:
        model.enable_text_cache("memory", storage=storage, fusion_tokens=storage is None)


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


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(USUAL), help="what is measured")
    parser.add_argument("--utterances", type=int, help="utterances of a timed pass; default: 128 (--quick: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes")
    args = parser.parse_args()
    use_threads(args.threads)
    base_model, count = base_of(args), args.utterances or (8 if args.quick else 128)
    geometry, tokenizer = Geometry(), load_tokenizer(base_model)
    utterances, first = make_utterances(count, geometry), None
    result: dict[str, Any] = {"base_model": base_model, "utterances": count, "variants": {}}
    result["environment"] = environment()
    for name in args.variants:
        model = make_model(VARIANTS[name], base_model, geometry)
        facts = measure(model, tokenizer, utterances, min(count, 32), args.rounds, VARIANTS[name].get("storage"))
        said = np.array(facts.pop("polarities"))
        first = said if first is None else first
        apart = np.abs(said - first)
        facts["difference"] = {"mean": float(apart.mean()), "largest": float(apart.max())}
        result["variants"][name] = {**facts, "spread": float(said.std()), "model": VARIANTS[name]}
        write_json(args.output, result)  # a run that is cut loses nothing
    print(f"{latency(result)}\n\n{machine(result)}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
