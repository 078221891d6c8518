"""Without a graph, texts that are met for the first time: everything in one pass through the decoder.

The passes of ``fusion/passes.py`` that compute the text apart go over the LM's weights twice. For one utterance that is
most of the time, and where nothing is trained and the text is not kept yet, nothing is gained by it. What a cache is to
keep of the texts is written down on the way: up to the first MM Block, and where MM Blocks leave the text alone
everywhere, it is the frozen LM's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from deepmlf_llm.backbones.text_cache import TextCache, texts_of
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.fusion.passes import (
    Pass,
    PassInput,
    Split,
    States,
    Text,
    TextOnce,
    Whole,
    WholeFromBlock,
    takes_packed_rows,
    whole_pass,
)
from deepmlf_llm.fusion.token_cache import TokenCache


@dataclass(frozen=True)
class Recorded:
    """A whole pass, over rows that are padded, whose texts are kept by its end.

    Args:
        whole: the pass.
        cache: of texts.
        kept: of fusion tokens below the first MM Block; None: they are not kept.
        texts: token ids of each row, none of which ``cache`` has.
    """

    whole: Whole | WholeFromBlock
    cache: TextCache
    kept: TokenCache | None
    texts: list[tuple[int, ...]]

    def __call__(self, given: PassInput) -> States:
        length = given.text.mask.shape[1]
        entering: list[Tensor] = []
        with self.cache.writing(self.texts) as record:

            def write(layer: int, keys: Tensor, values: Tensor) -> None:
                record.write(layer, keys[:, :, :length], values[:, :, :length])

            states = self.whole(replace(given, state=replace(given.state, entering=entering), record=write))
            text, tokens = entering[0][:, :length], entering[0][:, length:]
            record.states = states.last_text[:, None] if self.cache.depth is None else text
        if self.kept is not None and isinstance(self.whole, Whole):
            self.kept.read(given.state.first, given.tokens[0], self.texts, lambda: tokens, given.reads)
        return states


def in_one_pass(run: Pass, given: PassInput, config: DeepMLFConfig, kept: TokenCache | None) -> Pass:
    """``run``, or the pass that takes its place where there is no graph and none of the texts is kept.

    Args:
        run: as :func:`~deepmlf_llm.fusion.passes.choose_pass` found it.
        given: what it would run on.
        config: of the adapter.
        kept: as there.
    """
    if not isinstance(run, TextOnce | Split):
        return run
    text: Text = given.text
    cache = text.serving(*run.reads(given.state))
    if cache is None:
        return whole_pass(run.decoder, config, takes_packed_rows(run.decoder, config))
    texts = texts_of(text.input_ids, text.mask)
    return Recorded(whole_pass(run.decoder, config, False), cache, kept, texts) if cache.new(texts) else run
