"""Settings of the method, and whether they are good."""

from deepmlf_llm.config.method import DeepMLFConfig

__all__ = ["DeepMLFConfig"]
