"""Settings of the method, and whether they are good."""

from deepmlf_llm.quick_imports import import_bitsandbytes

import_bitsandbytes()  # before PEFT does, in the next line

from deepmlf_llm.config.method import DeepMLFConfig  # noqa: E402

__all__ = ["DeepMLFConfig"]
