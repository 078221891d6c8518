"""DeepMLF as a PEFT method, registered out of tree: ``peft.get_peft_model(base, DeepMLFConfig(...))`` just works.

The tuner is PEFT's ``LoraModel`` (LoRA on the language model, off by default) that also owns one
:class:`~deepmlf_llm.modules.FusionStack` per adapter and reaches the decoder through forward hooks. Everything the
ecosystem knows about adapters follows: saving only trainable weights, several adapters, Trainer and DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from torch import nn

from deepmlf_llm.backbones import Decoder, base_fingerprint, keep_weights_in_place
from deepmlf_llm.config import PEFT_TYPE, DeepMLFConfig
from deepmlf_llm.errors import InjectionError
from deepmlf_llm.fused_decoder import DeepMLFOutput, FusedDecoder
from deepmlf_llm.injection import build_stack, can_probe, probe
from deepmlf_llm.modules import FusionStack

CONTAINER = "deepmlf"  # base_model.deepmlf.<adapter>.<module>


class DeepMLFTuner(LoraModel):
    """LoRA on the decoder, plus a :class:`FusionStack` per adapter in ``self.deepmlf``."""

    uses_shared_state = True  # state lives on the tuner: PEFT then refuses inject_adapter_in_model by itself
    deepmlf: nn.ModuleDict
    fused: FusedDecoder

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter: all checks first, LoRA, the stack, hooks, the probe. A refusal leaves the decoder as it was."""
        config = self.peft_config[adapter_name]
        if not isinstance(config, DeepMLFConfig):
            raise InjectionError(f"adapter {adapter_name!r} has a {type(config).__name__}, expected a DeepMLFConfig")
        if CONTAINER not in self._modules:
            keep_weights_in_place(model)
            self.fused = FusedDecoder(Decoder(model))
            self.deepmlf = nn.ModuleDict()
        stack = build_stack(self.fused.decoder, config)
        config.base_fingerprint = config.base_fingerprint or base_fingerprint(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.deepmlf[adapter_name] = stack
        self._set_trainable(self.active_adapters, config.inference_mode)
        self.fused.injection.attach()
        if can_probe(self.fused.decoder) and not config.has_lm_lora:
            try:
                probe(self.fused.injection, stack)
            except InjectionError:
                self.fused.injection.detach()
                raise
        self.train(self.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Fuses with the active adapter; with adapters disabled, or without ``input_ids``, the bare decoder."""
        for unused in ("inputs_embeds", "output_attentions", "output_hidden_states", "return_dict"):
            if kwargs.get(unused, 0) is None:
                kwargs.pop(unused)
        if self.fusion_disabled or not self.deepmlf:
            return self.model(*args, **kwargs)
        name = self.active_stack_name
        return self.fused.forward(self.deepmlf[name], self.peft_config[name], *args, **kwargs)

    @property
    def fusion_disabled(self) -> bool:
        return getattr(self, "_fusion_disabled", False)

    @property
    def active_stack_name(self) -> str:
        return self.active_adapters[0]

    @property
    def active_stack(self) -> FusionStack:
        return self.deepmlf[self.active_stack_name]

    def train(self, mode: bool = True) -> DeepMLFTuner:
        """The frozen LM stays in eval mode, its dropout off; only what is trained trains."""
        super().train(mode)
        self.model.eval()
        for name, module in self.model.named_modules():
            if name.split(".")[-1].startswith("lora_dropout") or ".lora_dropout." in name:
                module.train(mode)
        for layer in self.fused.decoder.layers if CONTAINER in self._modules else ():
            # transformers checkpoints activations of layers "in training"; the flag alone, not their dropout.
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = mode
        return self

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise InjectionError(f"set_adapter({names}): one DeepMLF adapter can be active at a time")
        super().set_adapter(names[0] if names else [], inference_mode=inference_mode)
        self._set_trainable(names, inference_mode)

    def _set_trainable(self, names: Sequence[str], inference_mode: bool) -> None:
        for name, stack in self.deepmlf.items():
            stack.set_trainable(name in names and not inference_mode)

    def enable_adapter_layers(self) -> None:
        super().enable_adapter_layers()
        self._fusion_disabled = False

    def disable_adapter_layers(self) -> None:
        super().disable_adapter_layers()
        self._fusion_disabled = True

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        del self.deepmlf[adapter_name]
        if not self.active_adapters and self.deepmlf:
            self.set_adapter(next(iter(self.deepmlf)))

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.fused.injection.detach()
        return super()._unload_and_optionally_merge(*args, **kwargs)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """``..deepmlf.<adapter>.heads..`` -> ``..deepmlf.heads..``; PEFT's rule expects the name near the end."""
        before, mark, after = key.partition(f"{CONTAINER}.{adapter_name}.")
        if mark:
            return f"{before}{CONTAINER}.{after}"
        return super()._remove_adapter_name_from_key(key, adapter_name)


__all__ = ["DeepMLFConfig", "DeepMLFOutput", "DeepMLFTuner"]

PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = DeepMLFTuner  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = LoraModel.prefix  # type: ignore[index]
