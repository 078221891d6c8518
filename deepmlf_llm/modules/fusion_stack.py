"""Everything DeepMLF adds to a decoder, in one module: fusion tokens, MM Blocks, AV encoder, heads.

It never holds a weight of the language model, so its state dict is the adapter.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.attention_kernels import leave_out_cudnn_attention
from deepmlf_llm.modules.av_encoder import AVContext, AVEncoder
from deepmlf_llm.modules.context_reading import AbsorbedKeyValues, ContextReader, KeyValues, absorbing_takes_less
from deepmlf_llm.modules.fusion_tokens import FusionTokens
from deepmlf_llm.modules.heads import Heads
from deepmlf_llm.modules.layer_mix import LayerMix
from deepmlf_llm.modules.mm_block import MMBlock
from deepmlf_llm.modules.token_topology import Pooled, Segregated


class FusionStack(nn.Module):
    """DeepMLF's trainable modules.

    Args:
        fusion_tokens: X_f.
        av_encoder: E_AV; None: nothing is heard or seen, and no block has cross-attention.
        blocks: LM layer (0-based) -> MM Block that follows it.
        heads: task, fusion, text and AV heads.
        context_width: d_av, where there is an AV encoder.
        freeze_av_encoder: E_AV is never trained and stays in eval mode, as the LM does: what reads it then sees one Z
            an utterance, and the running statistics of its feature norm stay those that it was trained with.
        topology: which fusion tokens read which, and which frames; default: pooled (the paper).
        layer_mix: of the LM's layers for the heads; None: they read the last.
    """

    def __init__(
        self,
        fusion_tokens: FusionTokens,
        av_encoder: AVEncoder | None,
        blocks: Mapping[int, MMBlock],
        heads: Heads,
        context_width: int,
        freeze_av_encoder: bool = False,
        topology: Pooled | Segregated | None = None,
        layer_mix: LayerMix | None = None,
    ) -> None:
        super().__init__()
        leave_out_cudnn_attention()
        self.freeze_av_encoder = freeze_av_encoder
        self.fusion_tokens = fusion_tokens
        self.av_encoder = av_encoder
        self.mm_blocks = nn.ModuleDict({str(layer): blocks[layer] for layer in sorted(blocks)})
        # Weights of the keys and values of Z for all MM Blocks: one matmul, and one module that ZeRO-3 can gather.
        self.context_projection: nn.Linear | None = None
        if av_encoder is not None:
            self.context_projection = nn.Linear(context_width, sum(self.key_value_widths.values()), bias=False)
        self.heads = heads
        self.topology = topology or Pooled()
        self.layer_mix = layer_mix

    @property
    def layers(self) -> list[int]:
        """LM layers that an MM Block follows, ascending."""
        return [int(layer) for layer in self.mm_blocks]

    @property
    def blocks(self) -> dict[int, MMBlock]:
        """LM layer -> the MM Block that follows it, ascending."""
        return {int(layer): cast(MMBlock, block) for layer, block in self.mm_blocks.items()}

    @property
    def key_value_widths(self) -> dict[int, int]:
        """LM layer -> width of its MM Block's keys and values of Z, side by side (2 h e); empty without a context."""
        return {
            layer: 2 * block.cross_attention.inner_width
            for layer, block in self.blocks.items()
            if block.cross_attention is not None
        }

    @property
    def noted_layers(self) -> tuple[int, ...]:
        """LM layers below the last that the heads read."""
        return () if self.layer_mix is None else self.layer_mix.layers

    @property
    def num_tokens(self) -> int:
        return self.fusion_tokens.num_tokens

    def encode(
        self, features: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[AVContext | None, dict[int, ContextReader]]:
        """Features -> Z and what each MM Block may read of it, by LM layer; of segregated tokens, of each modality's
        own frames too; None and nothing where no modality is read."""
        if self.av_encoder is None or self.context_projection is None:
            return None, {}
        context = self.av_encoder(features)
        frames, widths = self.topology.frames(context), self.key_value_widths
        absorbs = self._absorbs(frames)
        # Which way follows from shapes, which may differ by rank. The module is called for its weights too, on the unit
        # vectors: under ZeRO-3 they are nowhere else, and are freed once a gradient has reached the module's input.
        rows = torch.eye(frames.shape[-1]).to(frames).requires_grad_(frames.requires_grad) if absorbs else frames
        parts = self.context_projection(rows).split(list(widths.values()), dim=-1)
        readers = [AbsorbedKeyValues(frames, part) if absorbs else KeyValues(part) for part in parts]
        return context, dict(zip(widths, readers, strict=True))

    def _absorbs(self, frames: Tensor) -> bool:
        """Whether MM Blocks read Z itself. A GPU has one kernel for attention to keys and values, and waits for each
        further operator; so there they always read these."""
        blocks = [block for block in self.blocks.values() if block.cross_attention is not None]
        if not frames.is_cpu or any(block.text_queries for block in blocks):
            return False
        head_widths = {b.cross_attention.inner_width // b.cross_attention.num_heads for b in blocks}
        batch, count, width = frames.shape
        return all(absorbing_takes_less(batch, count, width, self.num_tokens, each) for each in head_widths)

    def set_trainable(self, trainable: bool) -> None:
        """All parameters, but for gates of kind ``none``, which nothing may move, and a frozen AV encoder."""
        self.requires_grad_(trainable)
        if self.freeze_av_encoder and self.av_encoder is not None:
            self.av_encoder.requires_grad_(False)
        for block in self.blocks.values():
            for gate in block.gates().values():
                gate.alpha.requires_grad_(trainable and gate.kind != "none")

    def train(self, mode: bool = True) -> "FusionStack":
        """As any module; a frozen AV encoder stays in eval mode."""
        super().train(mode)
        if self.freeze_av_encoder and self.av_encoder is not None:
            self.av_encoder.eval()
        return self

    @contextmanager
    def gates_shut(self) -> Iterator[None]:
        """Every gate factor is exactly 0 inside, in this thread: the decoder must then be the base model, bitwise."""
        gates = [gate for block in self.blocks.values() for gate in block.gates().values()]
        for gate in gates:
            gate.shut = True
        try:
            yield
        finally:
            for gate in gates:
                gate.shut = False

    @torch.no_grad()
    def gate_values(self) -> dict[int, dict[str, float]]:
        """LM layer -> gate factors, e.g. ``{11: {"gca": 0.5, "ffw": 0.5}}``; of gates per channel the mean."""
        return {
            layer: {name: gate().mean().item() for name, gate in block.gates().items()}
            for layer, block in self.blocks.items()
        }
