"""The README of an adapter or a merged model: what it is, what it expects, how to use it, how well it did.

What comes from data or settings is escaped: it is text here, whatever it holds.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepmlf_llm.adapters.base_location import hub_id, shown_name
from deepmlf_llm.adapters.lora import adapted_modules, lm_lora_tensors
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.files import write_aside
from deepmlf_llm.markdown import code, plain, yaml_word
from deepmlf_llm.tasks.registry import task_of
from deepmlf_llm.tasks.regression import RegressionTask

CARD = "README.md"
_HEAD = """---
library_name: deepmlf_llm
{base_model}tags: [deepmlf, multimodal, sentiment]
---

"""
_ADAPTER = """# DeepMLF adapter for {base}

{tokens} fusion tokens, MM Blocks after layers {layers}, FFW scope {scope}, {weights} FFW weights: {values} values.
{lora}Trained on the base {quantization}. Labels of {dataset}{labels}; transcripts: case {case}, at most {max_tokens}
tokens in {template}.

{modalities}

```python
from deepmlf_llm import SentimentPredictor

predictor = SentimentPredictor.from_pretrained("PATH OF THIS DIRECTORY")
{call}
```

The base model is not included: it is found by its name and checked by its fingerprint.
"""
_MERGED = """# Merged DeepMLF model on {base}

The language model with its LoRA folded in, and the fusion modules in `{folder}/`; MM Blocks own their FFW weights.
Labels of {dataset}{labels}; transcripts: case {case}, at most {max_tokens} tokens in {template}.

{modalities}

{changes}
```python
from deepmlf_llm import SentimentPredictor

predictor = SentimentPredictor.from_pretrained("PATH OF THIS DIRECTORY")
{call}
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
    quantized = config.base_quantization not in (None, "none")
    stored = f"in {config.base_quantization}" if quantized else "as it is"
    drawn = f"with random weights (seed {config.base_init_seed}): what its LM had learned is not in it"
    return (_HEAD + _ADAPTER).format(
        **_facts(config),
        tokens=config.num_fusion_tokens,
        layers=config.fusion_layers,
        scope=config.ffw_scope,
        weights=config.ffw_weights,
        values=f"{values:,}",
        lora=lora,
        quantization=stored if config.base_init_seed is None else drawn,
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


def add_results(directory: Path, result: Mapping[str, Any]) -> None:
    """Adds what a run has measured to the card of its adapter: each metric with its split, the seed and the data.

    Args:
        directory: of the adapter.
        result: as in ``result.json``: metrics (split -> name -> value), seed, data, train.
    """
    card = directory / CARD
    write_aside(card, card.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + results_section(result))


def results_section(result: Mapping[str, Any]) -> str:
    """The card's section on what a run has measured; see :func:`add_results`."""
    metrics, data = result["metrics"], result.get("data") or {}
    stored = {"validation": "valid"}
    utterances = {
        split: (data.get("used") or {}).get(stored.get(split, split), {}).get("utterances") for split in metrics
    }
    heads = [f"{split} ({count} utterances)" if (count := utterances[split]) else split for split in metrics]
    rows = [f"| metric | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for values in metrics.values() for name in values):
        values = [metrics[split].get(name) for split in metrics]
        rows.append(f"| {code(name)} | {' | '.join('' if v is None else f'{v:.4f}' for v in values)} |")
    facts = [f"seed {result.get('seed')}", f"data {_data(data)}"]
    if step := (result.get("train") or {}).get("best_step"):
        facts.append(f"step {step}, chosen on the validation split")
    tables = f"\n{_class_tables(result['classes'])}\n" if result.get("classes") else ""
    return f"## Results\n\nOne run: {'; '.join(facts)}.\n\n" + "\n".join(rows) + "\n" + tables


def _data(facts: Mapping[str, Any]) -> str:
    """Name, source and hashes of the data of a run."""
    source = facts.get("source") or {}
    parts = [f"from {code(source['name'])}"] if source.get("name") else []
    splits = facts.get("splits") or {}
    parts += [f"{name} {str(split['sha256'])[:12]}" for name, split in splits.items() if split.get("sha256")]
    return code(str(facts.get("name") or "given in memory")) + (f" ({', '.join(parts)})" if parts else "")


def _labels(config: DeepMLFConfig) -> str:
    """What the labels are where the name of the data set does not say it, with a comma in front."""
    if config.task is None:
        return ""
    task = task_of(config.dataset, config.task)
    if isinstance(task, RegressionTask):
        named = f" ({', '.join(map(plain, task.names))})" if task.bins else ""
        return f", {task.describe()}{named}"
    which = "any of the classes" if task.several else "one of the classes"
    return f", {which} {', '.join(map(code, task.classes))}"


def _class_tables(classes: Mapping[str, Any]) -> str:
    """A table of each split with a row a class, and which class is taken for which."""
    parts = []
    for split, found in classes.items():
        rows = [f"| {split}: class | precision | recall | F1 | labels |", "|---" * 5 + "|"]
        for name, row in found["table"].items():
            numbers = " | ".join(f"{row[column]:.4f}" for column in ("precision", "recall", "f1"))
            rows.append(f"| {code(name, in_table=True)} | {numbers} | {row['labels']} |")
        parts.append("\n".join(rows))
        if isinstance(found["confusion"], list):
            names = [code(name, in_table=True) for name in found["table"]]
            rows = [f"| {split}: true class, taken for | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            counts = zip(names, found["confusion"], strict=True)
            rows += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in counts]
            parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _argument(name: str) -> str:
    """How a modality is given in Python."""
    is_word = name.isidentifier() and not keyword.iskeyword(name)
    return f"{name}=[...]" if is_word else f"**{{{name!a}: [...]}}"


def _modalities(config: DeepMLFConfig) -> str:
    """What is read beside the text: a table, or a sentence."""
    if config.reads_text_alone:
        return "It reads text alone: no audio, no vision."
    rows = ["| modality | dimensions | frames per second | features | from |", "|---|---|---|---|---|"]
    for name, facts in config.modalities.items():
        made = {key: value for key, value in facts.features.items() if key not in ("source", "fingerprint")}
        how = plain(", ".join(f"{key} {value}" for key, value in made.items() if value != "precomputed"))
        source = str(facts.provenance.get("source") or facts.features.get("source") or "")
        rate = facts.frame_rate or "unknown"
        rows.append(f"| {plain(name)} | {facts.dim} | {rate} | {how or 'unknown'} | {plain(source)} |")
    return "\n".join(rows)


def _call(config: DeepMLFConfig) -> str:
    """How it predicts, in Python."""
    if config.reads_text_alone:
        return 'predictor.predict(text=["..."])'
    arguments = ", ".join(map(_argument, config.modalities))
    return f'predictor.predict(text=["..."], {arguments})  # raw features [frames x dimensions]'


def _facts(config: DeepMLFConfig) -> dict[str, Any]:
    base = config.base_model_name_or_path
    identity = hub_id(base)
    return {
        "base_model": f"base_model: {yaml_word(identity)}\n" if identity else "",
        "base": plain(shown_name(base)),
        "dataset": code(str(config.dataset)),
        "labels": _labels(config),
        "case": plain(str(config.text.case)),
        "max_tokens": config.text.max_tokens,
        "template": code(repr(config.text.template)),
        "modalities": _modalities(config),
        "call": _call(config),
    }
