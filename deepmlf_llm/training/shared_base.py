"""One base model for several runs of a process, which follow one another: loaded once, its texts read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepmlf_llm.backbones.text_cache import TextCache


@dataclass
class SharedBase:
    """What a run finds in its process, and leaves for the next one. Empty until the first has loaded it.

    Args:
        lm: the base model, without a module of any run.
        tokenizer: of it.
        texts: what it made of the texts, where that is kept.
    """

    lm: Any = None
    tokenizer: Any = None
    texts: TextCache | None = None

    def take_back(self, model: Any) -> None:
        """After a run: its modules leave the base, which is again what it was when it was loaded."""
        self.texts = model.fused_decoder.cache
        self.lm = model.eject()
