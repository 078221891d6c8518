"""DeepMLF: pretrained language models that hear and see through learnable fusion tokens (arXiv 2504.11082).

Importing this package costs milliseconds: each public name is loaded from its room on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepmlf_llm.backbones import load_base_model, load_tokenizer
    from deepmlf_llm.config.method import DeepMLFConfig
    from deepmlf_llm.errors import DeepMLFError
    from deepmlf_llm.inference.predictor import SentimentPredictor
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_label, polarity_metrics

__version__ = "0.1.0"

_ROOMS = {
    "DeepMLFConfig": "config",
    "DeepMLFError": "errors",
    "DeepMLFModel": "model",
    "METRIC_DEFINITIONS": "tasks",
    "SentimentPredictor": "inference",
    "load_base_model": "backbones",
    "load_tokenizer": "backbones",
    "polarity_label": "tasks",
    "polarity_metrics": "tasks",
}

__all__ = [
    "METRIC_DEFINITIONS",
    "DeepMLFConfig",
    "DeepMLFError",
    "DeepMLFModel",
    "SentimentPredictor",
    "__version__",
    "load_base_model",
    "load_tokenizer",
    "polarity_label",
    "polarity_metrics",
]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
