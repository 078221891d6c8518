"""DeepMLF's own modules, one idea a file. They know nothing of Hugging Face, of training or of any modality's name."""

from deepmlf_llm.modules.av_encoder import AVContext, AVEncoder
from deepmlf_llm.modules.av_regressor import AVRegressor
from deepmlf_llm.modules.cross_attention import Gate, GatedCrossAttention
from deepmlf_llm.modules.feed_forward import FeedForward, FFWParts
from deepmlf_llm.modules.fusion_stack import FusionStack
from deepmlf_llm.modules.fusion_tokens import FusionTokens
from deepmlf_llm.modules.heads import Heads
from deepmlf_llm.modules.layer_mix import LayerMix
from deepmlf_llm.modules.mixing_head import MixingHead
from deepmlf_llm.modules.mm_block import MMBlock
from deepmlf_llm.modules.pooling import pool_time
from deepmlf_llm.modules.prototypes import OrdinalPrototypes
from deepmlf_llm.modules.seqaug import seqaug
from deepmlf_llm.modules.token_topology import Pooled, Segregated
from deepmlf_llm.modules.verbaliser import Verbaliser

__all__ = [
    "AVContext",
    "AVEncoder",
    "AVRegressor",
    "FFWParts",
    "FeedForward",
    "FusionStack",
    "FusionTokens",
    "Gate",
    "GatedCrossAttention",
    "Heads",
    "LayerMix",
    "MMBlock",
    "MixingHead",
    "OrdinalPrototypes",
    "Pooled",
    "Segregated",
    "Verbaliser",
    "pool_time",
    "seqaug",
]
