"""What the frozen LMs of a study know before anything is trained: how they read transcripts behind different first
tokens, and what they say to the study's question.

    python scripts/ask_lms.py --grid scale/llm

Two Markdown tables. Bits per byte leave out a transcript's first token, which behind nothing has no probability. The
answer to a question is the next token: the share on the two words, and how the log-odds of the first over the second
correlate with the label.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from deepmlf_llm import shipped  # noqa: E402
from deepmlf_llm.backbones import load_base_model, load_tokenizer  # noqa: E402
from deepmlf_llm.data.collate import token_ids  # noqa: E402
from deepmlf_llm.errors import ConfigError  # noqa: E402
from deepmlf_llm.markdown import table  # noqa: E402
from deepmlf_llm.training.assemble import resolve_base_model  # noqa: E402
from deepmlf_llm.training.data import load_data  # noqa: E402
from deepmlf_llm.training.settings import RunSettings  # noqa: E402

NOTHING, LINE = "nothing", "a line break"


def bits_per_byte(lm: Any, rows: Sequence[Sequence[int]], sizes: Sequence[int], start: int | None) -> float:
    """Of all tokens but each row's first, behind ``start``; ``sizes``: the bytes of those tokens, per row."""
    nats = 0.0
    for row in rows:
        ids = torch.tensor([[*([] if start is None else [start]), *row]])
        first = ids.shape[1] - len(row) + 1
        nats += float(
            F.cross_entropy(lm(input_ids=ids).logits[0, first - 1 : -1].float(), ids[0, first:], reduction="sum")
        )
    return nats / math.log(2) / sum(sizes)


def answers(lm: Any, rows: Sequence[Sequence[int]], words: tuple[int, int]) -> tuple[float, torch.Tensor]:
    """Mean share of the next token on the two words, and their log-odds [texts]."""
    found = torch.stack([F.log_softmax(lm(input_ids=torch.tensor([row])).logits[0, -1].float(), -1) for row in rows])
    said = found[:, list(words)]
    return float(said.exp().sum(1).mean()), said[:, 0] - said[:, 1]


def starts(tokenizer: Any) -> dict[str, int | None]:
    """What may stand before a transcript: nothing, a line break, and the tokenizer's own special tokens."""
    wanted = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, "<|endoftext|>"}
    special = sorted(wanted & {*tokenizer.all_special_tokens})
    line = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    return {NOTHING: None, LINE: line} | {f"`{token}`": tokenizer.convert_tokens_to_ids(token) for token in special}


def asking(grid: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The base models of a grid's first row that bring a question of their own."""
    listed = grid["grid"][0]["backbone"]
    named = listed if isinstance(listed, list) else [listed]
    return [b for b in named if isinstance(b, Mapping) and "text.template" in b.get("settings", {})]


@torch.no_grad()
def asked(
    settings: RunSettings, question: Mapping[str, Any], count: int, words: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """One LM: start -> bits per byte, and its answer's share and correlation."""
    base = resolve_base_model(settings.base_model)
    tokenizer = load_tokenizer(base, settings.revision)
    lm = load_base_model(base, quantization="none", dtype=settings.dtype, revision=settings.revision)
    data: Any = load_data(settings).train
    count = min(count, len(data.texts))
    chosen = [int(i * len(data.texts) / count) for i in range(count)]
    texts, labels = [data.texts[i] for i in chosen], torch.tensor([float(data.labels[i]) for i in chosen])
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    sizes = [
        len(text.encode()) - len(tokenizer.decode(ids[:1]).encode()) for text, ids in zip(texts, bare, strict=True)
    ]
    reads = {start: bits_per_byte(lm, bare, sizes, token) for start, token in starts(tokenizer).items()}
    pair = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    if any(len(ids) != 1 for ids in pair):
        raise ConfigError(f"--words {' '.join(map(repr, words))}: not one token each for {settings.base_model}")
    questions, _ = token_ids(texts, tokenizer, question["max_tokens"], question["template"])
    share, odds = answers(lm, questions, (pair[0][0], pair[1][0]))
    correlation = float(torch.corrcoef(torch.stack([odds, labels]))[0, 1])
    return reads, [f"{share:.2f}", f"{correlation:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--grid", default="scale/llm", help="the study: its LMs, data and questions (default: scale/llm)"
    )
    parser.add_argument(
        "--texts", type=int, default=40, help="training transcripts, from all over the split (default: 40)"
    )
    parser.add_argument("--words", nargs=2, default=[" positive", " negative"], help="of the answer")
    given = parser.parse_args(arguments)
    grid = yaml.safe_load(shipped.locate(shipped.CONFIGS, given.grid).read_text(encoding="utf-8"))
    backbones = asking(grid)
    if not backbones:
        parser.error(f"--grid {given.grid}: no base model with a question of its own (settings: text.template)")
    reading, saying = [], []
    for backbone in backbones:
        about = {**grid["fixed"], "base_model": backbone["base_model"], "modalities": "none"}
        question = {**about.get("text", {}), "template": backbone["settings"]["text.template"]}
        settings = RunSettings.from_dict({**about, "text": question, "fusion_layers": "even:1"}, given.grid)
        name = Path(backbone["base_model"]).stem
        reads, said = asked(settings, question, given.texts, given.words)
        best = min(reads, key=lambda start: reads[start])
        values = (
            f"{start} {'**' * (start == best)}{bits:.2f}{'**' * (start == best)}" for start, bits in reads.items()
        )
        reading.append([name, ", ".join(values)])
        saying.append([name, *said])
        print(name, flush=True, file=sys.stderr)
    print(table(["base model", "bits per byte behind"], reading))
    print()
    print(table(["base model", "on both words", "corr"], saying))
    return 0


if __name__ == "__main__":
    sys.exit(main())
