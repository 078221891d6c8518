"""The README of an adapter or a merged model: what it is, what it expects, how to use it."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

from deepmlf_llm.adapters.lora import adapted_modules, lm_lora_tensors
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.markdown import code, plain, yaml_word

_HEAD = """---
library_name: deepmlf_llm
base_model: {base_in_yaml}
tags: [deepmlf, multimodal, sentiment]
---

"""
_ADAPTER = """# DeepMLF adapter for {base}

{tokens} fusion tokens, MM Blocks after layers {layers}, FFW scope {scope}, {weights} FFW weights: {values} values.
{lora}Trained on the base {quantization}. Labels of {dataset}; transcripts: case {case}, at most {max_tokens} tokens
in {template}.

{modalities}

```python
from deepmlf_llm import SentimentPredictor

predictor = SentimentPredictor.from_pretrained("PATH OF THIS DIRECTORY")
predictor.predict(text=["..."], {arguments})  # raw features [frames x dimensions]
```

The base model is not included: it is found by its name and checked by its fingerprint.
"""
_MERGED = """# Merged DeepMLF model on {base}

The language model with its LoRA folded in, and the fusion modules in `{folder}/`; MM Blocks own their FFW weights.
Labels of {dataset}; transcripts: case {case}, at most {max_tokens} tokens in {template}.

{modalities}

{changes}
```python
from deepmlf_llm import SentimentPredictor

predictor = SentimentPredictor.from_pretrained("PATH OF THIS DIRECTORY")
predictor.predict(text=["..."], {arguments})  # raw features [frames x dimensions]
```
"""


def adapter_card(config: DeepMLFConfig, tensors: Mapping[str, Any]) -> str:
    """The card of an adapter.

    Args:
        config: of the adapter.
        tensors: of its file, by name.
    """
    lora = ""
    if config.has_lm_lora:
        modules = adapted_modules(lm_lora_tensors(tensors))
        lora = (
            f"LoRA of rank {config.r} on {len(modules)} modules of the language model, for plain PEFT in `lora/` too: "
            f"{', '.join(map(code, modules))}.\n"
        )
    values = sum(tensor.numel() for name, tensor in tensors.items() if "running_" not in name)
    quantised = config.base_quantization not in (None, "none")
    return (_HEAD + _ADAPTER).format(
        **_facts(config),
        tokens=config.num_fusion_tokens,
        layers=config.fusion_layers,
        scope=config.ffw_scope,
        weights=config.ffw_weights,
        values=f"{values:,}",
        lora=lora,
        quantization=f"in {config.base_quantization}" if quantised else "as it is",
    )


def merged_card(config: DeepMLFConfig, folder: str, report: Mapping[str, Mapping[str, float]] | None) -> str:
    """The card of a merged model.

    Args:
        config: of it.
        folder: of the fusion modules.
        report: what was compared -> ``largest`` and ``mean`` difference of polarities on a probe batch.
    """
    changes = ""
    if report:
        rows = [f"| {plain(what)} | {d['largest']:.2e} | {d['mean']:.2e} |" for what, d in report.items()]
        changes = (
            "What merging changed: polarities on a probe batch (random texts and features, some of them absent).\n\n"
            "| compared | largest difference | mean |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return (_HEAD + _MERGED).format(**_facts(config), folder=folder, changes=changes)


def _argument(name: str) -> str:
    """How a modality is given in Python."""
    is_word = name.isidentifier() and not keyword.iskeyword(name)
    return f"{name}=[...]" if is_word else f"**{{{name!a}: [...]}}"


def _facts(config: DeepMLFConfig) -> dict[str, Any]:
    rows = ["| modality | dimensions | frames per second | features |", "|---|---|---|---|"]
    for name, facts in config.modalities.items():
        made = plain(str(facts.features.get("source") or facts.features.get("kind") or ""))
        rows.append(f"| {plain(name)} | {facts.dim} | {facts.frame_rate or 'unknown'} | {made} |")
    return {
        "base": plain(str(config.base_model_name_or_path)),
        "base_in_yaml": yaml_word(str(config.base_model_name_or_path)),
        "dataset": code(str(config.dataset)),
        "case": plain(str(config.text.case)),
        "max_tokens": config.text.max_tokens,
        "template": code(repr(config.text.template)),
        "modalities": "\n".join(rows),
        "arguments": ", ".join(map(_argument, config.modalities)),
    }
