"""DeepMLF written down once more, from the paper's equations and in plain float64: one utterance at a time, no padding,
no masks, no cache, no attention kernel. Tests compare the package with it; nothing here calls the package.

A weight is looked up by its name in a state dict, so a renamed or transposed one is found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
FFWWeights = dict[str, tuple[Tensor, Tensor | None]]


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in module.state_dict().items()}


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Weights below ``prefix``, by their names there."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    out = x @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def conv1d(x: Tensor, weights: Weights, name: str) -> Tensor:
    """GPT-2 stores its projections as [in x out]."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu_exact(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def feed_forward(x: Tensor, weights: FFWWeights, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """``down(act(gate x) * up x)``, or ``down(act(up x))`` where there is no gate."""

    def project(role: str, rows: Tensor) -> Tensor:
        weight, bias = weights[role]
        return rows @ weight.T + (0 if bias is None else bias)

    if "gate" in weights:
        return project("down", activation(project("gate", x)) * project("up", x))
    return project("down", activation(project("up", x)))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """[s x (h e)], [t x (h e)], [t x (h e)] -> [s x (h e)], head by head."""
    width = query.shape[1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        score = query[:, part] @ key[:, part].T / math.sqrt(width)
        if causal:
            later = torch.arange(key.shape[0])[None] > torch.arange(query.shape[0])[:, None]
            score = score.masked_fill(later, -math.inf)
        weight = (score - score.amax(-1, keepdim=True)).exp()
        out.append(weight / weight.sum(-1, keepdim=True) @ value[:, part])
    return torch.cat(out, dim=1)


@dataclass
class ReferenceLM:
    """A decoder as formulas.

    Args:
        embed: token ids -> [s x d]; positions are added by ``layer`` or ``place``.
        place: embeddings [s x d] -> input of layer 0.
        layer: (index, [s x d]) -> [s x d].
        ffw_weights: index -> role -> (weight [out x in], bias) of LM block ``index``'s feed-forward network.
        activation: inside it.
        norm: (x, weights, name) -> normalised, the kind an MM Block uses.
        final: [s x d] -> after the final norm.
        logits: [s x d] -> [s x vocabulary].
        layers: their number.
    """

    embed: Callable[[Tensor], Tensor]
    place: Callable[[Tensor], Tensor]
    layer: Callable[[int, Tensor], Tensor]
    ffw_weights: Callable[[int], FFWWeights]
    activation: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor, Weights, str], Tensor]
    final: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    layers: int


def reference_llama(lm: Any) -> ReferenceLM:
    """RMSNorm, rotary positions, grouped keys and values, SwiGLU, no biases."""
    w, config = weights_of(lm), lm.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head, eps = config.hidden_size // config.num_attention_heads, config.rms_norm_eps

    def rotate(x: Tensor) -> Tensor:
        """Rotary positions of [s x (h e)], pairing dimension i with i + e/2."""
        frequency = 10000.0 ** (-torch.arange(0, head, 2).double() / head)
        angle = torch.arange(x.shape[0]).double()[:, None, None] * frequency
        first, second = x.unflatten(1, (-1, head)).chunk(2, dim=-1)
        turned = [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()]
        return torch.cat(turned, dim=-1).flatten(1)

    def repeat(x: Tensor) -> Tensor:
        """Each key-value head serves heads / groups query heads."""
        return x.unflatten(1, (groups, head)).repeat_interleave(heads // groups, dim=1).flatten(1)

    def ffw_weights(i: int) -> FFWWeights:
        return {role: (w[f"model.layers.{i}.mlp.{role}_proj.weight"], None) for role in ("gate", "up", "down")}

    def layer(i: int, x: Tensor) -> Tensor:
        at = under(w, f"model.layers.{i}.")
        normed = rms_norm(x, at, "input_layernorm", eps)
        query, key = (rotate(linear(normed, at, f"self_attn.{name}_proj")) for name in "qk")
        read = attention(query, repeat(key), repeat(linear(normed, at, "self_attn.v_proj")), heads, causal=True)
        x = x + linear(read, at, "self_attn.o_proj")
        return x + feed_forward(rms_norm(x, at, "post_attention_layernorm", eps), ffw_weights(i), silu)

    return ReferenceLM(
        embed=lambda ids: w["model.embed_tokens.weight"][ids],
        place=lambda x: x,
        layer=layer,
        ffw_weights=ffw_weights,
        activation=silu,
        norm=lambda x, weights, name: rms_norm(x, weights, name, eps),
        final=lambda x: rms_norm(x, w, "model.norm", eps),
        logits=lambda x: linear(x, w, "lm_head"),
        layers=config.num_hidden_layers,
    )


def reference_gpt2(lm: Any) -> ReferenceLM:
    """LayerNorm, learned positions, Conv1D projections with biases, tanh-form GELU."""
    w, config = weights_of(lm), lm.config
    eps = config.layer_norm_epsilon

    def ffw_weights(i: int) -> FFWWeights:
        at = under(w, f"transformer.h.{i}.mlp.")
        names = {"up": "c_fc", "down": "c_proj"}
        return {role: (at[f"{name}.weight"].T, at[f"{name}.bias"]) for role, name in names.items()}

    def layer(i: int, x: Tensor) -> Tensor:
        at = under(w, f"transformer.h.{i}.")
        query, key, value = conv1d(layer_norm(x, at, "ln_1", eps), at, "attn.c_attn").chunk(3, dim=1)
        x = x + conv1d(attention(query, key, value, config.n_head, causal=True), at, "attn.c_proj")
        return x + feed_forward(layer_norm(x, at, "ln_2", eps), ffw_weights(i), gelu_tanh)

    return ReferenceLM(
        embed=lambda ids: w["transformer.wte.weight"][ids],
        place=lambda x: x + w["transformer.wpe.weight"][: x.shape[0]],
        layer=layer,
        ffw_weights=ffw_weights,
        activation=gelu_tanh,
        norm=lambda x, weights, name: layer_norm(x, weights, name, eps),
        final=lambda x: layer_norm(x, w, "transformer.ln_f", eps),
        logits=lambda x: linear(x, w, "lm_head"),
        layers=config.n_layer,
    )


def gate_factor(kind: str, a: Tensor) -> Tensor:
    return {"sigmoid": 1 / (1 + (-a).exp()), "tanh": 1 - 2 / ((2 * a).exp() + 1), "none": torch.ones_like(a)}[kind]


def cross_attention(tokens: Tensor, context: Tensor, w: Weights, key_value: Tensor, heads: int) -> Tensor:
    """GCA before its gate: tokens [n x d], context [t x d_av], key_value [(2 h e) x d_av]."""
    if not len(context):
        return torch.zeros_like(tokens)
    key, value = (context @ part.T for part in key_value.chunk(2))
    return linear(attention(linear(tokens, w, "mm_query"), key, value, heads), w, "mm_output")


def block_ffw_weights(lm: ReferenceLM, index: int, w: Weights, lora_scale: float) -> FFWWeights:
    """Those of an MM Block: its own copy, or LM block ``index``'s with the LoRA folded into each projection."""
    own = {
        role: (w[f"own.{role}.weight"], w.get(f"own.{role}.bias"))
        for role in ("gate", "up", "down")
        if f"own.{role}.weight" in w
    }
    if own:
        return own

    def delta(role: str) -> Tensor | int:
        if f"ffw_lora.{role}.low.weight" not in w:
            return 0
        return lora_scale * w[f"ffw_lora.{role}.high.weight"] @ w[f"ffw_lora.{role}.low.weight"]

    return {role: (weight + delta(role), bias) for role, (weight, bias) in lm.ffw_weights(index).items()}


@dataclass
class Settings:
    """What the formulas need to know beside the weights; names as in DeepMLFConfig."""

    heads: int
    gate: str = "sigmoid"
    ffw_scope: str = "joint"
    gca_queries: str = "tokens"
    head_base: str = "none"
    head_reads_av: bool = True
    lora_scale: float = 1.0
    av_heads: int = 6
    max_frames: int = 50
    pool: str = "before"
    fusion_entry: str = "embedding"
    truncate_lm: bool = False


def mm_block(
    lm: ReferenceLM,
    index: int,
    text: Tensor,
    tokens: Tensor,
    context: Tensor,
    w: Weights,
    key_value: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Text [l x d] and tokens [n x d] after LM block ``index`` -> the same after its MM Block (equations of section 3).

    Args:
        context: Z of this utterance [t x d_av], real frames only.
        w: of the MM Block.
        key_value: its projection of Z [(2 h e) x d_av]; None: nothing is heard or seen.
    """
    if key_value is not None:

        def heard(rows: Tensor) -> Tensor:
            normed = lm.norm(rows, w, "attention_norm")
            read = cross_attention(normed, context, under(w, "cross_attention."), key_value, settings.heads)
            return rows + gate_factor(settings.gate, w["cross_attention.gate.alpha"]) * read

        if settings.gca_queries != "tokens":
            text = heard(text)
        if settings.gca_queries != "text":
            tokens = heard(tokens)
    if settings.ffw_scope == "none":
        return text, tokens
    rows = torch.cat([text, tokens]) if settings.ffw_scope == "joint" else tokens
    ffw = block_ffw_weights(lm, index, under(w, "ffw."), settings.lora_scale)
    update = feed_forward(lm.norm(rows, w, "ffw_norm"), ffw, lm.activation)
    rows = rows + gate_factor(settings.gate, w["ffw_gate.alpha"]) * update
    return (rows[: len(text)], rows[len(text) :]) if settings.ffw_scope == "joint" else (text, rows)


def encode_modality(frames: Tensor, w: Weights, heads: int) -> Tensor:
    """One modality's encoder E_m [t x d_m] -> [t x d_av]; BatchNorm of its features, if any, by running statistics."""
    if "feature_norm.weight" in w:
        scale = w["feature_norm.weight"] / (w["feature_norm.running_var"] + 1e-5).sqrt()
        frames = (frames - w["feature_norm.running_mean"]) * scale + w["feature_norm.bias"]
    x = frames @ w["projection.weight"].T * math.sqrt(len(w["projection.weight"]))
    half = x.shape[1] // 2
    for t in range(len(x)):
        angles = [(t + 1) * 10000 ** (-i / (half - 1)) for i in range(half)]
        x[t] += torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
    for i in range(len({name.split(".")[1] for name in w if name.startswith("layers.")})):
        at = under(w, f"layers.{i}.")
        query, key, value = linear(layer_norm(x, at, "attention_norm", 1e-5), at, "query_key_value").chunk(3, dim=1)
        x = x + linear(attention(query, key, value, heads), at, "output")
        hidden = gelu_exact(linear(layer_norm(x, at, "ffw_norm", 1e-5), at, "ffw.0"))
        x = x + linear(hidden, at, "ffw.3")
    return x


def pool(x: Tensor, windows: int) -> Tensor:
    """Means over ``windows`` contiguous windows of [t x d]; no frames: zeros."""
    if not len(x):
        return x.new_zeros(windows, x.shape[1])
    edges = [(i * len(x) // windows, -(-(i + 1) * len(x) // windows)) for i in range(windows)]
    return torch.stack([x[start:stop].mean(0) for start, stop in edges])


def av_context(frames: Mapping[str, Tensor], w: Weights, settings: Settings) -> Tensor:
    """Z of one utterance [t x d_av], modalities joined by name; t = 0 where it has none, d_av = 0 where the model reads
    none."""
    if not w:
        return torch.zeros(0, 0).double()
    windows, width = min(settings.max_frames, max(len(x) for x in frames.values())), len(w["join.weight"])
    if not windows:
        return torch.zeros(0, width).double()
    parts = []
    for name in sorted(frames):
        at, x = under(w, f"encoders.{name}."), frames[name]
        if not len(x):
            parts.append(x.new_zeros(windows, width))
        elif settings.pool == "before":
            parts.append(encode_modality(pool(x, windows), at, settings.av_heads))
        else:
            parts.append(pool(encode_modality(x, at, settings.av_heads), windows))
    return layer_norm(linear(torch.cat(parts, dim=1), w, "join"), w, "norm", 1e-5)


@dataclass
class ReferenceOutput:
    """Of one utterance."""

    tokens: Tensor
    text: Tensor
    context_mean: Tensor
    task: Tensor
    fusion: Tensor
    text_polarity: Tensor
    av: Tensor | None


def task_head(x: Tensor, w: Weights) -> Tensor:
    """Linear, norm (batch: its running statistics; layer: its own), ReLU, Linear."""
    x = linear(x, w, "1")
    if "2.running_mean" in w:
        x = (x - w["2.running_mean"]) / (w["2.running_var"] + 1e-5).sqrt() * w["2.weight"] + w["2.bias"]
    else:
        x = layer_norm(x, w, "2", 1e-5)
    return linear(x.clamp(min=0), w, "4")


def deepmlf(
    lm: ReferenceLM, ids: Tensor, frames: Mapping[str, Tensor], w: Weights, settings: Settings
) -> ReferenceOutput:
    """The whole model on one utterance: real token ids [l], real frames of each modality [t_m x d_m].

    ``w``: of everything DeepMLF adds, by the names it has in a FusionStack.
    """
    context = av_context(frames, under(w, "av_encoder."), settings)
    layers = sorted({int(name.split(".")[1]) for name in w if name.startswith("mm_blocks.")})
    key_values: dict[int, Tensor | None] = dict.fromkeys(layers)
    if "context_projection.weight" in w:
        key_values = dict(zip(layers, w["context_projection.weight"].chunk(len(layers)), strict=True))
    late = settings.fusion_entry == "first_block"
    tokens = w.get("fusion_tokens.mean", 0) + w.get("fusion_tokens.scale", 1) * w["fusion_tokens.embedding.weight"]
    hidden = lm.place(lm.embed(ids) if late else torch.cat([lm.embed(ids), tokens]))
    for index in range(layers[-1] + 1 if settings.truncate_lm else lm.layers):
        hidden = lm.layer(index, hidden)
        if late and index == layers[0]:
            hidden = torch.cat([hidden, tokens])
        if index in layers:
            at = under(w, f"mm_blocks.{index}.")
            parts = mm_block(
                lm, index, hidden[: len(ids)], hidden[len(ids) :], context, at, key_values[index], settings
            )
            hidden = torch.cat(parts)
    hidden = lm.final(hidden)
    text, tokens = hidden[: len(ids)], hidden[len(ids) :]
    mean = context.mean(0) if len(context) else context.new_zeros(context.shape[1])
    read = [tokens.mean(0), text[-1], *([mean] if settings.head_reads_av else [])]
    task = task_head(torch.cat(read), under(w, "heads.task."))
    text_polarity = linear(text[-1], w, "heads.text")
    return ReferenceOutput(
        tokens=tokens,
        text=text,
        context_mean=mean,
        task=task + text_polarity if settings.head_base == "text" else task,
        fusion=linear(tokens, w, "heads.fusion"),
        text_polarity=text_polarity,
        av=linear(mean, w, "heads.av") if "heads.av.weight" in w else None,
    )


def next_token_losses(lm: ReferenceLM, text: Tensor, ids: Tensor) -> list[Tensor]:
    """Cross-entropy of each real token but the first, from the final state of the one before."""
    out = []
    for state, target in zip(text[:-1], ids[1:], strict=True):
        score = lm.logits(state)
        out.append(score.exp().sum().log() - score[target])
    return out
