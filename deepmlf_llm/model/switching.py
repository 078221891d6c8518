"""Adapters of one model that are switched, off too, while several threads use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftModelForCausalLM

from deepmlf_llm.errors import InjectionError
from deepmlf_llm.fusion.decoder import DeepMLFOutput
from deepmlf_llm.model.base import FusedModel
from deepmlf_llm.model.tuner import DeepMLFTuner
from deepmlf_llm.modules import FusionStack


class SwitchedModel(FusedModel, PeftModelForCausalLM):
    """What of :class:`~deepmlf_llm.model.DeepMLFModel` has to do with which adapter is at work."""

    base_model: DeepMLFTuner

    @property
    def adapter_in_use(self) -> str:
        return self.base_model.active_stack_name

    def predict_with(self, adapter: str | None, **batch: Any) -> DeepMLFOutput:
        """A forward pass with that adapter, whichever is active, or switched off, in other threads.

        Raises:
            InjectionError: the adapter was deleted; or an adapter has LoRA on the LM, which is one for all threads, and
                another one is active or this thread has switched it off.
        """
        tuner, fused = self.base_model, self.fused_decoder
        if adapter is None or adapter not in tuner.deepmlf:
            there = ", ".join(tuner.deepmlf) or "none"
            raise InjectionError(f"adapter {adapter!r} is not there any more; this model has {there}")
        stack, config = cast(FusionStack, tuner.deepmlf[adapter]), self.peft_config[adapter]
        if not self._has_lm_lora:
            return fused.forward(stack, config, **batch)
        if not fused.lm_lora.is_mine:
            with fused.lm_lora.shared():
                if not tuner.deepmlf.disable_adapters and tuner.active_stack_name == adapter:
                    return fused.forward(stack, config, **batch)
        raise InjectionError(
            f"adapter {adapter!r} cannot predict now: the LoRA on the language model is switched off "
            f"(disable_adapter) or that of another adapter is active (set_adapter({adapter!r}))"
        )

    @property
    def _has_lm_lora(self) -> bool:
        return any(config.has_lm_lora for config in self.peft_config.values())

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The plain LM inside, for one thread at a time. Predictors go on in other threads; where the LM has LoRA, they
        wait. What was trainable is so again behind it, and nothing else."""
        trainable = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            with self.fused_decoder.lm_lora.alone(), super().disable_adapter():
                yield
        finally:
            for parameter, requires_grad in trainable:  # PEFT makes a frozen adapter's LoRA trainable
                parameter.requires_grad_(requires_grad)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Text by the plain LM, where adapters are switched off.

        Raises:
            InjectionError: they are not.
        """
        return PeftModelForCausalLM.generate(self, *args, **kwargs)  # which asks the tuner
