"""A tokenizer made ready for a decoder, and whether it fits one: its ids, how many positions a text takes, which words
are one token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from deepmlf_llm.errors import BaseModelError, ConfigError, DataError, Problems

SHOWN = 4  # tokens that a message lists


def prepare_tokenizer(tokenizer: Any) -> Any:
    """The same tokenizer: pads on the left with a token that it has, and starts every text with BOS, if there is one.

    Raises:
        BaseModelError: it has no token that could pad.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        special = [token for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) if token]
        if not special:
            raise BaseModelError("the tokenizer has no pad, end, begin or unknown token: give it one and save it")
        tokenizer.pad_token = special[0]
    start_with_bos(tokenizer)
    return tokenizer


def start_with_bos(tokenizer: Any) -> None:
    """Every text starts with the BOS token, if there is one.

    A causal LM's first token becomes an attention sink. Where a tokenizer adds no BOS (SmolLM2, GPT-2), that would be
    the first word, and a transcript of ten words would lose one.
    """
    bos = tokenizer.bos_token
    if bos is None or _starts(tokenizer):
        return
    if getattr(tokenizer, "is_fast", False):
        from tokenizers.processors import TemplateProcessing

        special = [(bos, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    else:  # written in Python, without a Rust backend
        tokenizer.build_inputs_with_special_tokens = _StartsWithBos(tokenizer)


def drop_named_bos(tokenizer: Any) -> None:
    """Of a GGUF file: a BOS token that also pads, and that the tokenizer itself never writes, is none.

    A header has to name one. Qwen has none, and its files name the token that ends a text and pads. Behind it
    Qwen2.5-Coder-0.5B reads transcripts with 2.6 bits a byte instead of 1.8 (docs/scale-study/llm.md); from the hub the
    same model has no BOS.
    """
    if tokenizer.bos_token is not None and tokenizer.bos_token == tokenizer.pad_token and not _starts(tokenizer):
        tokenizer.bos_token = None


def _starts(tokenizer: Any) -> bool:
    """Whether it writes BOS by itself."""
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


class _StartsWithBos:
    """Stands in for the method of one tokenizer; unlike a function in its place it can be copied and pickled."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        whole = type(self.tokenizer).build_inputs_with_special_tokens(self.tokenizer, ids, pair)
        return [self.tokenizer.bos_token_id, *whole]


def check_tokenizer(tokenizer: Any, rows: int, name: str) -> None:
    """Every ordinary token has a row in the embedding; so has the padding, which is set to one that has.

    Special tokens that were added beyond the embedding and never stand in a text do no harm: see :func:`check_ids`.

    Args:
        tokenizer: of the base, or of another one by mistake.
        rows: of the embedding.
        name: of the base, for messages.

    Raises:
        BaseModelError: tokens beyond the embedding, by name.
    """
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows and index not in added)
    if beyond:
        shown = ", ".join(f"{token!r} ({index})" for index, token in beyond[:SHOWN])
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        raise BaseModelError(
            f"base_model={name!r}: its tokenizer has ids up to {beyond[-1][0]}, its embedding {rows} rows: "
            f"{shown}{more} have none; use the tokenizer of this base, or resize the embedding and save the base"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        inside = [
            token
            for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
            if token is not None and tokenizer.convert_tokens_to_ids(token) < rows
        ]
        # Masked wherever it stands: any row of the embedding serves.
        tokenizer.pad_token = inside[0] if inside else min(vocabulary, key=vocabulary.__getitem__)


def check_text(tokenizer: Any, lm: Any, text: Any, num_fusion_tokens: int, name: str) -> None:
    """The tokenizer and the text settings fit the decoder, which may be a shape without weights.

    Raises:
        BaseModelError: as :func:`check_tokenizer`.
        ConfigError: as :func:`check_positions`.
    """
    check_tokenizer(tokenizer, embedding_rows(lm), name)
    check_positions(tokenizer, text, num_fusion_tokens, lm.config.get_text_config())


def embedding_rows(lm: Any) -> int:
    """How many token ids have a row in the input embedding, which ZeRO-3 may have split."""
    embeddings = lm.get_input_embeddings()
    weight = getattr(embeddings, "base_layer", embeddings).weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def check_ids(input_ids: Iterable[Sequence[int]], rows: int, tokenizer: Any, split: str = "") -> None:
    """Every id has a row in the embedding.

    Raises:
        DataError: the first text with one that has none; it names the token.
    """
    for number, ids in enumerate(input_ids):
        for index in ids:
            if not 0 <= index < rows:
                token = tokenizer.convert_ids_to_tokens(int(index))
                where = f"split {split!r}, row {number}" if split else f"text {number}"
                raise DataError(
                    f"{where}: the token {token!r} ({index}) has no row in the embedding of {rows}; take it out of "
                    "the texts or of the template, or resize the embedding and save the base"
                )


def check_positions(tokenizer: Any, text: Any, num_fusion_tokens: int, lm_config: Any) -> None:
    """The longest row has a position in the LM for each token: transcript, what the template adds, fusion tokens.

    Args:
        tokenizer: of the base.
        text: settings, ``max_tokens`` and ``template``.
        num_fusion_tokens: n.
        lm_config: of the base (its text part).

    Raises:
        ConfigError: it has not, or the template leaves no room for the transcript.
    """
    before, _, after = text.template.partition("{text}")
    start = len(tokenizer(before)["input_ids"])
    if before and start >= text.max_tokens:
        raise ConfigError(
            f"text.template={text.template!r}: what stands before {{text}} has {start} tokens, and text.max_tokens="
            f"{text.max_tokens} leaves none for the transcript; raise it, or shorten the template"
        )
    ending = len(tokenizer(after, add_special_tokens=False)["input_ids"]) if after else 0
    limit = getattr(lm_config, "max_position_embeddings", None)
    longest = text.max_tokens + ending + num_fusion_tokens
    if limit is not None and longest > limit:
        most = limit - ending - num_fusion_tokens
        advice = f"text.max_tokens={most} would fit" if most > 0 else "shorten the template or use fewer fusion tokens"
        template = f", {ending} tokens of the template" if ending else ""
        raise ConfigError(
            f"text.max_tokens={text.max_tokens}{template} and num_fusion_tokens={num_fusion_tokens} make {longest} "
            f"positions; this LM has {limit}: {advice}"
        )


def single_token_ids(tokenizer: Any, labels: Iterable[str]) -> dict[str, int]:
    """Label -> the one token that says it: all after a space, as an LM goes on in a sentence, or else all without.

    A space that is a token of its own (digits of many tokenizers) does not count.

    Raises:
        ConfigError: labels of several tokens, or labels that are the same token, by name.
    """
    labels = list(labels)
    found = {label: _single_token(tokenizer, f" {label}") for label in labels}
    if None in found.values():
        alone = {label: _single_token(tokenizer, label) for label in labels}
        found = alone if None not in alone.values() else found
    problems = Problems(ConfigError, "verbalised_steps")
    by_id: dict[int, str] = {}
    ids: dict[str, int] = {}
    for label, index in found.items():
        if index is None:
            pieces = tokenizer.convert_ids_to_tokens(tokenizer(label, add_special_tokens=False)["input_ids"])
            shown = " ".join(map(str, pieces)) or "nothing"
            problems.check(False, f"{label!r} is not a single token of this tokenizer ({shown}); take another label")
            continue
        other = by_id.setdefault(index, label)
        problems.check(other == label, f"{label!r} and {other!r} are the same token ({index}); take another label")
        ids[label] = index
    problems.raise_if_any()
    return ids


def _single_token(tokenizer: Any, text: str) -> int | None:
    """The one token of ``text``, spaces aside; None where it is several, or one that stands for other texts too."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    while ids and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        return None
    same = tokenizer.decode(ids).strip().casefold() == text.strip().casefold()
    return ids[0] if same else None
