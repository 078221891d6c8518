"""The configurations on which the planner is tried, as dry models and as real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.loading import base_source
from deepmlf_llm.backbones.random_base import random_weights
from deepmlf_llm.backbones.toys import TOYS
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.dry_step import DryModel, Step, StepBytes
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.resident import Loading, loading_of
from deepmlf_llm.training.planned import planned_kernel

DIMS = {"audio": 74, "vision": 35}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
JOINT, FUSION = {"ffw_scope": "joint"}, {"ffw_scope": "fusion"}
WIDE = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096},
    **{"num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000},
    "tie_word_embeddings": True,
}
"""A decoder of 170 million weights, which are random: 0.7 GB in fp32."""
LM_LOSS = {"ffw_scope": "joint", "objective": {"gamma": 1.0}}


def _case(base: str, layers: int, method: dict[str, Any], **step: Any) -> dict[str, Any]:
    return {"base": base, "layers": layers, "method": {"fusion_layers": "even:2", **method}, **step}


def cases() -> dict[str, dict[str, Any]]:
    """Name -> one configuration; each takes seconds."""
    toy, small = ("tiny-llama", 4), ("smollm2-135m", 3)
    found: dict[str, dict[str, Any]] = {}
    for word, base in (("toy", toy), ("smollm2", small)):
        plain = {
            "joint": _case(*base, JOINT),
            "fusion": _case(*base, FUSION),
            "fusion-cached": _case(*base, FUSION, cached=True),
            "joint-cached": _case(*base, JOINT, cached=True),
            "joint-checkpointing": _case(*base, JOINT, checkpointing=True),
            "joint-bf16": _case(*base, JOINT, dtype="bfloat16"),
            "fusion-bf16": _case(*base, FUSION, dtype="bfloat16"),
            "joint-nf4": _case(*base, JOINT, quantization="nf4"),
            "fusion-nf4": _case(*base, FUSION, quantization="nf4"),
            "joint-batch-16": _case(*base, JOINT, batch=16),
            "joint-text-96": _case(*base, JOINT, text=96),
            "joint-text-160": _case(*base, JOINT, text=160),
            "joint-frames-400": _case(*base, JOINT, frames=400),
            "joint-lm-loss": _case(*base, LM_LOSS),
            "joint-lora": _case(*base, {**JOINT, "r": 8}),
            "lora-checkpointing": _case(*base, {**JOINT, "r": 8}, checkpointing=True),
            "joint-copy": _case(*base, {**JOINT, "ffw_weights": "copy"}),
            "fusion-batch-16": _case(*base, FUSION, batch=16),
            "fusion-32-tokens": _case(*base, {**FUSION, "num_fusion_tokens": 32}),
            "joint-first-block": _case(*base, {**JOINT, "fusion_entry": "first_block"}),
            "joint-every-layer": _case(*base, {**JOINT, "fusion_layers": "from:0"}),
            "joint-eager": _case(*base, JOINT, kernel="eager"),
            "text-alone": _case(*base, {**JOINT, "modalities": {}}),
        }
        found |= {f"{word}-{name}": case for name, case in plain.items()}
    found["gpt2-joint"] = _case("tiny-gpt2", 4, JOINT)
    found["mistral-fusion"] = _case("tiny-mistral", 4, FUSION)
    found["smollm2-whole-fusion"] = {
        **_case("smollm2-135m", 30, FUSION),
        "method": {**FUSION, "fusion_layers": "even:7"},
    }
    found["smollm2-whole-joint"] = {**_case("smollm2-135m", 30, JOINT), "method": {**JOINT, "fusion_layers": "even:7"}}
    return found


def process_cases() -> dict[str, dict[str, Any]]:
    """Name -> one configuration for a process of its own: those of :func:`cases`, and larger ones."""
    whole, wide = ("smollm2-135m", 30), ("wide-llama", 8)
    seven, some = {"fusion_layers": "even:7"}, {"init_seed": 0}
    return cases() | {
        "smollm2-whole-joint-bf16": _case(*whole, {**JOINT, **seven}, dtype="bfloat16"),
        "smollm2-whole-fusion-bf16": _case(*whole, {**FUSION, **seven}, dtype="bfloat16"),
        "smollm2-whole-fusion-cached": _case(*whole, {**FUSION, **seven}, cached=True),
        "smollm2-whole-joint-checkpointing": _case(*whole, {**JOINT, **seven}, checkpointing=True),
        "smollm2-whole-fusion-nf4": _case(*whole, {**FUSION, **seven}, quantization="nf4"),
        "wide-joint": _case(*wide, JOINT, **some),
        "wide-fusion": _case(*wide, FUSION, **some),
        "wide-joint-bf16": _case(*wide, JOINT, dtype="bfloat16", **some),
        "wide-joint-text-96": _case(*wide, JOINT, text=96, **some),
        "wide-fusion-batch-16": _case(*wide, FUSION, batch=16, **some),
    }


def gpu_cases() -> dict[str, dict[str, Any]]:
    """Name -> one configuration of LLaMA-1B's or 8B's geometry, for a GPU of 80 GB."""
    small, large = ("llama-1b", 16), ("llama-8b", 32)
    plain = {"dtype": "bfloat16", "kernel": "sdpa", "batch": 32, "frames": 50}
    seven = {"fusion_layers": "even:7"}
    return {
        "llama-1b-joint": _case(*small, {**JOINT, **seven}, **plain),
        "llama-1b-fusion-cached": _case(*small, {**FUSION, **seven}, cached=True, **plain),
        "llama-8b-fusion": _case(*large, {**FUSION, **seven}, **plain),
        "llama-8b-joint-checkpointing": _case(*large, {**JOINT, **seven}, checkpointing=True, **plain),
        "llama-8b-joint-nf4": _case(*large, {**JOINT, **seven}, quantization="nf4", **plain),
        "llama-8b-fusion-nf4": _case(*large, {**FUSION, **seven}, quantization="nf4", **plain),
    }


def config_of(case: dict[str, Any]) -> DeepMLFConfig:
    return DeepMLFConfig(**{"modalities": {name: {"dim": dim} for name, dim in DIMS.items()}, **case["method"]})


def lengths_of(case: dict[str, Any]) -> list[int]:
    """Real tokens of each text: from the longest down to half of it."""
    longest, batch = case.get("text", 40), case.get("batch", 8)
    return [longest - (row * longest) // (2 * batch) for row in range(batch)]


def dry_step(case: dict[str, Any], granule: int = 1, notes_work: bool = False) -> tuple[DeepMLFModel, Step, StepBytes]:
    """The case's model without weights, its step, and what that takes."""
    dtype, kind = DTYPES[case.get("dtype", "float32")], case.get("quantization", "none")
    shape = planned_shape(base_of(case), case["layers"])
    shape.set_attn_implementation(planned_kernel(shape, case.get("kernel", "auto"), dtype, on_gpu=granule != 1))
    with torch.device("meta"):
        model = DeepMLFModel(shape, config_of(case))
    lengths = lengths_of(case)
    step = Step(
        utterances=len(lengths),
        text_tokens=max(lengths),
        frames=dict.fromkeys(model.deepmlf_config.modalities, case.get("frames", 60)),
        checkpointing=case.get("checkpointing", False),
        text_cached=case.get("cached", False),
        real=(sum(lengths) - len(lengths)) / (len(lengths) * (max(lengths) - 1)),
        granule=granule,
        on_cpu=granule == 1,
        notes_work=notes_work,
    )
    return model, step, DryModel(model, dtype, kind).run(step)


def loading(case: dict[str, Any]) -> Loading:
    """What the case's base takes as it is loaded."""
    drawn = "init_seed" in case or case["base"] in TOYS
    whole, kept = planned_shape(base_of(case)), planned_shape(base_of(case), case["layers"])
    directory = None if drawn else Path(base_source(case["base"]))
    return loading_of(whole, kept, DTYPES[case.get("dtype", "float32")], directory, drawn, "quantization" in case)


def random_base(case: dict[str, Any], device: str) -> Any:
    """A base of the case's geometry with random weights, made on the device."""
    kind = "nf4" if case.get("quantization") == "nf4" else case["dtype"]
    lm = random_weights(planned_shape(case["base"], case["layers"]), kind, device)
    lm.set_attn_implementation(case["kernel"])
    return lm


def real_model(case: dict[str, Any], device: str = "cpu") -> tuple[DeepMLFModel, dict[str, torch.Tensor]]:
    """The case's model, ready to train, and a batch for it."""
    dtype, kind = case.get("dtype", "float32"), case.get("quantization", "none")
    if device == "cpu":
        base = load_base_model(
            base_of(case),
            kind,
            dtype,
            case.get("kernel", "auto"),
            num_layers=case["layers"],
            init_seed=case.get("init_seed"),
        )
    else:
        base = random_base(case, device)
    model = DeepMLFModel(base, config_of(case)).to(device)
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_text_cache("memory" if case.get("cached") else "none")
    model.train()
    return model, {name: tensor.to(device) for name, tensor in real_batch(case).items()}


def real_batch(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random texts and frames of the case's lengths."""
    lengths, frames = lengths_of(case), case.get("frames", 60)
    batch: dict[str, torch.Tensor] = {"labels": torch.randn(len(lengths))}
    batch["input_ids"] = torch.randint(3, 250, (len(lengths), max(lengths)))
    batch["attention_mask"] = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - n).long() for n in lengths])
    for name in config_of(case).modalities:
        batch[name] = torch.randn(len(lengths), frames, DIMS[name])
        batch[f"{name}_mask"] = torch.ones(len(lengths), frames, dtype=torch.bool)
    return batch


def real_step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """Forward, backward, update: the step, and its optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


@cache
def _wide() -> TemporaryDirectory[str]:
    """A directory with the config of :data:`WIDE`, until this process ends."""
    folder = TemporaryDirectory(prefix="wide-llama")
    (Path(folder.name) / "config.json").write_text(json.dumps(WIDE))
    return folder


def base_of(case: dict[str, Any]) -> str:
    """What ``load_base_model`` is given for the case's base."""
    return _wide().name if case["base"] == "wide-llama" else case["base"]
