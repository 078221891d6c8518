"""From texts and features to polarity."""

from deepmlf_llm.inference.predictor import SentimentPredictor

__all__ = ["SentimentPredictor"]
