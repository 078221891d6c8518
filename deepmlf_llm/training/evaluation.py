"""One split of prepared data through a trained adapter: the metrics of ``result.json``, of any data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.errors import DataError, Problems
from deepmlf_llm.training.data import tokenised
from deepmlf_llm.training.environment import environment
from deepmlf_llm.training.launch import on_terminal


def evaluate_adapter(
    adapter: str | Path,
    data: str | Path,
    split: str = "test",
    base: Any = None,
    quantization: str = "trained",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Evaluates on one split.

    Args:
        adapter: directory of a trained adapter.
        data: directory of prepared data.
        split: of the data.
        base: the base model; default: the one the adapter names.
        quantization: of a base that is loaded here; ``"trained"``: what the adapter was trained on.
        batch_size: utterances a batch.

    Returns:
        metrics, heads (each modality's own), and what they were measured on.

    Raises:
        AdapterError: no whole adapter, or one of another base model.
        DataError: no such data or split, or features that the adapter was not trained on.
    """
    from deepmlf_llm.data.collate import Collator
    from deepmlf_llm.data.store import open_store
    from deepmlf_llm.model.merged import tokenizer_beside
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.training.head_metrics import compute_metrics_for, split_metrics
    from deepmlf_llm.training.progress import show_progress
    from deepmlf_llm.training.trainer import DeepMLFTrainer

    store = open_store(data)
    items = store.split(split)
    model = DeepMLFModel.from_pretrained(adapter, base=base, quantization=quantization)
    config = model.deepmlf_config
    notes = check_features(config, store.modalities, store.manifest.dataset)
    tokenizer = tokenizer_beside(adapter, config)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = DeepMLFTrainer(
            model=model,
            args=_arguments(nowhere, batch_size),
            data_collator=Collator(tokenizer, config.modalities, config.text.max_tokens, config.text.template),
            compute_metrics=compute_metrics_for(config.dataset),
        )
        show_progress(trainer, bar=on_terminal())
        logged = trainer.evaluate(tokenised(items, split, tokenizer, config.text), metric_key_prefix=split)
    return {
        **split_metrics(logged, split),
        "split": split,
        "utterances": len(items),
        "dataset": config.dataset,
        "data": {"name": Path(data).name, "sha256": store.manifest.splits[split]["sha256"]},
        "notes": notes,
        "environment": environment(),
    }


def check_features(config: Any, modalities: dict[str, dict[str, Any]], dataset: str) -> list[str]:
    """Whether the data's features are those the adapter was trained on; what differs without harm, in sentences.

    Raises:
        DataError: a modality is missing, has another dimension or was made in another way, or the label rule differs.
    """
    problems, notes = Problems(DataError, "these data do not fit the adapter"), []
    problems.check(
        dataset == config.dataset, f"labels of {dataset!r}, the adapter predicts those of {config.dataset!r}"
    )
    problems.messages += feature_problems(config.modalities, modalities)
    for name, trained in config.modalities.items():
        if trained.standardisation and modalities.get(name, {}).get("standardisation") != trained.standardisation:
            notes.append(f"{name!r} is standardised by these data's own training split, not by the adapter's")
    problems.raise_if_any()
    return notes


def _arguments(directory: str, batch_size: int) -> Any:
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=directory,
        per_device_eval_batch_size=batch_size,
        use_cpu=not cuda,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
