"""What every face of DeepMLF offers beside its forward: gates, and keeping what the LM makes of each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.fusion.decoder import FusedDecoder
from deepmlf_llm.fusion.token_cache import TokenCache
from deepmlf_llm.modules import FusionStack
from deepmlf_llm.paths import cache_dir


class FusedModel:
    """Shared by the adapter on its base and the merged model; both say where their parts are."""

    training: bool

    @property
    def deepmlf_config(self) -> DeepMLFConfig:
        """Settings of the active adapter."""
        raise NotImplementedError

    @property
    def active_stack(self) -> FusionStack:
        """DeepMLF's own modules in use."""
        raise NotImplementedError

    @property
    def fused_decoder(self) -> FusedDecoder:
        """What runs them on the decoder."""
        raise NotImplementedError

    def gate_values(self) -> dict[str, dict[str, float]]:
        """Gate factors by LM layer: ``{"layer 11": {"gca": 0.5, "ffw": 0.5}}``."""
        return {f"layer {i}": gates for i, gates in self.active_stack.gate_values().items()}

    def enable_text_cache(
        self,
        kind: str = "memory",
        directory: str | Path | None = None,
        storage: str | None = None,
        fusion_tokens: bool = False,
    ) -> None:
        """Keeps what the frozen LM makes of each text, so that it is computed once and not once an epoch.

        Args:
            kind: ``"none"``, ``"memory"`` (the host's) or ``"disk"`` (memory-mapped, found again by the next run).
            directory: of the disk cache; default: in the user's cache.
            storage: dtype of keys and values: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``; None: the
                LM's own.
            fusion_tokens: for a trained model: keep in memory, too, what the layers below the first MM Block make of
                the fusion tokens behind each text. Used in passes without a graph.

        Raises:
            ConfigError: an unknown kind, LoRA on the LM (its text changes at every step), or a model in training mode
                whose text is augmented (every batch has its own; in eval mode nothing is).
        """
        fused, config = self.fused_decoder, self.deepmlf_config
        if kind not in ("none", "memory", "disk"):
            raise ConfigError(f"text_cache={kind!r}: expected 'none', 'memory' or 'disk'")
        fused.cache = fused.token_cache = None
        if kind == "none":
            return
        if config.has_lm_lora:
            raise ConfigError(f"text_cache={kind!r} with LoRA on the LM (r={config.r}): its text changes at every step")
        if config.seqaug.changes_text and self.training:
            raise ConfigError(f"text_cache={kind!r} with SeqAug or noise on the text: every batch has its own text")
        depth = fused.text_depth(config, self.active_stack)
        where = (directory or cache_dir() / "text") if kind == "disk" else None
        fused.cache = TextCache(fused.decoder, depth, where, storage)
        fused.token_cache = TokenCache() if fusion_tokens else None

    @property
    def text_cache(self) -> TextCache:
        """The cache in use.

        Raises:
            ConfigError: there is none.
        """
        cache = self.fused_decoder.cache
        if cache is None:
            raise ConfigError("no text cache: call enable_text_cache('memory') or enable_text_cache('disk') first")
        return cache

    def build_text_cache(self, texts: Sequence[Sequence[int]], progress: Callable[[int], Any] | None = None) -> int:
        """Reads these texts (lists of token ids) now; ``progress`` hears how many each batch held.

        Returns:
            Bytes held. :meth:`TextCache.predicted_bytes` says them beforehand.

        Raises:
            ConfigError: there is no cache, or no room for so much; nothing is read then.
        """
        self.text_cache.check_room(texts)
        self.text_cache.add(texts, progress)
        return self.text_cache.nbytes
