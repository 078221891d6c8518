"""One split of labelled data through a trained adapter: the metrics of ``result.json``, of any data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.training.data import tokenised
from deepmlf_llm.training.environment import environment
from deepmlf_llm.training.launch import on_terminal


def evaluate_adapter(
    adapter: str | Path,
    data: str | Path,
    split: str | None = None,
    base: Any = None,
    quantization: str = "trained",
    batch_size: int = 64,
    rename: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluates on one split, with the standardisation of the adapter's training.

    Args:
        adapter: directory of a trained adapter or of its run, or its hub id.
        data: directory of prepared data, or any labelled source (:mod:`deepmlf_llm.data.sources`), whole or test only.
        split: of the data; default: "test", or the only one there is.
        base: the base model, or its name or path; default: the one the adapter names.
        quantization: of a base that is loaded here; ``"trained"``: what the adapter was trained on.
        batch_size: utterances a batch.
        rename: name in a source -> name of the modality.

    Returns:
        metrics, heads (each modality's own), and what they were measured on.

    Raises:
        AdapterError: no whole adapter, or one of another base model.
        DataError: no such data or split, or features that the adapter was not trained on.
    """
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.data.collate import Collator
    from deepmlf_llm.data.labelled import open_labelled
    from deepmlf_llm.model.merged import read_settings, tokenizer_beside
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.training.head_metrics import compute_metrics_for, split_metrics
    from deepmlf_llm.training.progress import show_progress
    from deepmlf_llm.training.trainer import DeepMLFTrainer

    directory = local_directory(adapter)
    found = open_labelled(Path(data), read_settings(directory), split, rename)
    model = DeepMLFModel.from_pretrained(directory, base=base, quantization=quantization)
    config = model.deepmlf_config
    tokenizer = tokenizer_beside(directory, config, model.get_base_model())
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = DeepMLFTrainer(
            model=model,
            args=_arguments(nowhere, batch_size),
            data_collator=Collator(tokenizer, config.modalities, config.text.max_tokens, config.text.template),
            compute_metrics=compute_metrics_for(config.dataset),
        )
        show_progress(trainer, bar=on_terminal())
        items = tokenised(found.rows, found.name, tokenizer, config.text)
        logged = trainer.evaluate(items, metric_key_prefix=found.name)
    return {
        **split_metrics(logged, found.name),
        "split": found.name,
        "utterances": len(found.rows),
        "dataset": config.dataset,
        "data": found.facts,
        "notes": found.notes,
        "environment": environment(),
    }


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
