"""The nested settings of a DeepMLF adapter: modalities, AV encoder, objective, augmentation, text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from deepmlf_llm.config.rules import Rule, brief, choice, flag, integer, mapping, number, optional, setting, share
from deepmlf_llm.errors import Problems, suggest
from deepmlf_llm.tasks.regression import TEXT_CASES

WIDEST = 1 << 20  # of anything that is a width: tensors beyond would not fit into memory
LOUDEST = 1e6  # weight of a loss
LONGEST = 1 << 24  # tokens, frames
TEXT_PLACE = "{text}"  # where a template takes the transcript


@dataclass
class ModalityConfig:
    """One sequence of feature frames beside the text, and how its features were made."""

    dim: int = setting("width of one frame of features; must be given", integer(1, WIDEST), 0)
    frame_rate: float | None = setting("frames per second, if known", optional(number(0, 1e7, above=True)), None)
    features: dict[str, Any] = setting("what was computed as features: encoder, layer, ...", mapping(), factory=dict)
    standardisation: dict[str, Any] | None = setting("mean, std and clip of the training split", None, None)
    provenance: dict[str, Any] = setting("where the features came from; never compared", mapping(), factory=dict)


@dataclass
class AVEncoderConfig:
    """E_AV: features pooled in time, a small Transformer per modality, joined (paper, section 3)."""

    width: int = setting("d_av, width of the AV context", integer(2, WIDEST), 30)
    num_layers: int = setting("pre-norm Transformer layers per modality", integer(0, 1000), 3)
    num_heads: int = setting("attention heads", integer(1, WIDEST), 6)
    ffw_width: int = setting("hidden width of the feed-forward layers", integer(1, WIDEST), 120)
    dropout: float = setting("dropout after the positions, on attention and on both residuals", share(), 0.1)
    input_dropout: float = setting("dropout on the raw features", share(), 0.0)
    max_frames: int = setting("T, frames of the AV context after pooling in time", integer(1, LONGEST), 50)
    pool: str = setting(
        "frames are pooled in time before the layers (paper) or after them", choice("before", "after"), "before"
    )
    feature_norm: str = setting(
        "norm of the features in front of the projection: none or batch", choice("none", "batch"), "none"
    )

    def problems(self) -> list[str]:
        """What is wrong with the settings together, one phrase each."""
        width, heads = self.width, self.num_heads
        found = []
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            if width % heads:
                found.append(f"av_encoder.width={brief(width)} is not a multiple of num_heads={brief(heads)}")
            if width % 2:
                found.append(f"av_encoder.width={brief(width)}: positions need an even width")
        return found


@dataclass
class MixingHeadConfig:
    """The Transformer head in which segregated groups of fusion tokens meet (SeRIn)."""

    width: int = setting("width of the head in which segregated fusion tokens meet", integer(1, WIDEST), 64)
    num_layers: int = setting("its pre-norm Transformer layers", integer(1, 1000), 1)
    num_heads: int = setting("its attention heads", integer(1, WIDEST), 4)
    ffw_width: int = setting("hidden width of its feed-forward layers", integer(1, WIDEST), 128)
    dropout: float = setting("its dropout, on attention and on both residuals", share(), 0.1)

    def problems(self) -> list[str]:
        """What is wrong with the settings together, one phrase each."""
        width, heads = self.width, self.num_heads
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads:
            return [f"mixing_head.width={brief(width)} is not a multiple of num_heads={brief(heads)}"]
        return []


@dataclass
class ObjectiveConfig:
    """L = L_task + lambda_fusion L_fusion + lambda_av L_av + lambda_text L_text + gamma L_LM, and terms beyond the
    paper."""

    lambda_fusion: float = setting("weight of the fusion tokens' own polarity loss", number(0, LOUDEST), 0.4)
    lambda_av: float = setting("weight of the AV context's own polarity loss", number(0, LOUDEST), 0.8)
    lambda_text: float = setting("weight of the last text token's own polarity loss", number(0, LOUDEST), 0.8)
    gamma: float = setting("weight of next-token cross-entropy on the transcript", number(0, LOUDEST), 0.0)
    loss: str = setting("regression loss: l1 or mse; of classes it is cross-entropy", choice("l1", "mse"), "l1")
    lambda_polarity: float = setting(
        "weight of telling negative from positive where the label is not 0, from what the task head reads; .05 in MGSI",
        number(0, LOUDEST),
        0.0,
    )
    lambda_prototypes: float = setting(
        "weight of drawing the fusion tokens' mean to learned prototypes along the polarity axis (MAESTRO)",
        number(0, LOUDEST),
        0.0,
    )
    unimodal_labels: bool = setting(
        "labels of one modality alone (CH-SIMS) drive the text head and a head each of audio and vision", flag(), False
    )
    class_weights: str = setting(
        "weights of classes in the loss: data (as the manifest has them) or none", choice("data", "none"), "data"
    )


@dataclass
class SeqAugConfig:
    """SeqAug and its ablations: augmentation of sequences of embeddings, in training only."""

    p_apply: float = setting("probability that a batch's text embeddings are augmented", share(closed=True), 0.0)
    p_feat: float = setting("share of embedding dimensions that take values from permuted steps", share(True), 0.0)
    av_p_apply: float = setting("the same for raw features of the other modalities", share(closed=True), 0.0)
    av_p_feat: float = setting("share of raw feature dimensions", share(closed=True), 0.0)
    embedding_dropout: float = setting("ablation: dropout on text embeddings", share(), 0.0)
    embedding_noise: float = setting(
        "ablation: standard deviation of Gaussian noise on text embeddings", number(0, LOUDEST), 0.0
    )

    @property
    def changes_text(self) -> bool:
        return (self.p_apply > 0 and self.p_feat > 0) or self.embedding_dropout > 0 or self.embedding_noise > 0


@dataclass
class TextConfig:
    """How transcripts become tokens."""

    case: str = setting("lower, sentence or keep: MOSI's transcripts are upper case", choice(*TEXT_CASES), "keep")
    max_tokens: int = setting("longer transcripts are cut, and counted", integer(1, LONGEST), 50)
    template: str = setting(
        "what the LM reads, with {text} for the transcript, e.g. '{text} Sentiment:'",
        Rule(
            lambda value: isinstance(value, str) and value.count(TEXT_PLACE) == 1,
            f"a string that holds {TEXT_PLACE} once",
        ),
        TEXT_PLACE,
    )


SECTIONS: dict[str, type] = {
    "av_encoder": AVEncoderConfig,
    "mixing_head": MixingHeadConfig,
    "objective": ObjectiveConfig,
    "seqaug": SeqAugConfig,
    "text": TextConfig,
}


def build_section(section: type, value: Any, source: str, problems: Problems) -> Any:
    """A dataclass from itself or from a mapping with known keys.

    What keeps it from being built is noted among ``problems``, unknown keys with the nearest known one; then the
    defaults stand in for it, so that the rest can be checked.
    """
    if isinstance(value, section):
        return value
    if not isinstance(value, dict):
        problems.check(False, f"{source}={brief(value)}: expected a mapping")
        return section()
    known = {f.name for f in dataclasses.fields(section)}
    for key in (key for key in value if key not in known):
        problems.check(False, f"{source}: unknown key {brief(key)}{suggest(str(key), known)}")
    return section(**{key: part for key, part in value.items() if key in known})
