"""From texts and raw features to polarity: what one does with a trained adapter."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepmlf_llm.adapters.hub import local_directory
from deepmlf_llm.backbones import is_quantized
from deepmlf_llm.backbones.text_store import MemoryStore
from deepmlf_llm.backbones.vocabulary import check_ids, check_tokenizer, embedding_rows
from deepmlf_llm.config.rules import brief, is_integer
from deepmlf_llm.data.clean import standardise
from deepmlf_llm.data.collate import Collator, most_characters, token_ids
from deepmlf_llm.data.facts import VIDEO, FeatureRecipe, feature_problems, provenance_of
from deepmlf_llm.data.frames import frames_of_width
from deepmlf_llm.data.text import normalise_text
from deepmlf_llm.errors import ConfigError, DataError, InjectionError, Problems, suggest
from deepmlf_llm.inference.predictions import ClassPrediction, Prediction, predictions_of
from deepmlf_llm.model.base import FusedModel
from deepmlf_llm.model.merged import tokenizer_beside
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.tasks.registry import task_of
from deepmlf_llm.tasks.regression import RegressionTask

if TYPE_CHECKING:
    from deepmlf_llm.inference.clips import ClipResult

TEXT_CACHE_BYTES = 1 << 30  # kept streams are dropped past this, so that a long job stays bounded


class SentimentPredictor:
    """Predicts polarity, or classes, from transcripts and feature sequences of any length, either modality missing.

    Any number of threads may use one predictor, or several on one model, also in a process that was forked. It stays
    with the adapter that is active when it is made.

    Args:
        model: a trained :class:`DeepMLFModel`, or a merged one.
        tokenizer: of its base model.
        batch_size: utterances a batch; texts of like length go together.

    The model is put into eval mode. One that is trained on must be put there again (``model.eval()``) before it
    predicts.

    Raises:
        ConfigError: another kind of model, one of several numbers of a scale, or no number of utterances.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 32) -> None:
        problems = Problems(ConfigError, "SentimentPredictor")
        problems.check(
            isinstance(model, FusedModel),
            f"model is a {type(model).__name__}, expected a DeepMLFModel (DeepMLFModel(base, config)) or a merged one",
        )
        problems.check(
            is_integer(batch_size) and batch_size >= 1, f"batch_size={brief(batch_size)}: expected an integer >= 1"
        )
        problems.raise_if_any()
        self.config = model.deepmlf_config
        self.task = task_of(self.config.dataset, self.config.task)
        if isinstance(self.task, RegressionTask) and self.config.num_outputs != 1:
            raise ConfigError(f"num_outputs={self.config.num_outputs}: a predictor says one number of a scale")
        self.model = model.eval()
        self._adapter: str | None = model.adapter_in_use
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.gates: dict[str, dict[str, float]] = model.gate_values()
        self._collate = Collator(tokenizer, self.config.modalities)
        if not self.config.has_lm_lora:
            self.model.enable_text_cache("memory", fusion_tokens=True)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        base: Any = None,
        dtype: str = "auto",
        quantization: str = "trained",
        device: str | None = None,
        batch_size: int = 32,
        compile: bool = False,
    ) -> SentimentPredictor:
        """Loads an adapter (and its base) or a merged model.

        Args:
            directory: of the adapter or the merged model, or its hub id.
            base: the base model, or its name or path; default: the one the adapter names.
            dtype, quantization: of a base that is loaded here; ``"trained"``: what the adapter was trained on.
            device: default: CUDA where there is one.
            batch_size: utterances a batch.
            compile: run the language model through ``torch.compile``: a minute at the first batches, which many must
                make up for.

        Raises:
            AdapterError: damaged files, or files that do not fit the base.
            ConfigError: ``compile`` without a C++ compiler.
        """
        if compile:
            _find_compiler()
        directory = local_directory(directory)
        model: Any = DeepMLFModel.from_pretrained(directory, base=base, dtype=dtype, quantization=quantization)
        if not is_quantized(model.get_base_model()):  # those are where they were loaded
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer = tokenizer_beside(directory, model.deepmlf_config, model.get_base_model())
        check_tokenizer(tokenizer, embedding_rows(model.get_base_model()), str(directory))
        if compile:
            model.get_base_model().get_decoder().compile(dynamic=True)
        return cls(model, tokenizer, batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        """Of the base's weights, by its name in torch; of a quantized base that of the others."""
        weight = self.model.get_base_model().get_input_embeddings().weight
        return str(weight.dtype).removeprefix("torch.")

    def predict(
        self,
        text: Sequence[str],
        standardised: bool = False,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
        **features: Sequence[Any] | None,
    ) -> list[Prediction | ClassPrediction]:
        """One prediction per utterance, in order.

        Args:
            text: transcripts, as they come: case and template of the training data are applied here.
            standardised: the features have the training data's standardisation already (else it is applied here).
            facts: how these features were made, modality -> ``{"dim": ..., "features": {...}}`` as a manifest has it
                (``store.modalities``): compared with what the model was trained on.
            features: for each modality a list with one sequence [t x d] per utterance, None or empty where it is
                absent; a modality that is not given is absent everywhere.

        Raises:
            DataError: one text in the place of several, an unknown modality, lists of different length, facts that
                differ, or features of another dimension; the message names the utterance.
            InjectionError: the model is in training mode.
        """
        if isinstance(text, str):
            raise DataError(f"text={brief(text)} is one text: expected a list of them, [{brief(text)}]")
        known = self.config.modalities
        problems = feature_problems({name: known[name] for name in facts if name in known}, facts) if facts else []
        if problems:
            raise DataError(f"these features do not fit the model: {'; '.join(problems)}")
        for name, rows in features.items():
            if name not in known:
                expected = f"this model knows {', '.join(known)}" if known else "this model reads text alone"
                raise DataError(f"{name!r}{suggest(name, known)}: {expected}")
            if rows is not None and len(rows) != len(text):
                raise DataError(f"{name}: {len(rows)} sequences for {len(text)} texts")
        items = []
        for index, transcript in enumerate(text):
            row = {name: None if rows is None else rows[index] for name, rows in features.items()}
            try:
                items.append(self.prepare(transcript, row, standardised))
            except DataError as error:
                raise DataError(f"utterance {index}: {error}") from error
        return self.predict_prepared(items)

    def predict_clip(
        self, path: str | Path, text: str | None = None, window: float | str = "speech", **reading: Any
    ) -> ClipResult:
        """Polarity of a file of sound or video over time, read by the recipe that the model carries.

        Args:
            path: of the file.
            text: its transcript.
            window: spans of speech, or so many seconds.
            reading: of :class:`~deepmlf_llm.inference.clips.ClipReader`, which is better kept for many clips.

        Raises:
            DataError: the model's features come from elsewhere, or the file gives none.
        """
        from deepmlf_llm.inference.clips import ClipReader

        return ClipReader(self, **reading).read(path, text, window)

    def prepare(self, text: str, features: Mapping[str, Any], standardised: bool = False) -> dict[str, Any]:
        """One utterance as the model reads it: token ids, standardised float32 frames.

        Raises:
            DataError: no string, frames that are not numbers, of another dimension or not finite.
        """
        if not isinstance(text, str):
            raise DataError(f"text is {type(text).__name__}, expected a string")
        text = text[: most_characters(self.config.text.max_tokens)]
        if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError("text holds half a surrogate pair: no Unicode that a tokenizer reads")
        settings = self.config.text
        ids, _ = token_ids(
            [normalise_text(text, settings.case)], self.tokenizer, settings.max_tokens, settings.template
        )
        check_ids(ids, embedding_rows(self.model.get_base_model()), self.tokenizer)
        item: dict[str, Any] = {"input_ids": ids[0]}
        for name, frames in features.items():
            if frames is None or name not in self.config.modalities:
                continue
            array = self._frames(name, frames, standardised)
            if len(array):
                item[name] = array
        return item

    def _frames(self, name: str, frames: Any, standardised: bool) -> np.ndarray:
        facts = self.config.modalities[name]
        array = frames_of_width(name, frames, facts.dim, _made_by(facts))
        if len(array) and not standardised and FeatureRecipe.of(facts).standardised_by == VIDEO:
            raise DataError(
                f"{name}: the model reads features that are standardised within each video, which raw frames of one "
                "utterance cannot be: prepare the whole of it (`deepmlf prepare --like DATA`), or give no such features"
            )
        if facts.standardisation is not None and not standardised:
            array, _ = standardise(array, facts.standardisation)
        elif not np.isfinite(array).all():
            raise DataError(f"{name}: NaN or infinity, and the model has no standardisation that says what they mean")
        return array

    @torch.inference_mode()
    def predict_prepared(self, items: Sequence[Mapping[str, Any]]) -> list[Prediction | ClassPrediction]:
        """Predictions of what :meth:`prepare` made, in order; batches hold texts of like length.

        Raises:
            InjectionError: the model is in training mode: dropout and running statistics would be at work.
        """
        if self.model.training:
            raise InjectionError("the model is in training mode: call model.eval() before it predicts")
        results: list[Prediction | ClassPrediction | None] = [None] * len(items)
        order = np.argsort([len(item["input_ids"]) for item in items], kind="stable")
        for rows in self._batches(order):
            batch = self._collate([items[i] for i in rows])
            out = self.model.predict_with(self._adapter, **{name: x.to(self.device) for name, x in batch.items()})
            heard = [{name for name in self.config.modalities if len(items[i].get(name, ()))} for i in rows]
            for i, prediction in zip(rows, predictions_of(out, heard, self.task), strict=True):
                results[i] = prediction
            self._bound_text_cache()
        return [result for result in results if result is not None]

    def _batches(self, order: np.ndarray) -> Iterator[list[int]]:
        for start in range(0, len(order), self.batch_size):
            yield [int(i) for i in order[start : start + self.batch_size]]

    def _bound_text_cache(self) -> None:
        """Of what is kept in memory; a cache on disk, or none, was somebody's own choice."""
        text, tokens = self.model.fused_decoder.cache, self.model.fused_decoder.token_cache
        if text is None or not isinstance(text.store, MemoryStore):
            return
        if text.nbytes + (0 if tokens is None else tokens.nbytes) > TEXT_CACHE_BYTES:
            text.store.clear()
            if tokens is not None:
                tokens.clear()


# OpenMP's threads are not there after a fork, and a parallel region would wait for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def _find_compiler() -> None:
    """torch.compile writes C++ and has it compiled; without this check it says so in a traceback, after minutes."""
    name = os.environ.get("CXX", "g++")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(name) is None or not headers.is_file():
        missing = f"{name} is not there" if headers.is_file() else f"{headers} is not there"
        raise ConfigError(
            f"compile=True (--compile) needs a C++ compiler and Python's headers, and {missing}: install them "
            "(Debian: g++ python3-dev), name a compiler in CXX, or leave it out"
        )


def _made_by(facts: Any) -> str:
    """What the training features were, for an error message."""
    made_by = FeatureRecipe.of(facts).describe() or provenance_of(facts).get("source")
    return f" (features: {made_by})" if made_by else ""
