"""One split of labelled data through a trained adapter: the metrics of ``result.json``, of any data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.data.corruption import Corrupted, Corruption, check_modalities
from deepmlf_llm.statistics.bootstrap import described
from deepmlf_llm.training.data import as_read, with_unimodal
from deepmlf_llm.training.environment import environment
from deepmlf_llm.training.launch import on_terminal
from deepmlf_llm.training.scores import Score, score


class Evaluator:
    """A trained adapter, loaded once, and one split of labelled data in the standardisation of its training.

    Args:
        adapter: directory of a trained adapter or of its run, or its hub id.
        data: directory of prepared data, or any labelled source (:mod:`deepmlf_llm.data.sources`), whole or test only.
        split: of the data; default: "test", or the only one there is.
        base: the base model, or its name or path; default: the one the adapter names.
        quantization: of a base that is loaded here; ``"trained"``: what the adapter was trained on.
        batch_size: utterances a batch.
        rename: name in a source -> name of the modality.

    Raises:
        AdapterError: no whole adapter, or one of another base model.
        DataError: no such data or split, or features that the adapter was not trained on.
    """

    def __init__(
        self,
        adapter: str | Path,
        data: str | Path,
        split: str | None = None,
        base: Any = None,
        quantization: str = "trained",
        batch_size: int = 64,
        rename: Mapping[str, str] | None = None,
    ) -> None:
        from deepmlf_llm.adapters.hub import local_directory
        from deepmlf_llm.data.labelled import open_labelled
        from deepmlf_llm.model.merged import read_settings, tokenizer_beside
        from deepmlf_llm.model.peft_model import DeepMLFModel

        directory = local_directory(adapter)
        self.found = open_labelled(Path(data), read_settings(directory), split, rename)
        self.model: Any = DeepMLFModel.from_pretrained(directory, base=base, quantization=quantization)
        self.config = self.model.deepmlf_config
        self.batch_size = batch_size
        self._tokenizer = tokenizer_beside(directory, self.config, self.model.get_base_model())
        self._items = as_read(self.found.rows, self.found.name, self._tokenizer, self.config)

    def rows(self, corruption: Corruption) -> Corrupted:
        """The split's utterances as the model meets them under a corruption."""
        constant = check_modalities(corruption, self.config.modalities, "features")
        return Corrupted(self.found.rows, corruption, constant)

    def keep_texts(self, most_bytes: int) -> None:
        """Before several passes over the split: what the frozen LM makes of its texts is kept where it can be and needs
        no more than that."""
        if self.config.has_lm_lora:
            return
        self.model.enable_text_cache("memory", fusion_tokens=True)
        if self.model.text_cache.predicted_bytes([tuple(ids) for ids in self._items.input_ids]) > most_bytes:
            self.model.enable_text_cache("none")

    def score(self, corruption: Corruption | None = None) -> Score:
        """Metrics, intervals and predictions of the split.

        Args:
            corruption: what is done to its features first.

        Raises:
            DataError, RunError: predictions that are not finite.
        """
        from deepmlf_llm.data.collate import Collator, TokenisedDataset
        from deepmlf_llm.training.head_metrics import SplitMetrics
        from deepmlf_llm.training.progress import show_progress
        from deepmlf_llm.training.trainer import DeepMLFTrainer

        with tempfile.TemporaryDirectory() as nowhere:
            trainer = DeepMLFTrainer(
                model=self.model,
                args=loop_arguments(nowhere, per_device_eval_batch_size=self.batch_size),
                data_collator=Collator.of(self.config, self._tokenizer),
                compute_metrics=SplitMetrics(self.config),
            )
            show_progress(trainer, bar=on_terminal())
            items = self._items
            if corruption is not None:
                rows = with_unimodal(self.rows(corruption), self.config)
                items = TokenisedDataset(rows, items.input_ids, items.truncated, items.max_tokens)
            return score(trainer, items, self.found.name, self.config.dataset)

    def result(self, found: Score) -> dict[str, Any]:
        """What ``evaluate`` writes of a score: metrics, their intervals, heads, and what they were measured on."""
        return {
            "metrics": dict(found.metrics),
            "intervals": dict(found.intervals),
            "bootstrap": described(),
            "heads": dict(found.heads),
            "split": self.found.name,
            "utterances": len(self.found.rows),
            "dataset": self.config.dataset,
            "data": self.found.facts,
            "notes": self.found.notes,
            "environment": environment(),
            **({} if found.classes is None else {"classes": dict(found.classes)}),
        }


def evaluate_adapter(
    adapter: str | Path,
    data: str | Path,
    split: str | None = None,
    base: Any = None,
    quantization: str = "trained",
    batch_size: int = 64,
    rename: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluates on one split, with the standardisation of the adapter's training; see :class:`Evaluator`.

    Returns:
        metrics, intervals, heads (each modality's own), and what they were measured on; of classes their table and
        confusion.

    Raises:
        AdapterError: no whole adapter, or one of another base model.
        DataError: no such data or split, or features that the adapter was not trained on.
    """
    evaluator = Evaluator(adapter, data, split, base, quantization, batch_size, rename)
    return evaluator.result(evaluator.score())


def loop_arguments(directory: str, **given: Any) -> Any:
    """TrainingArguments of a Trainer that is not a run of its own: it evaluates, or fits a baseline.

    Args:
        directory: where it may write.
        given: arguments beside those of any such loop.
    """
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=directory,
        use_cpu=not cuda,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        **given,
    )
