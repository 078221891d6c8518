"""Measures how well each frozen base model of a study predicts its transcripts: once, after its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from deepmlf_llm.backbones import Decoder, load_base_model, load_tokenizer
from deepmlf_llm.data.collate import token_ids
from deepmlf_llm.errors import DeepMLFError
from deepmlf_llm.study.cells import PlannedCell
from deepmlf_llm.study.configurations import BACKBONE
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.perplexity import read_measured, what_was_read, write_measured
from deepmlf_llm.study.results import CELL
from deepmlf_llm.training.assemble import resolve_base_model
from deepmlf_llm.training.data import load_data
from deepmlf_llm.training.settings import RunSettings

MOST_TEXTS = 2000
_LONGEST = 512  # tokens with what stands before them; a longer transcript is left out
_ROWS, _SAME = 64, 0.2  # each so many rows are compared; a GGUF file quantizes the same matrix twice, to other bits
_TRIED = 64  # transcripts that a start is tried on
_AT_ONCE = 384  # tokens of a batch: with a vocabulary of 260,000 their logits take 400 MB


def measure(directory: StudyDirectory, say: Callable[[str], Any] = print) -> None:
    """Measures what is not stored yet, of the base models whose cells have finished; one that cannot be loaded is left
    out, and said.

    Args:
        directory: of the study.
        say: gets a line for each.
    """
    known = read_measured(directory)
    ended = [cell for cell in directory.planned() if (directory.cell(cell.name) / CELL).is_file()]
    for cell in _one_of_each(ended):
        settings = RunSettings.from_dict({n: v for n, v in cell.settings.items() if n != "baseline"}, "settings")
        if settings.lm_init != "pretrained":
            continue
        try:
            data = load_data(settings)
            about = {**{n: cell.values[n] for n in BACKBONE}, "data": data.facts["splits"]["train"]["sha256"]}
            if what_was_read(about) in map(what_was_read, known):
                continue
            say(f"reading the transcripts with {about['base']}, {about['layers']} layers, for its perplexity")
            known.append({**about, **_measured(settings, list(data.train.texts))})  # type: ignore[attr-defined]
        except DeepMLFError as error:
            say(f"note: no perplexity of {cell.values['base']}: {error}")
            continue
        write_measured(directory, known)


def _one_of_each(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """A cell for each base model and data set: one that is no baseline, if there is one."""
    found: dict[str, PlannedCell] = {}
    for cell in sorted(cells, key=lambda cell: "baseline" in cell.settings):
        found.setdefault(repr(([cell.values[name] for name in BACKBONE], cell.settings.get("data"))), cell)
    return list(found.values())


def _measured(settings: RunSettings, texts: Sequence[str]) -> dict[str, Any]:
    base = resolve_base_model(settings.base_model)
    tokenizer = load_tokenizer(base, settings.revision)
    lm = load_base_model(
        base,
        quantization=settings.quantization,
        dtype=settings.dtype,
        revision=settings.revision,
        num_layers=settings.num_layers,
    )
    if torch.cuda.is_available() and settings.quantization == "none":
        lm = lm.to("cuda")
    step = max(1, len(texts) / MOST_TEXTS)
    chosen = [texts[int(i * step)] for i in range(min(len(texts), MOST_TEXTS))]
    return {**_sizes(lm), **transcript_surprise(lm, tokenizer, chosen)}


def _sizes(lm: Any) -> dict[str, int]:
    total = sum(p.numel() for p in lm.parameters())
    embedding, output = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    apart = output is not embedding and output.shape == embedding.shape
    repeated = apart and _differ(output[::_ROWS], embedding[::_ROWS]) < _SAME
    layers = sum(p.numel() for p in Decoder(lm).layers.parameters())
    return {"parameters": total - (output.numel() if repeated else 0), "layer_parameters": layers}


def _differ(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the size of the second."""
    return float((one.float() - other.float()).norm() / other.float().norm())


@torch.no_grad()
def transcript_surprise(lm: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """``nats``, ``tokens``, ``words``, ``bytes``, ``utterances`` of whole transcripts, and ``start``, the token that
    stands before each: of BOS (or what else marks an end) and a line break the one behind which this LM reads better.

    What an LM was trained to find at the beginning differs, and costs more than sizes do: see docs/scale-study/llm.md.

    Args:
        lm: a causal LM.
        tokenizer: its own, as ``load_tokenizer`` prepares it.
        texts: transcripts.
    """
    whole, _ = token_ids(texts, tokenizer, _LONGEST + 2)  # so that one that was cut is longer than the rest may be
    starts = _starts(tokenizer)
    ids = [row[1:] if row[:1] == starts[:1] else row for row in whole]
    rows = [(row, text) for row, text in zip(ids, texts, strict=True) if 0 < len(row) < _LONGEST and text.strip()]
    rows.sort(key=lambda row: len(row[0]))
    bare = [row for row, _ in rows]
    sample = bare[:: max(1, len(bare) // _TRIED)]
    start = min(starts, key=lambda token: _total(lm, sample, token)) if len(starts) > 1 else starts[0]
    return {
        "nats": _total(lm, bare, start),
        "start": str(tokenizer.convert_ids_to_tokens(start)),
        "tokens": sum(map(len, bare)),
        "words": sum(len(text.split()) for _, text in rows),
        "bytes": sum(len(text.encode()) for _, text in rows),
        "utterances": len(rows),
    }


def _starts(tokenizer: Any) -> list[int]:
    """The token that marks a beginning, or else an end, or else pads; and a line break, if that is a token."""
    t = tokenizer
    marks = (t.bos_token_id, t.cls_token_id, t.eos_token_id, t.sep_token_id, t.pad_token_id)
    first = next(token for token in marks if token is not None)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return list(dict.fromkeys([first, *line[-1:]]))


def _total(lm: Any, rows: Sequence[Sequence[int]], start: int) -> float:
    """Surprise of all tokens of rows that are sorted by length, each behind ``start``."""
    nats, at = 0.0, 0
    while at < len(rows):
        least = 1 + len(rows[at])
        count = max(1, _AT_ONCE // (1 + len(rows[min(at + _AT_ONCE // least, len(rows)) - 1])))
        nats += _surprise(lm, [[start, *row] for row in rows[at : at + count]], start)
        at += count
    return nats


def _surprise(lm: Any, batch: Sequence[Sequence[int]], padding: int) -> float:
    """Of a batch padded on the right: what stands behind a causal LM's token does not change it."""
    longest, device = max(map(len, batch)), next(lm.parameters()).device
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in batch], device=device)
    real = torch.tensor([[i < len(row) for i in range(longest)] for row in batch], device=device)
    logits = lm(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, :-1][real[:, 1:]]
    return float(F.cross_entropy(logits.float(), ids[:, 1:][real[:, 1:]], reduction="sum"))
