"""Keeping what the frozen LM makes of each text: computed once, reused every epoch and for every feature set.

Keyed by the token ids themselves. Valid while nothing changes the text stream: no LoRA on the LM, no augmentation of
the text. The owner of a cache must ensure that; :class:`TextCache` cannot know. It notices where the LM's weights are
written to or change their dtype, and starts again then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepmlf_llm.backbones.cpu import computes_bfloat16
from deepmlf_llm.backbones.disk_store import DiskStore
from deepmlf_llm.backbones.interface import Decoder
from deepmlf_llm.backbones.stream import RecordingCache, TextStream, read_noting
from deepmlf_llm.backbones.text_key import WeightWrites, stream_key
from deepmlf_llm.backbones.text_store import (
    STORAGE,
    Entry,
    MemoryStore,
    Text,
    TextRecord,
    fetched,
    free_on_gpu,
    unpacked,
)
from deepmlf_llm.errors import ConfigError, FileError

BATCH_TOKENS = 512  # texts are read in batches of about this many tokens, of like length: they stay in a CPU's caches
GPU_BATCH_TOKENS = 8192  # a GPU wants more to do at once
GPU_SHARE = 0.5  # of a GPU's free memory that may be kept texts; training needs the rest


class TextCache:
    """Text streams by token ids.

    A directory that cannot be written, from the start or from some moment on, costs a warning: what is missing then is
    kept in host memory. What an earlier run has left in it is read where it can be, and needs no writing.

    Args:
        decoder: the frozen LM.
        depth: layers of it that are kept (None: all, and only the last token's state after the final norm).
        directory: keep them on disk here, memory-mapped; None: in host memory.
        storage: dtype of keys and values: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``; None: the LM's.
        lowest: keys and values of the layers below it are not kept.
        notes: layers after which the last text token's state is kept too, where all layers are.

    Raises:
        ConfigError: unknown ``storage``.
    """

    def __init__(
        self,
        decoder: Decoder,
        depth: int | None = None,
        directory: str | Path | None = None,
        storage: str | None = None,
        lowest: int = 0,
        notes: Sequence[int] = (),
    ) -> None:
        if storage is not None and storage not in STORAGE:
            raise ConfigError(f"text_cache_dtype={storage!r}: expected one of {', '.join(map(repr, STORAGE))}")
        self.decoder = decoder
        self.depth = depth
        self.lowest = lowest
        self.place = torch.device("cpu")  # of what is kept in memory; :meth:`check_room` may choose the GPU
        self.notes = tuple(notes) if depth is None else ()
        self.storage = storage
        self._sizes: tuple[int, int] | None = None  # of texts of one token and of two
        self.store: MemoryStore | DiskStore = MemoryStore()
        self._directory = directory
        self._writes = WeightWrites(decoder)
        # A shape without weights keeps nothing; it is asked what that would take.
        self.key = {} if decoder.embeddings.weight.is_meta else self._key()
        self._open()

    def _open(self) -> None:
        if self._directory is None:
            return
        try:
            self.store = DiskStore(self._directory, self.key)
        except FileError as error:
            self._go_on_in_memory(error)

    def follow_weights(self) -> None:
        """Goes on with what belongs to the LM's weights as they are now: after a state dict was loaded into it, or its
        dtype changed, nothing that was kept does. Weights that were only written anew (by DDP) are the same."""
        if not self._writes.any():
            return
        key = self._key()
        if key != self.key:
            self.store, self._sizes, self.key = MemoryStore(), None, key
            self._open()

    def _key(self) -> dict[str, Any]:
        return {
            **stream_key(self.decoder, self.depth),
            "depth": self.depth,
            "storage": self.storage,
            **({"lowest": self.lowest} if self.lowest else {}),
            **({"end": self.decoder.end} if self.decoder.end else {}),
            **({"computed": "bfloat16"} if self._in_bfloat16 else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    @property
    def _in_bfloat16(self) -> bool:
        """Whether an fp32 LM reads in bf16: where this CPU computes that natively, and what is kept is no finer."""
        weight = self.decoder.embeddings.weight
        coarse = self.storage in ("bfloat16", "int8")
        return coarse and weight.dtype == torch.float32 and weight.device.type == "cpu" and computes_bfloat16()

    @property
    def _batch_tokens(self) -> int:
        return GPU_BATCH_TOKENS if self.decoder.embeddings.weight.device.type == "cuda" else BATCH_TOKENS

    def serves(self, decoder: Decoder, depth: int | None, lowest: int, notes: tuple[int, ...] = ()) -> bool:
        """Whether what is kept is the stream up to ``depth`` of a decoder that runs so far, with the keys and values
        from ``lowest`` on, and with the states after the layers ``notes``."""
        same = (self.decoder.end, self.depth) == (decoder.end, depth) and self.lowest <= lowest
        return same and (depth is not None or self.notes == notes)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def nbytes(self) -> int:
        return self.store.nbytes

    @property
    def kind(self) -> str:
        """``"memory"`` or ``"disk"``: where it is kept by now."""
        return self.store.kind

    def missing(self, texts: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
        """Those not kept yet, each once, the shortest first."""
        return sorted(self.store.missing({tuple(text) for text in texts}), key=len)

    def check_room(self, texts: Iterable[Sequence[int]]) -> None:
        """Whether what is missing of ``texts`` can be kept.

        Raises:
            ConfigError: it takes more than is free; the message says both.
        """
        missing = [text for text in self.missing(texts) if text]
        needed = self.predicted_bytes(missing) if missing else 0
        device = self.decoder.embeddings.weight.device
        if needed and self.kind == "memory" and needed <= GPU_SHARE * free_on_gpu(device):
            self.place = device
            return
        free = self.store.free_bytes()
        if needed > free:
            raise ConfigError(
                f"text cache {self.store.where}: {len(missing)} texts take {needed / 2**20:.0f} MB, and "
                f"{free / 2**20:.0f} MB are free; keep them elsewhere (text_cache) or narrower (text_cache_dtype)"
            )

    def predicted_bytes(self, texts: Iterable[Sequence[int]]) -> int:
        """What keeping these texts will take, from the size of one token's and one text's worth."""
        if self._sizes is None:
            one, two = (self._read([tuple([1] * count)])[0][1].nbytes for count in (1, 2))
            self._sizes = one, two
        one, two = self._sizes
        return sum(one + (two - one) * (len(text) - 1) for text in {tuple(text) for text in texts})

    def read(self, input_ids: Tensor, mask: Tensor) -> TextStream:
        """The batch's text stream, computed only for texts not met before.

        Args:
            input_ids: left-padded [b x l].
            mask: 1 where a token is real [b x l].
        """
        rows = texts_of(input_ids, mask)
        return self._assemble([*map(self._entries(rows).__getitem__, rows)], rows, input_ids)

    def _entries(self, texts: Sequence[Text]) -> dict[Text, Entry]:
        """The entry of each text. All are looked up before any is used: another thread may drop what is kept at
        any time."""
        wanted = set(texts)
        entries = self.store.found(wanted)
        for batch in _batches(wanted - entries.keys(), self._batch_tokens):
            computed = self._read(batch)
            self._keep(computed)
            entries.update(computed)
        return entries

    def _keep(self, entries: Sequence[tuple[Text, Entry]]) -> bool:
        """Whether they are where they should be: False where the disk has refused them and memory has them."""
        store = self.store
        try:
            store.put(entries)
            return True
        except FileError as error:
            if store is self.store:  # else another thread has met the same
                self._go_on_in_memory(error)
            self.store.put(entries)
            return False

    def _go_on_in_memory(self, error: FileError) -> None:
        self.store = MemoryStore()
        warnings.warn(f"text cache: {error}; going on with the text kept in memory", stacklevel=4)

    def add(self, texts: Iterable[Sequence[int]], progress: Callable[[int], Any] | None = None) -> None:
        """Computes what is missing, in batches of like length; ``progress`` is called with the number of texts in each.

        Raises:
            ConfigError: a text without tokens; or the disk takes no more and memory has no room for them.
        """
        self.follow_weights()
        texts = list(texts)
        for batch in _batches(self.missing(texts), self._batch_tokens):
            kept = self._keep(self._read(batch))
            if progress is not None:
                progress(len(batch))
            if not kept:  # what is on the disk has to be computed again
                self.check_room(texts)
                return self.add(texts)
        return None

    @torch.no_grad()
    def _read(self, texts: list[Text]) -> list[tuple[Text, Entry]]:
        device = self.decoder.embeddings.weight.device
        length = max(map(len, texts))
        input_ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            input_ids[row, length - len(text) :] = torch.tensor(text)
            mask[row, length - len(text) :] = 1
        input_ids, mask = input_ids.to(device), mask.to(device)
        record = self._record()
        # No autocast but our own: what is kept serves passes with and without it.
        with torch.autocast(device.type, torch.bfloat16, enabled=self._in_bfloat16):
            embeddings = self.decoder.embeddings(input_ids)
            states = read_noting(
                self.decoder, embeddings, mask, self.depth, self.notes, lambda: RecordingCache(record.write)
            )
        return self._recorded(texts, record, states)

    def _record(self) -> TextRecord:
        layers = (self.depth or self.decoder.end or self.decoder.num_layers) - self.lowest
        return TextRecord(self.lowest, layers, self.storage)

    def _recorded(self, texts: list[Text], record: TextRecord, states: Tensor) -> list[tuple[Text, Entry]]:
        entries = record.entries([*map(len, texts)], states, self.place, of_ends=self.depth is None)
        return list(zip(texts, entries, strict=True))

    def new(self, texts: Sequence[Text]) -> bool:
        """Whether a pass that reads these texts beside other tokens may write down what is to be kept of them, see
        :meth:`writing`: each is there once, and none is kept."""
        device = self.decoder.embeddings.weight.device.type
        # As the cache itself reads them: without autocast, or in bf16 by its own choice.
        alike = not torch.is_autocast_enabled(device) and not self._in_bfloat16
        in_memory = isinstance(self.store, MemoryStore)
        return alike and in_memory and not self.notes and len(self.store.missing(set(texts))) == len(texts)

    @contextmanager
    def writing(self, texts: list[Text]) -> Iterator[TextRecord]:
        """Keeps, at its end, what a pass over these texts has written into the record.

        Args:
            texts: in the order of the pass's rows, which are padded on the left.
        """
        record = self._record()
        yield record
        self._keep(self._recorded(texts, record, record.states))

    def _assemble(self, entries: list[Entry], rows: list[Text], input_ids: Tensor) -> TextStream:
        batch, length = input_ids.shape
        layers, two, heads, _, width = entries[0].keys_values.shape
        dtype = entries[0].states.dtype
        device = input_ids.device
        room: dict[str, Any] = {"dtype": dtype, "device": entries[0].states.device}
        if device.type == "cuda" and room["device"].type == "cpu":
            room["pin_memory"] = True
        keys_values = torch.zeros(layers, two, batch, heads, length, width, **room)
        kept = 1 + len(self.notes) if self.depth is None else length
        states = torch.zeros(batch, kept, entries[0].states.shape[-1], **room)
        for row, entry in enumerate(entries):
            keys_values[:, :, row, :, length - entry.keys_values.shape[3] :] = unpacked(entry)
            states[row, kept - entry.states.shape[0] :] = entry.states
        keys_values, states = fetched(device, keys_values, states)
        return TextStream([(layer[0], layer[1]) for layer in keys_values], states, rows, self.lowest)


def _batches(texts: Iterable[Text], tokens: int) -> Iterator[list[Text]]:
    """Texts of like length together, about so many ``tokens`` a batch, the longest first.

    Raises:
        ConfigError: a text without tokens.
    """
    left = sorted(texts, key=len)
    if left and not left[0]:
        raise ConfigError("a text has no tokens: every row needs at least one real token")
    while left:
        count = max(1, tokens // len(left[-1]))
        yield left[-count:]
        left = left[:-count]


def texts_of(input_ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """The real token ids of each row."""
    return [
        tuple(token for token, real in zip(row, keep, strict=True) if real)
        for row, keep in zip(input_ids.tolist(), mask.tolist(), strict=True)
    ]
