"""The yardstick: DeepMLF with the cost profile of the published code, written again to measure against.

The cost is the published one (arXiv 2504.11082 and what its authors' loop does at each step): text right-padded to its
limit, fusion tokens after the padding, an fp32 copy of each FFW, the FFW of every MM Block over text and padding too,
logits at every position kept in the graph, gradients through the whole LM, padded frames pooled to 50 windows whatever
an utterance has, attention maps of the AV encoder written out over all 50, the text tokenised inside the loop. The
results are the method's: masks, positions, scales and pooling are right, so that `tests/benchmarks` can hold it against
the package. What is slow here is meant to be.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPTIMIZER = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 1e-3, "fused": True}  # the same for both sides
LOSS_WEIGHTS = {"task": 1.0, "fusion": 0.4, "av": 0.8, "text": 0.8}


def blocks_after(num_layers: int, first: int = 11, step: int = 3) -> list[int]:
    """LM layers (0-based) that MM Blocks follow; of 30 layers seven, 11, 14, .., 29, other depths in proportion."""
    return sorted({(layer + 1) * num_layers // 30 - 1 for layer in range(first, 30, step)} - {-1})


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention with its map written out; query, key, value [b x h x s x e], bias [b x 1 x 1 x t]."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    scores += bias  # in place: the published code has no mask here, and ours must not cost more
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


class EncoderLayer(nn.Module):
    """Pre-norm Transformer encoder layer, exact GELU."""

    def __init__(self, width: int, heads: int, ffw: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.norm_attention, self.norm_ffw = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, ffw), nn.Linear(ffw, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        p = self.p if self.training else 0.0
        y = self.norm_attention(x)
        query, key, value = (
            proj(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.query, self.key, self.value)
        )
        read = self.output(attend(query, key, value, bias, p).transpose(1, 2).flatten(2))
        x = x + F.dropout(read, p)
        y = F.dropout(F.gelu(self.up(self.norm_ffw(x))), p)
        return x + F.dropout(self.down(y), p)


class ModalityEncoder(nn.Module):
    """E_AV of one modality: all its padded frames pooled in time to ``frames`` windows, which then go through the
    layers, in the published order and shape."""

    def __init__(self, dim: int, frames: int, width: int = 30, layers: int = 3, heads: int = 6, ffw: int = 120) -> None:
        super().__init__()
        self.width, self.frames, self.dropout = width, frames, nn.Dropout(0.1)
        self.project = nn.Linear(dim, width, bias=False)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffw, 0.1) for _ in range(layers))

    def forward(self, features: Tensor, lengths: Tensor, windows: Tensor) -> Tensor:
        """Features [b x t x f], lengths [b] and windows wanted [b] -> [b x T x c], zero past the windows wanted."""
        pooled = pooling_weights(lengths, windows, features.shape[1], self.frames) @ features
        x = self.project(pooled) * math.sqrt(self.width)
        x = self.dropout(x + sinusoids(self.frames, self.width, features.device))
        heard = (torch.arange(self.frames, device=x.device) < windows[:, None]) & (lengths > 0)[:, None]
        bias = key_bias(heard | ~heard.any(dim=1, keepdim=True))  # a softmax over nothing is NaN
        for layer in self.layers:
            x = layer(x, bias)
        return x * heard[..., None]


def pooling_weights(lengths: Tensor, windows: Tensor, frames: int, most: int) -> Tensor:
    """Adaptive average pooling, a matrix [b x most x frames]: window i of w covers frames i r / w .. (i + 1) r / w."""
    index = torch.arange(most, device=lengths.device)
    length, count = lengths[:, None, None], windows[:, None, None]
    low, high = index[:, None] * length, (index[:, None] + 1) * length  # in units of 1 / w frames
    frame = torch.arange(frames, device=lengths.device) * count
    inside = (frame + count > low) & (frame < high) & (index[:, None] < count)  # [b x most x frames]
    return inside.float() / inside.sum(dim=-1, keepdim=True).clamp(min=1)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """[sines | cosines] of positions from 1, rate 10000^(-i / (width / 2 - 1)); [length x width]."""
    rate = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10000.0) / (width // 2 - 1)))
    angle = torch.arange(1, length + 1, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def key_bias(mask: Tensor) -> Tensor:
    """0 where a key is real, -inf elsewhere: [b x t] -> [b x 1 x 1 x t]."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)[:, None, None, :]


class CopiedLinear(nn.Module):
    """A frozen fp32 copy of one projection, with LoRA beside it: ``W x + B A x`` (alpha = r)."""

    def __init__(self, source: nn.Linear, rank: int) -> None:
        super().__init__()
        weight = source.weight.detach()
        self.weight = nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False)
        self.lora_a = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.lora_a), self.lora_b)


class MMBlock(nn.Module):
    """Gated cross-attention of the fusion tokens, then a gated FFW over text and fusion tokens (section 3).

    Shapes: b batch, s = text limit + n positions, d LM width, t pooled frames, c context width.
    """

    def __init__(self, layer: Any, config: Any, context: int, rank: int) -> None:
        super().__init__()
        width, eps, self.heads = config.hidden_size, config.rms_norm_eps, config.num_attention_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm_tokens = nn.RMSNorm(width, eps=eps)
        self.norm_all = nn.RMSNorm(width, eps=eps)
        self.gate_attention = nn.Parameter(torch.zeros(1))
        self.gate_ffw = nn.Parameter(torch.zeros(1))
        self.act = layer.mlp.act_fn
        self.ffw_gate, self.ffw_up, self.ffw_down = (
            CopiedLinear(projection, rank)
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )

    def forward(self, hidden: Tensor, num_tokens: int, context: Tensor, bias: Tensor) -> Tensor:
        """Args: hidden [b x s x d], context [b x t x c], bias [b x 1 x 1 x t] (0 or -inf). Returns [b x s x d]."""
        text, tokens = hidden.split([hidden.shape[1] - num_tokens, num_tokens], dim=1)
        query, key, value = (
            self._split(x) for x in (self.query(self.norm_tokens(tokens)), self.key(context), self.value(context))
        )
        read = attend(query, key, value, bias)
        tokens = tokens + torch.sigmoid(self.gate_attention) * self.output(read.transpose(1, 2).flatten(2))
        hidden = torch.cat([text, tokens], dim=1)
        x = self.norm_all(hidden)
        return hidden + torch.sigmoid(self.gate_ffw) * self.ffw_down(self.act(self.ffw_gate(x)) * self.ffw_up(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PublishedLayout(nn.Module):
    """The whole model over a Hugging Face LLaMA decoder; see the module's docstring.

    Args:
        lm: LlamaForCausalLM, any dtype; frozen here.
        modalities: feature width of each, by name.
        num_tokens: n.
        rank: LoRA rank of the FFW copies.
        pooled_frames: T.
        layers: LM layers that MM Blocks follow; default: :func:`blocks_after`.
    """

    def __init__(
        self,
        lm: Any,
        modalities: dict[str, int],
        num_tokens: int = 12,
        rank: int = 64,
        pooled_frames: int = 50,
        layers: list[int] | None = None,
    ) -> None:
        super().__init__()
        width, context = lm.config.hidden_size, 30
        self.lm = lm.eval().requires_grad_(False)
        self.num_tokens, self.pooled_frames = num_tokens, pooled_frames
        self.layers = layers or blocks_after(lm.config.num_hidden_layers)
        with torch.device(lm.device):
            self.fusion_tokens = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
            self.encoders = nn.ModuleDict({m: ModalityEncoder(dim, pooled_frames) for m, dim in modalities.items()})
            self.merge, self.norm_context = nn.Linear(context * len(modalities), context), nn.LayerNorm(context)
            self.blocks = nn.ModuleDict(
                {str(i): MMBlock(lm.model.layers[i], lm.config, context, rank) for i in self.layers}
            )
            self.fusion_head, self.text_head = nn.Linear(width, 1), nn.Linear(width, 1)
            self.av_head = nn.Linear(context, 1)
            task = (nn.Linear(2 * width + context, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))
            self.task_head = nn.Sequential(*task)

    def train(self, mode: bool = True) -> PublishedLayout:
        super().train(mode)
        self.lm.eval()
        return self

    def encode_context(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Z [b x T x c] after its norm, and which of its frames are real [b x T]."""
        lengths = torch.stack([batch[f"{name}_lengths"] for name in self.encoders])
        windows = lengths.amax(dim=0).clamp(max=self.pooled_frames)
        pooled = [encoder(batch[name], batch[f"{name}_lengths"], windows) for name, encoder in self.encoders.items()]
        mask = torch.arange(self.pooled_frames, device=windows.device) < windows[:, None]
        return self.norm_context(self.merge(torch.cat(pooled, dim=-1))), mask

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Polarities by head (``task, fusion, text, av``) and logits [b x s x vocabulary].

        Args:
            batch: ``input_ids`` and ``attention_mask`` [b x l], right-padded; for each modality ``<name>``
                [b x t x f], zero-padded, and ``<name>_lengths`` [b].
        """
        mask, n = batch["attention_mask"], self.num_tokens
        context, context_mask = self.encode_context(batch)
        text = self.lm.get_input_embeddings()(batch["input_ids"])
        tokens = self.fusion_tokens.to(text.dtype).expand(len(text), -1, -1)
        lengths = mask.sum(dim=1, keepdim=True)
        text_positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        token_positions = torch.arange(n, device=mask.device) + lengths
        fuse = partial(self._after_layer, context=context, bias=key_bias(context_mask))
        hooks = [self.lm.model.layers[int(i)].register_forward_hook(partial(fuse, b)) for i, b in self.blocks.items()]
        try:
            hidden = self.lm.model(
                inputs_embeds=torch.cat([text, tokens], dim=1),
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), n)], dim=1),
                position_ids=torch.cat([text_positions, token_positions], dim=1),
                use_cache=False,
            ).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        logits = self.lm.lm_head(hidden)  # at every position, at every step, in the graph: the published cost
        fused = hidden[:, -n:]
        last = hidden.take_along_dim((lengths - 1)[..., None], dim=1)[:, 0]
        real = context_mask[..., None]
        summary = (context * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        states = [x.to(torch.float32) for x in (fused.mean(dim=1), last, summary)]
        return {
            "task": self.task_head(torch.cat(states, dim=-1))[:, 0],
            "fusion": self.fusion_head(fused.float())[..., 0],
            "text": self.text_head(states[1])[:, 0],
            "av": self.av_head(states[2])[:, 0],
            "logits": logits,
        }

    def _after_layer(self, block: MMBlock, _layer: Any, _args: Any, hidden: Tensor, **context: Tensor) -> Tensor:
        return block(hidden, self.num_tokens, **context).to(hidden.dtype)

    def loss(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Weighted sum of mean absolute errors of the four polarities (the published MOSI weights, gamma 0)."""
        return sum(
            weight * (output[part] - labels.view(-1, *[1] * (output[part].dim() - 1))).abs().mean()
            for part, weight in LOSS_WEIGHTS.items()
        )
