"""From utterances to a batch: token ids, padding, masks. Tokenising is done once, not once an epoch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepmlf_llm.data.unimodal import KEY as UNIMODAL
from deepmlf_llm.errors import DataError
from deepmlf_llm.locks import Lock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_TOKENS = 50
TRANSCRIPT = "{text}"  # a template that adds nothing
_TOKENISING = Lock()
# Nor may a process fork meanwhile: the lock inside such a tokenizer would stay locked in the child for ever.
os.register_at_fork(before=_TOKENISING.__enter__, after_in_parent=_TOKENISING.__exit__)
MOST_CHARACTERS = 1 << 20
_SPARE_TOKENS = 16  # how a tokenizer splits words depends on a few characters around them, not on more


class UtteranceDataset(Protocol):
    """What :func:`tokenise` needs: utterances by index, and all their transcripts."""

    texts: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class TokenisedDataset(Dataset[dict[str, Any]]):
    """A data set whose items also hold ``"input_ids"``, a list of at least one id.

    Attributes:
        dataset: the data set below.
        input_ids: token ids of each transcript, not padded.
        lengths: their number for each transcript, for grouping by length [N].
        truncated: how many transcripts were longer than the limit.
        max_tokens: the limit.
    """

    def __init__(self, dataset: UtteranceDataset, input_ids: list[list[int]], truncated: int, max_tokens: int) -> None:
        self.dataset = dataset
        self.input_ids = input_ids
        self.lengths = [len(ids) for ids in input_ids]
        self.truncated = truncated
        self.max_tokens = max_tokens

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "input_ids": self.input_ids[index]}


def tokenise(
    dataset: UtteranceDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    template: str = TRANSCRIPT,
) -> TokenisedDataset:
    """Tokenises every transcript of a data set, once. See :func:`token_ids`."""
    input_ids, truncated = token_ids(dataset.texts, tokenizer, max_tokens, template)
    return TokenisedDataset(dataset, input_ids, truncated, max_tokens)


def token_ids(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    template: str = TRANSCRIPT,
) -> tuple[list[list[int]], int]:
    """Token ids of each text in its template, and how many texts were longer than ``max_tokens``.

    One thread at a time: a tokenizer of the Rust kind switches truncation on and off in itself, for everybody.

    No more of a text is read than the limit needs: its beginning, until that makes more tokens than are kept and
    sixteen to spare, and never more than :func:`most_characters`. So the cut is far behind the last token kept.

    An empty transcript becomes one special token: the model reads the state of the last real token, so there must be
    one. The tokenizer cuts, so special tokens that it puts at the end survive.

    Args:
        texts: transcripts.
        tokenizer: of the base model.
        max_tokens: limit of what stands before the end of the transcript; what the template puts after it is never cut.
        template: holds ``{text}`` once.
    """
    with _TOKENISING:
        return _token_ids(texts, tokenizer, max_tokens, template)


def _token_ids(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, template: str
) -> tuple[list[list[int]], int]:
    before, _, after = template.partition(TRANSCRIPT)
    first = 64 * max_tokens + 4096
    whole = [before + text for text in texts]
    texts = [text[:first] for text in whole]
    if not texts:
        return [], 0
    ending: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    full: list[list[int]] = tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
    result, truncated = [], 0
    for text, ids, everything in zip(texts, full, whole, strict=True):
        if len(text) < len(everything) and len(ids) <= max_tokens + _SPARE_TOKENS:
            text, ids = _more_of(everything, first, tokenizer, max_tokens)
        if len(ids) > max_tokens:
            truncated += 1
            ids = tokenizer(text, padding=False, truncation=True, max_length=max_tokens)["input_ids"]
        result.append([*ids, *ending] or [_special_token(tokenizer)])
    return result, truncated


def most_characters(max_tokens: int) -> int:
    """Characters of a transcript that are looked at, at most: one of millions costs gigabytes in a tokenizer."""
    return max(MOST_CHARACTERS, 64 * max_tokens + 4096)


def _more_of(text: str, length: int, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[str, list[int]]:
    """A longer beginning of a text of which ``length`` characters make too few tokens, and its token ids."""
    most = min(len(text), most_characters(max_tokens))
    while True:
        length = min(8 * length, most)
        ids: list[int] = tokenizer(text[:length], padding=False, truncation=False, verbose=False)["input_ids"]
        if length == most or len(ids) > max_tokens + _SPARE_TOKENS:
            return text[:length], ids


def _special_token(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0


class Collator:
    """Pads a list of utterances into a batch.

    Notation used for tensor shapes:
        - b: batch size
        - l: most tokens in the batch
        - t: most frames of that modality in the batch, at least 1
        - d: dimension of the modality

    Args:
        tokenizer: of the base model; gives the padding id, and the token ids of items that have no ``"input_ids"``.
            None: batches without any text.
        modalities: name -> d, or name -> anything that has a ``dim`` (``store.modalities``, ``config.modalities``).
            Other modalities of the items are left out.
        max_tokens, template: for items that are not tokenised yet, see :func:`token_ids`.
        unimodal: batches hold ``unimodal_labels`` [b x 3] of the items, too.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        modalities: Mapping[str, Any],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        template: str = TRANSCRIPT,
        unimodal: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.unimodal = unimodal
        self.modalities = {name: _dimension(facts) for name, facts in modalities.items()}
        self.max_tokens = max_tokens
        self.template = template

    @classmethod
    def of(cls, config: Any, tokenizer: PreTrainedTokenizerBase | None) -> Collator:
        """The batches that a model with these settings reads."""
        text = config.text
        alone = bool(config.unimodal_targets) and tokenizer is not None  # the AV encoder alone reads no such labels
        return cls(tokenizer, config.modalities, text.max_tokens, text.template, alone)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch.

        Args:
            items: ``"text"`` or ``"input_ids"``; for each modality frames [t x d], no frames, None or no key;
                ``"label"`` in all of them or in none.

        Returns:
            input_ids [b x l] int64 and attention_mask [b x l] int64, padded on the LEFT; for each modality
            ``<name>`` [b x t x d] float32, padded with 0 on the right, and ``<name>_mask`` [b x t] bool, True where a
            frame is real (nowhere in the row of an absent modality); labels [b] float32, or [b x c] with several
            labels, where the items have them.

        Raises:
            DataError: frames of another dimension; labels in some items only; no items.
        """
        if not items:
            raise DataError("cannot make a batch of no items")
        batch = {} if self.tokenizer is None else self._text(items, self.tokenizer)
        for name, dim in self.modalities.items():
            batch[name], batch[f"{name}_mask"] = _pad_frames(items, name, dim)
        labelled = [item.get("label") is not None for item in items]
        if all(labelled):
            labels = [np.asarray(item["label"], dtype=np.float32) for item in items]
            batch["labels"] = torch.from_numpy(np.stack(labels))
            if self.unimodal:
                alone = [np.asarray(item[UNIMODAL], dtype=np.float32) for item in items]
                batch[UNIMODAL] = torch.from_numpy(np.stack(alone))
        elif any(labelled):
            raise DataError(f"{labelled.count(False)} of {len(items)} items of a batch have no label")
        return batch

    def _text(self, items: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
        rows = [item.get("input_ids") for item in items]
        if any(row is None for row in rows):
            made, _ = token_ids([item["text"] for item in items], tokenizer, self.max_tokens, self.template)
            rows = [new if row is None else row for row, new in zip(rows, made, strict=True)]
        ids = [np.asarray(row, dtype=np.int64) for row in rows]
        longest = max(len(row) for row in ids)
        pad = tokenizer.pad_token_id
        input_ids = np.full((len(ids), longest), 0 if pad is None else pad, dtype=np.int64)
        # The mask comes from the lengths, never from comparing with the padding id: that is often the end token too.
        attention_mask = np.zeros((len(ids), longest), dtype=np.int64)
        for row, tokens in enumerate(ids):
            input_ids[row, longest - len(tokens) :] = tokens
            attention_mask[row, longest - len(tokens) :] = 1
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}


def _dimension(facts: Any) -> int:
    if isinstance(facts, int):
        return facts
    return int(facts["dim"] if isinstance(facts, Mapping) else facts.dim)


def _pad_frames(items: Sequence[Mapping[str, Any]], name: str, dim: int) -> tuple[Tensor, Tensor]:
    rows = []
    for item in items:
        frames = item.get(name)
        frames = np.empty((0, dim), dtype=np.float32) if frames is None else np.asarray(frames, dtype=np.float32)
        if frames.size and (frames.ndim != 2 or frames.shape[1] != dim):
            raise DataError(
                f"{name} of {item.get('id', 'an utterance')!r} has shape {frames.shape}, expected (frames, {dim})"
            )
        rows.append(frames.reshape(-1, dim))
    longest = max(1, *(len(frames) for frames in rows))  # one masked frame where the whole batch has none
    padded = np.zeros((len(rows), longest, dim), dtype=np.float32)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for row, frames in enumerate(rows):
        padded[row, : len(frames)] = frames
        mask[row, : len(frames)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)
