"""What a user may choose of the method: each setting with its help text and its rule, in the order of ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from deepmlf_llm.config.readout import READOUTS, STEPS, TOKEN_IDS
from deepmlf_llm.config.rules import choice, flag, integer, mapping, number, optional, setting, share, word
from deepmlf_llm.config.sections import (
    LOUDEST,
    WIDEST,
    AVEncoderConfig,
    MixingHeadConfig,
    ModalityConfig,
    ObjectiveConfig,
    SeqAugConfig,
    TextConfig,
)
from deepmlf_llm.config.topology import COUNTS, POOLED, SEGREGATED
from deepmlf_llm.tasks.registry import TASKS


@dataclass
class MethodSettings(LoraConfig):
    """The fields of a :class:`~deepmlf_llm.config.method.DeepMLFConfig` that say how a model is built and trained.

    Names and defaults follow DeepMLF (arXiv 2504.11082). What they may be together is checked there.
    """

    r: int = setting("LoRA rank on the language model itself; 0 = none", integer(0, WIDEST), 0)
    num_fusion_tokens: int = setting("n, learnable fusion tokens after the text", integer(1, 1 << 16), 8)
    fusion_token_init: str | None = setting(
        "fusion tokens are drawn as normal (paper: N(0, 0.02)) or lm (mean and deviation of the LM's own states where "
        "they enter); default: normal at the embedding, lm at the first block",
        optional(choice("normal", "lm")),
        None,
    )
    freeze_fusion_tokens: bool = setting("keep fusion tokens as they start, untrained", flag(), False)
    fusion_entry: str = setting(
        "fusion tokens join the text at the embedding (paper), or at the first_block: as states behind its LM layer",
        choice("embedding", "first_block"),
        "embedding",
    )
    truncate_lm: bool = setting("run no LM layer above the last MM Block", flag(), False)
    token_topology: str = setting(
        "pooled (paper: fusion tokens are one group) or segregated (SeRIn: a group a modality, and a joint one)",
        choice(POOLED, SEGREGATED),
        POOLED,
    )
    tokens_per_group: list[int] | None = setting(
        "fusion tokens of each segregated group: modalities by name, then the joint one; default: equally many",
        optional(COUNTS),
        None,
    )
    fusion_layers: Any = setting(
        "MM Blocks after these LM layers: a list, 'last:k', 'even:k' or 'from:i' ('from:0': every layer)",
        None,
        "even:7",
    )
    ffw_scope: str = setting(
        "joint (paper: FFW over text and fusion tokens), fusion (fusion tokens only) or none (MM Blocks without FFW)",
        choice("joint", "fusion", "none"),
        "joint",
    )
    ffw_weights: str = setting(
        "shared (the LM block's frozen FFW + LoRA) or copy (own, fully trained)", choice("shared", "copy"), "shared"
    )
    ffw_lora_r: int = setting("LoRA rank on a shared FFW; 0 = frozen as it is", integer(0, WIDEST), 16)
    ffw_lora_alpha: float = setting("scale of that LoRA is alpha / r", number(0, LOUDEST), 16.0)
    ffw_lora_dropout: float = setting("dropout before that LoRA", share(), 0.0)
    ffw_dropout: float = setting("dropout on the output of an MM Block's FFW; 0.1 in the authors' code", share(), 0.0)
    dequantize_copy: bool = setting(
        "allow ffw_weights='copy' of a 4-bit or 8-bit FFW: it is dequantized to fp32", flag(), False
    )
    gate: str = setting(
        "sigmoid (paper: opens at 0.5), tanh (Flamingo: starts shut) or none",
        choice("sigmoid", "tanh", "none"),
        "sigmoid",
    )
    gate_init: float = setting(
        "start of every gate's learned value, before the squashing function", number(-100, 100), 0.0
    )
    gca_gate_init: float | None = setting(
        "the same for the gates of cross-attention alone; default: gate_init", optional(number(-100, 100)), None
    )
    gate_per: str = setting(
        "a gate has one value a block (paper) or one a channel of the LM's width", choice("block", "channel"), "block"
    )
    norm_init: str = setting(
        "norms start as: lm (the LM block's own, which its FFW expects) or fresh (paper)", choice("fresh", "lm"), "lm"
    )
    gca_queries: str = setting(
        "what queries the AV context: tokens (paper: fusion tokens), text (as Flamingo) or both",
        choice("tokens", "text", "both"),
        "tokens",
    )
    gca_heads: int | None = setting(
        "heads of gated cross-attention; default: the LM's", optional(integer(1, WIDEST)), None
    )
    gca_head_width: int | None = setting(
        "width of one such head; default: LM width / heads", optional(integer(1, WIDEST)), None
    )
    gca_dropout: float = setting("dropout on its attention and its output; 0.1 in the authors' code", share(), 0.0)
    modalities: dict[str, ModalityConfig] = setting(
        "name -> settings of each modality beside the text; empty: text alone, without AV encoder, GCA and AV head",
        None,
        factory=dict,
    )
    av_encoder: AVEncoderConfig = setting("the AV encoder", None, factory=AVEncoderConfig)
    freeze_av_encoder: bool = setting("keep the AV encoder as it is: not trained, in eval mode", flag(), False)
    mixing_head: MixingHeadConfig = setting(
        "the head in which segregated fusion tokens meet", None, factory=MixingHeadConfig
    )
    objective: ObjectiveConfig = setting("weights of the losses", None, factory=ObjectiveConfig)
    seqaug: SeqAugConfig = setting("augmentation in training", None, factory=SeqAugConfig)
    text: TextConfig = setting("how transcripts become tokens", None, factory=TextConfig)
    head_width: int = setting("hidden width of the task head", integer(1, WIDEST), 64)
    head_norm: str = setting("norm inside the task head: batch (paper) or layer", choice("batch", "layer"), "batch")
    head_dropout: float = setting("dropout before the task head", share(), 0.0)
    head_base: str = setting(
        "what the task head's output is added to: none, or text (what the text head says, from which it then starts)",
        choice("none", "text"),
        "none",
    )
    head_reads_av: bool = setting(
        "the task head reads the mean of the AV context itself (paper); false: only what fusion tokens carry of it",
        flag(),
        True,
    )
    readout: str = setting(
        "what predicts: heads (the task head), verbalised (the LM's own head after the last fusion token: expectation "
        "over the tokens of verbalised_steps) or both (their mean)",
        choice(*READOUTS),
        "heads",
    )
    verbalised_steps: dict[str, float] | None = setting(
        "label -> polarity of each step of the scale, each a single token; default: '1' to '7', evenly over the range",
        optional(STEPS),
        None,
    )
    verbalised_ids: dict[str, int] | None = setting(
        "token id of each step, by the tokenizer of the adapter's training", optional(TOKEN_IDS), None
    )
    readout_layers: str = setting(
        "states that the heads read: last (of the last LM layer) or mix (a learned mix of those behind each MM Block "
        "and the last)",
        choice("last", "mix"),
        "last",
    )
    num_outputs: int = setting("values of a head per utterance; of classes one each", integer(1, WIDEST), 1)
    dataset: str = setting(f"label rule: {', '.join(TASKS)}, or a task of one's own", word("a name"), "mosi")
    task: dict[str, Any] | None = setting(
        "rules of a task of one's own, or classes and their weights, as the data have them; see tasks/registry.py",
        optional(mapping()),
        None,
    )
    unimodal_targets: list[str] = setting(
        "of T, A, V the labels of one modality alone that heads learn from, as the data have them", None, factory=list
    )
