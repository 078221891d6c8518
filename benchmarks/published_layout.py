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
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from published_encoder import ModalityEncoder, attend, key_bias
from torch import Tensor, nn
from workload import Geometry, PublishedBatches

OPTIMIZER = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 1e-3}
LOSS_WEIGHTS = {"task": 1.0, "fusion": 0.4, "av": 0.8, "text": 0.8}


def blocks_after(num_layers: int) -> list[int]:
    """LM layers (0-based) that seven MM Blocks follow; of 30 layers 11, 14, .., 29, other depths in proportion."""
    return sorted({(12 + 3 * i) * num_layers // 30 - 1 for i in range(7)} - {-1})


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


class PublishedLoop:
    """The published training loop, one step at a time: tokenise, forward, backward, AdamW over all that is trainable.

    Args:
        lm: base model, on its device.
        tokenizer: of the LM.
        utterances: see :func:`workload.make_utterances`.
        geometry: to which everything is padded.
        batch: rows of a batch.
        gamma: weight of the LM's loss.
        changes: of :class:`PublishedLayout`.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        utterances: Sequence[Mapping[str, Any]],
        geometry: Geometry,
        batch: int,
        gamma: float = 0.0,
        **changes: Any,
    ) -> None:
        self.gamma = gamma
        self.model = PublishedLayout(lm, geometry.modalities, **changes).train()
        self.device, self.half = lm.device, lm.dtype != torch.float32
        self.batches = PublishedBatches(utterances, tokenizer, geometry, batch)
        self.optimizer = torch.optim.AdamW(self.trainable(), **OPTIMIZER)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self) -> int:
        """One training step; returns the samples it saw."""
        output, labels = self._run()
        loss = self.model.loss(output, labels)
        if self.gamma:
            loss = loss + self.gamma * F.cross_entropy(output["logits"].transpose(1, 2).float(), output["targets"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(labels)

    @torch.no_grad()
    def predict(self) -> int:
        """One batch of predictions; returns the samples it saw."""
        self.model.eval()
        _, labels = self._run()
        self.model.train()
        return len(labels)

    def _run(self) -> tuple[dict[str, Tensor], Tensor]:
        batch, labels = self.batches.next()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = self.model({name: x.to(self.device) for name, x in batch.items()})
        return {**output, "targets": self._targets(batch).to(self.device)}, labels.to(self.device)

    def _targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Each real token but the last predicts the next real one [b x s]; -100 elsewhere."""
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        following = ids.roll(-1, dims=1).masked_fill(~real.roll(-1, dims=1), -100)
        following[:, -1] = -100
        return F.pad(following, (0, self.model.num_tokens), value=-100)
