"""Putting MM Blocks into a decoder and taking them out again, without touching one of its modules or keys.

MM Blocks live in the adapter and run in forward hooks after their LM layer. :func:`probe` shows that nothing else has
changed: with every gate shut, the injected decoder is the base model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from deepmlf_llm.backbones import Decoder, is_quantized, run_layers
from deepmlf_llm.backbones.interface import layer_output, replace_layer_output
from deepmlf_llm.errors import InjectionError
from deepmlf_llm.modules import FusionStack, MMBlock
from deepmlf_llm.modules.context_reading import ContextReader, KeyValues
from deepmlf_llm.modules.mm_block import PADDED, Rows
from deepmlf_llm.modules.precision import at_least_fp32

# transformers 5.17 recomputes a layer with its hooks, later ones its bare forward.
_HOOKS_ARE_RECOMPUTED = "__call__" in vars(GradientCheckpointingLayer)


@dataclass
class FusionState:
    """What MM Blocks need in one forward pass.

    It travels with the pass, as keyword argument ``fusion_state`` of every layer. Kept on the side it would be another
    pass's when activation checkpointing runs a layer again.

    Args:
        blocks: LM layer (0-based) -> MM Block to run after it.
        readers: LM layer -> its MM Block's reader of the AV context; empty without one.
        context_mask: True where a frame may be read, by all that query [b x t] or by each fusion token [b x n x t];
            None without a context.
        num_tokens: n; fusion tokens are the last n of the sequence.
        rows: how rows lie in the LM's hidden states: padded, or one after the other.
        notes: LM layers behind whose MM Blocks the states are kept for the heads.
        noted: layer -> its states, of the fusion tokens and, where it runs with them, the last text token in front of
            them [b x (n or n + 1) x d].
        entering: where somebody wants them, it gets the states in front of the first MM Block.
    """

    blocks: dict[int, MMBlock]
    readers: dict[int, ContextReader]
    context_mask: Tensor | None
    num_tokens: int
    rows: Rows = PADDED
    notes: tuple[int, ...] = ()
    noted: dict[int, Tensor] = field(default_factory=dict)
    entering: list[Tensor] | None = None

    @property
    def first(self) -> int:
        """LM layer of the first MM Block."""
        return min(self.blocks)

    def above(self, layer: int) -> FusionState:
        """For a pass in which MM Blocks up to ``layer``'s have run already."""
        return replace(self, blocks={i: block for i, block in self.blocks.items() if i > layer}, entering=None)

    def fuse(self, index: int, hidden: Tensor) -> Tensor:
        """LM block ``index``'s output [b x s x d] (packed: [1 x k x d]) through its MM Block."""
        if self.entering is not None and index == self.first:
            self.entering.append(hidden)
        reader = self.readers.get(index)
        fused: Tensor = self.blocks[index](hidden, reader, self.context_mask, self.num_tokens, self.rows)
        if index in self.notes:
            self.noted[index] = self.rows.take_last(fused, self.num_tokens + 1)
        return fused


class Injection:
    """Forward hooks that run MM Blocks after their LM layers, in passes that carry a :class:`FusionState`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._handles: list[Any] = []

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        """Hooks every layer; one without an MM Block in the pass's state passes through."""
        if not self._handles:
            for index, layer in enumerate(self.decoder.layers):
                self._handles.append(layer.register_forward_hook(partial(_fuse, index), with_kwargs=True))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _fuse(index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """The hook of layer ``index``. It holds nothing, so a deep copy of the model runs the copy's own MM Blocks."""
    state: FusionState | None = kwargs.get("fusion_state")
    if state is None or index not in state.blocks:
        return output
    hidden = layer_output(output)
    if recomputes(layer) and not _HOOKS_ARE_RECOMPUTED and torch.is_grad_enabled():
        fused = checkpoint(state.fuse, index, hidden, use_reentrant=False)
    else:
        fused = state.fuse(index, hidden)
    return replace_layer_output(output, fused)


def recomputes(layer: nn.Module) -> bool:
    """Whether transformers checkpoints this layer's activations now."""
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training


def can_probe(decoder: Decoder) -> bool:
    """Weights must be here and whole: not on the meta device, not ZeRO-3 shards before the engine runs."""
    return all(p.device.type != "meta" and not hasattr(p, "ds_id") for p in decoder.lm.parameters())


@torch.no_grad()
def probe(decoder: Decoder, stack: FusionStack) -> None:
    """Shows that the injected decoder, gates shut, is the base model on the same ``[text ; fusion tokens]``.

    Bitwise in fp32 and fp64 on CPU; on other devices, dtypes and 4-bit bases to the tolerance of one rounding.

    Raises:
        InjectionError: it is not, or a pass does not reach every MM Block.
    """
    table = decoder.embeddings.weight
    ids = torch.arange(6, device=table.device).reshape(2, 3) % table.shape[0]
    mask = torch.ones(2, 3 + stack.num_tokens, dtype=torch.long, device=table.device)
    mask[1, 0] = 0  # a padded row
    inputs = torch.cat([decoder.embeddings(ids), stack.fusion_tokens(2).to(table.dtype)], dim=1)
    readers: dict[int, ContextReader] = {
        layer: KeyValues(torch.linspace(-1, 1, 4 * width, device=table.device).reshape(2, 2, width))
        for layer, width in stack.key_value_widths.items()
    }
    present = torch.tensor([[True, True], [False, False]], device=table.device)
    reached: list[nn.Module] = []
    here = threading.get_ident()

    def reach(block: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == here:  # another thread may be predicting
            reached.append(block)

    handles = [block.register_forward_hook(reach) for block in stack.blocks.values()]
    try:
        reads = stack.topology.reads(table.device)
        expected = run_layers(decoder, inputs, mask, reads=reads)
        with stack.gates_shut():
            state = FusionState(stack.blocks, readers, present, stack.num_tokens)
            found = run_layers(decoder, inputs, mask, reads=reads, fusion_state=state)
    finally:
        for handle in handles:
            handle.remove()
    family = decoder.interface.family
    if len(reached) != len(stack.blocks):
        raise InjectionError(
            f"injection probe failed: {len(reached)} of {len(stack.blocks)} MM Blocks ran in a pass through the "
            f"{family} decoder; each layer must run once and receive the keyword arguments of the decoder's forward"
        )
    exact = table.device.type == "cpu" and table.dtype == at_least_fp32(table) and not is_quantized(decoder.lm)
    same = torch.equal(expected, found) if exact else torch.allclose(expected, found, rtol=1e-2, atol=1e-2)
    if not same:
        worst = (expected - found).abs().max().item()
        raise InjectionError(
            f"injection probe failed: with every gate shut the injected {family} decoder differs from its base by "
            f"{worst:.3g}; its layers do not return what the declared interface says"
        )
