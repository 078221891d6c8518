"""One stream of utterances for every variant that is timed: the same texts, the same frames, however they are batched.

Texts have the length distribution of CMU-MOSI's transcripts (word counts of 1,513 utterances, median 10, maximum 104,
cut to 50 tokens). Their words are a short English list, so nothing is downloaded. Audio and vision are noise of a
realistic length: MOSI is spoken at about three words a second, its acoustic features come at 12.5 Hz, its visual ones
at 15 Hz. Only lengths and widths matter to a benchmark.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmlf_llm.data.collate import token_ids

# fmt: off
WORD_COUNTS = {
    1: 1, 2: 16, 3: 32, 4: 82, 5: 123, 6: 124, 7: 128, 8: 130, 9: 105, 10: 93, 11: 82, 12: 67, 13: 66, 14: 59, 15: 55,
    16: 45, 17: 32, 18: 34, 19: 28, 20: 28, 21: 21, 22: 18, 23: 14, 24: 15, 25: 20, 26: 13, 27: 8, 28: 12, 29: 10,
    30: 6, 31: 4, 32: 5, 33: 5, 34: 1, 35: 6, 36: 1, 37: 2, 38: 3, 39: 1, 40: 3, 41: 4, 42: 2, 44: 1, 45: 1, 47: 2,
    50: 1, 54: 1, 58: 1, 68: 1, 104: 1,
}
# fmt: on
"""Words in a transcript -> how many of MOSI's 1,513 transcripts have so many."""

TEXTS = {"mosi": WORD_COUNTS, "8-44": dict.fromkeys(range(8, 42), 1)}
"""Kinds of texts, words -> how many of them; the second has about 8 to 44 tokens, spread evenly."""

_COMMON = """
the a and to of it i was that this is in you but for they like so umm just movie really he she with not uhh have are
as be on one all good at what do about its kinda out if me very there story think when people some them cheesy from
because by time would an or up more see know sequels even get well then no how who had were great which cinematography
much also his her thing lot best kind film remake funny end way make scene character first acting music overrated
director watch better never always something actually prequel love loved boring awful terrible wonderful amazing
cliches pretty bad worst could been other than underwhelming only still over little big action comedy effects actor
screenplay plot line moment part ending beginning money theater children laugh cried again absolutely completely
somewhat definitely probably maybe enjoyed disappointed expected recommend minutes hour weekend
"""  # with words of several tokens, so that tokens a word are MOSI's too (SmolLM2: 1.08)
WORDS = _COMMON.split()

SECONDS_PER_WORD = 0.34
FRAME_RATES = {"audio": 12.5, "vision": 15.0}
Batches = Sequence[Sequence[Mapping[str, Any]]]  # lists of utterances
TRAINING_SPLIT = 1284  # utterances of MOSI's official training split


@dataclass(frozen=True)
class Geometry:
    """Size of the padded inputs. Default: what the published figures were taken with (500 x 74 and 500 x 35)."""

    max_tokens: int = 50
    frames: int = 500
    modalities: dict[str, int] = field(default_factory=lambda: {"audio": 74, "vision": 35})


def make_utterances(
    count: int, geometry: Geometry, seed: int = 0, texts: str = "mosi", frames: int | None = None
) -> list[dict[str, Any]]:
    """``count`` utterances as the package's data sets give them: id, text, label, frames [t x d] of each modality.

    Word counts are the histogram's quantiles, so any ``count`` keeps its shape; the order is random.

    Args:
        texts: one of :data:`TEXTS`.
        frames: of each modality; default: as many as speech has.
    """
    random = np.random.default_rng(seed)
    histogram = np.repeat(list(TEXTS[texts]), list(TEXTS[texts].values()))
    quantiles = histogram[((np.arange(count) + 0.5) / count * len(histogram)).astype(int)]
    words = random.permutation(quantiles).tolist()
    return [make_utterance(words[i], geometry, random, f"u{i}", frames) for i in range(count)]


def make_utterance(
    words: int, geometry: Geometry, random: np.random.Generator, name: str, frames: int | None = None
) -> dict[str, Any]:
    """One utterance of so many words; ``frames`` fixes the number of frames, else they follow from the words."""
    weights = 1.0 / np.arange(1, len(WORDS) + 1) ** 0.7
    text = " ".join(random.choice(WORDS, size=words, p=weights / weights.sum()))
    utterance: dict[str, Any] = {"id": name, "text": text, "label": float(random.uniform(-3, 3))}
    seconds = words * SECONDS_PER_WORD * random.lognormal(0.0, 0.25)
    for modality, width in geometry.modalities.items():
        count = frames or int(np.clip(round(seconds * FRAME_RATES[modality]), 1, geometry.frames))
        utterance[modality] = random.standard_normal((count, width), dtype=np.float32)
    return utterance


def with_token_ids(utterances: Sequence[dict[str, Any]], tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """The utterances with their ``input_ids``, made once, as the package's ``tokenise`` does."""
    ids, _ = token_ids([u["text"] for u in utterances], tokenizer, max_tokens)
    return [{**utterance, "input_ids": row} for utterance, row in zip(utterances, ids, strict=True)]


def grouped(utterances: Sequence[Mapping[str, Any]], batch: int) -> list[list[Mapping[str, Any]]]:
    """Batches of like text length, shortest first, as the package's sampler makes them; the shortest few, which make no
    whole batch, are left out."""
    ordered = sorted(utterances, key=lambda u: len(u["input_ids"]))
    return [ordered[i : i + batch] for i in range(len(ordered) % batch, len(ordered), batch)]


def representative(batches: Sequence[Any], count: int) -> list[Any]:
    """``count`` of an epoch's length-grouped batches, evenly spread from short to long."""
    step = len(batches) / count
    return [batches[int((i + 0.5) * step)] for i in range(count)]


class PublishedBatches:
    """Batches as the published loop makes them: features padded beforehand, random rows, the text tokenised each time.

    Args:
        utterances: the same ones as everybody's.
        tokenizer: of the LM.
        geometry: to which everything is padded.
        batch: rows of a batch.
    """

    def __init__(self, utterances: Sequence[Mapping[str, Any]], tokenizer: Any, geometry: Geometry, batch: int) -> None:
        self.tokenizer, self.geometry, self.batch = tokenizer, geometry, batch
        self.texts = [u["text"] for u in utterances]
        self.labels = torch.tensor([u["label"] for u in utterances], dtype=torch.float32)
        self.features = {
            name: torch.from_numpy(
                np.stack([np.pad(u[name], ((0, geometry.frames - len(u[name])), (0, 0))) for u in utterances])
            )
            for name in geometry.modalities
        }
        self.lengths = {name: torch.tensor([len(u[name]) for u in utterances]) for name in geometry.modalities}
        self.order = np.random.default_rng(0).permutation(len(utterances)).tolist()
        self.rows = itertools.cycle(self.order)

    def next(self) -> tuple[dict[str, Tensor], Tensor]:
        """The next batch (right-padded) and its labels [b]."""
        rows = list(itertools.islice(self.rows, self.batch))
        text = self.tokenizer(
            [self.texts[row] for row in rows],
            padding="max_length",
            max_length=self.geometry.max_tokens,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
        )
        batch = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
        for name, values in self.features.items():
            batch[name], batch[f"{name}_lengths"] = values[rows], self.lengths[name][rows]
        return batch, self.labels[rows]
