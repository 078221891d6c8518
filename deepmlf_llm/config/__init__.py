"""Settings of the method, and whether they are good."""

from deepmlf_llm.deferred import import_transformers
from deepmlf_llm.quick_imports import import_bitsandbytes

import_transformers()  # both before PEFT does, in the next line
import_bitsandbytes()

from deepmlf_llm.config.method import DeepMLFConfig  # noqa: E402

__all__ = ["DeepMLFConfig"]
