"""A decoder whose last positions are kept apart: what one reads is what it reads where the others are not there."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder, PrefixCache, read_text, run_layers
from deepmlf_llm.errors import ConfigError
from tests.families import FAMILY_NAMES, WIDTH, tiny_batch, tiny_family

GROUP = torch.tensor([0, 0, 1, 1, 2])  # of the last five positions; the last group reads all
READS = (GROUP[:, None] == GROUP) | (GROUP[:, None] == 2)


def rows(decoder):
    """[text ; five positions], their mask."""
    batch = tiny_batch()
    inputs = torch.cat([decoder.embeddings(batch["input_ids"]), torch.randn(3, 5, WIDTH)], dim=1)
    return inputs, torch.cat([batch["attention_mask"], torch.ones(3, 5).long()], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_group_is_as_if_the_others_were_padding(family):
    """Against the LM's own padding mask, sliding windows included; and on a kept text."""
    lm = tiny_family(family)
    decoder = Decoder(lm)
    inputs, mask = rows(decoder)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = run_layers(decoder, inputs, mask, reads=READS)
    for group in (0, 1):
        alone = mask.clone()
        alone[:, -5:] = (group == GROUP).long()
        expected = lm(inputs_embeds=inputs, attention_mask=alone, position_ids=places, output_hidden_states=True)
        where = torch.cat([torch.zeros(8).bool(), group == GROUP])
        assert_close(found[:, where], expected.hidden_states[-1][:, where], rtol=1e-4, atol=1e-4)
    real = mask[:, :8].bool()
    plain = run_layers(decoder, inputs, mask)
    assert_close(found[:, :8][real], plain[:, :8][real], rtol=1e-4, atol=1e-4)
    stream = read_text(decoder, inputs[:, :8], mask[:, :8])
    prefix = PrefixCache(stream.keys_values, 8)
    assert_close(
        run_layers(decoder, inputs[:, 8:], mask, cache=prefix, reads=READS), found[:, 8:], rtol=1e-4, atol=1e-4
    )
    free = run_layers(decoder, inputs, mask, reads=torch.ones(5, 5).bool())
    assert_close(free[mask.bool()], plain[mask.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_kernel_that_takes_a_mask_gives_the_same():
    lm = tiny_family("llama")
    decoder = Decoder(lm)
    inputs, mask = rows(decoder)
    expected = run_layers(decoder, inputs, mask, reads=READS)[:, -5:]
    for kernel in ("eager", "varlen"):
        lm.set_attn_implementation(kernel)
        assert_close(run_layers(decoder, inputs, mask, reads=READS)[:, -5:], expected, rtol=1e-4, atol=1e-5)


def test_a_kernel_without_masks_is_refused_by_name():
    decoder = Decoder(tiny_family("llama"))
    decoder.lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ConfigError, match="attn_implementation='flash_attention_2' takes no mask between fusion tokens"
    ):
        run_layers(decoder, *rows(decoder), reads=READS)
