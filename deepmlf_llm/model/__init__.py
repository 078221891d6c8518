"""What users call: DeepMLF as a PEFT method, its public model, a merged model without PEFT."""

from deepmlf_llm.model.merged import MergedDeepMLF
from deepmlf_llm.model.peft_model import DeepMLFModel

__all__ = ["DeepMLFModel", "MergedDeepMLF"]
