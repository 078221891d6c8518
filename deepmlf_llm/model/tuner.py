"""DeepMLF as a PEFT method, registered out of tree: ``peft.get_peft_model(base, DeepMLFConfig(...))`` just works.

The tuner is PEFT's ``LoraModel`` (LoRA on the language model, off by default) that also owns one
:class:`~deepmlf_llm.modules.FusionStack` per adapter and reaches the decoder through forward hooks. Everything the
ecosystem knows about adapters follows: saving only trainable weights, several adapters, Trainer and DeepSpeed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, cast

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import skip_init_on_device
from torch import nn

from deepmlf_llm.backbones import (
    BaseState,
    Decoder,
    base_fingerprint,
    compare_fingerprints,
    init_seed_of,
    keep_weights_in_place,
    quantization_of,
)
from deepmlf_llm.config.method import PEFT_TYPE, DeepMLFConfig
from deepmlf_llm.errors import ConfigError, InjectionError
from deepmlf_llm.fusion.build import build_stack
from deepmlf_llm.fusion.decoder import FusedDecoder
from deepmlf_llm.fusion.hooks import can_probe, probe
from deepmlf_llm.model.base import refuse_generate
from deepmlf_llm.model.loading import refuse_wrapped
from deepmlf_llm.model.mergeable import check_mergeable
from deepmlf_llm.model.merged import MergedDeepMLF
from deepmlf_llm.modules import FusionStack

CONTAINER = "deepmlf"  # base_model.deepmlf.<adapter>.<module>


class FusionStacks(nn.ModuleDict, BaseTunerLayer):
    """Adapter name -> its :class:`FusionStack`.

    An adapter layer in PEFT's eyes: without one it refuses ``disable_adapter`` and its status reports, and there is no
    other where the LM has no LoRA.
    """

    adapter_layer_names = ("stacks",)
    _active_adapter: list[str]
    _disable_adapters: bool

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._decoder = decoder

    @property
    def stacks(self) -> FusionStacks:
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """PEFT asks for it where it has put loaded tensors in the place of parameters (``low_cpu_mem_usage``)."""
        if adapter_name in self:
            self[adapter_name].to(device or self._decoder.embeddings.weight.device)


class DeepMLFTuner(LoraModel):
    """LoRA on the decoder, plus a :class:`FusionStack` per adapter in ``self.deepmlf``."""

    uses_shared_state = True  # state lives on the tuner: PEFT then refuses inject_adapter_in_model by itself
    deepmlf: FusionStacks
    fused: FusedDecoder
    found: BaseState  # the base as it came; `eject` restores it

    @skip_init_on_device  # ``low_cpu_mem_usage``: the probe needs weights, and an adapter's cost little
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter: checks, LoRA, the stack, hooks, the probe. A refusal leaves the decoder as it was.

        Raises:
            ConfigError, BaseModelError: settings that do not fit this decoder, a decoder that cannot be used, no name.
            InjectionError: the adapter belongs to another base, the base carries another model's adapters, or the probe
                fails.
        """
        if not adapter_name or "." in adapter_name:
            raise ConfigError(f"adapter_name={adapter_name!r}: expected a name without dots; keys hold it")
        if CONTAINER not in self._modules:
            refuse_wrapped(model)  # whose layers a withdrawal would take out
            self.fused = FusedDecoder(Decoder(model))
            self.found = BaseState(model)
            self.deepmlf = FusionStacks(self.fused.decoder)
            keep_weights_in_place(model)
        config = self._own_config(model, adapter_name)
        stack = build_stack(self.fused.decoder, config)
        before = [(p, p.requires_grad) for p in (*model.parameters(), *self.deepmlf.parameters())]
        stacks_before = before[len(list(model.parameters())) :]
        try:
            self._inject_lora(config, model, adapter_name, *args, **kwargs)
            self._check_lm_head(config, adapter_name)
            for parameter, trainable in stacks_before:
                parameter.requires_grad_(trainable)
            self.deepmlf[adapter_name] = stack
            self.deepmlf._active_adapter = self.active_adapters
            stack.set_trainable(adapter_name in self.active_adapters and not config.inference_mode)
            self.fused.injection.attach()
            # Trainer asks the base: our loss is a mean per batch, which Trainer then divides by the batches it sums.
            model.accepts_loss_kwargs = False  # type: ignore[assignment]
            self._probe(stack)
        except Exception:
            self._withdraw(adapter_name)
            for parameter, trainable in before:
                parameter.requires_grad_(trainable)
            raise

    def _inject_lora(self, config: DeepMLFConfig, *args: Any, **kwargs: Any) -> None:
        try:
            super().inject_adapter(*args, **kwargs)
        except ValueError as error:
            raise ConfigError(f"LoRA on the language model (r={config.r}): {error}") from error

    def _check_lm_head(self, config: DeepMLFConfig, adapter_name: str) -> None:
        """The polarity is read from rows of the LM's head as the base has them."""
        head: Any = self.fused.decoder.lm.get_output_embeddings()
        if config.readout != "heads" and adapter_name in getattr(head, "lora_A", ()):
            raise ConfigError(
                f"readout={config.readout!r} reads rows of the LM's own head, and target_modules puts LoRA on it: "
                "leave it out (exclude_modules), or read from the heads"
            )

    def _own_config(self, model: nn.Module, adapter_name: str) -> DeepMLFConfig:
        """This adapter's copy of its config, with the fingerprint of its base; the caller's may serve other bases."""
        config = self.peft_config[adapter_name]
        if not isinstance(config, DeepMLFConfig):
            raise InjectionError(f"adapter {adapter_name!r} has a {type(config).__name__}, expected a DeepMLFConfig")
        config = self.peft_config[adapter_name] = copy.deepcopy(config)
        found = base_fingerprint(model)
        differences = compare_fingerprints(config.base_fingerprint or {}, found)
        if differences:
            raise InjectionError(f"adapter {adapter_name!r} belongs to another base model: {'; '.join(differences)}")
        if config.base_fingerprint is None:  # a new adapter
            config.base_init_seed = init_seed_of(model)
        config.base_fingerprint = config.base_fingerprint or found
        if config.base_quantization is None or not config.inference_mode:  # what it is (or will be) trained on
            config.base_quantization = quantization_of(model)
        return config

    def _probe(self, stack: FusionStack) -> None:
        mode = self.training
        self.eval()
        if can_probe(self.fused.decoder):
            probe(self.fused.decoder, stack)
        self.train(mode)

    def _withdraw(self, adapter_name: str) -> None:
        """Undoes what an injection has done so far."""
        if adapter_name in self.deepmlf:
            del self.deepmlf[adapter_name]
        if self.deepmlf:
            self.delete_adapter(adapter_name)
        else:
            self.unload()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Fuses with the active adapter; with adapters disabled the bare decoder."""
        if self.deepmlf.disable_adapters or not self.deepmlf:
            return self.model(*args, **kwargs)
        # PEFT hands on every argument that a causal LM might have, None where it was not given.
        given = {key: value for key, value in kwargs.items() if value is not None}
        return self.fused.forward(self.active_stack, self.peft_config[self.active_stack_name], *args, **given)

    @property
    def active_stack_name(self) -> str:
        return self.active_adapters[0]

    @property
    def active_stack(self) -> FusionStack:
        return cast(FusionStack, self.deepmlf[self.active_stack_name])

    def train(self, mode: bool = True) -> DeepMLFTuner:
        """The frozen LM stays in eval mode, its dropout off; only what is trained trains.

        Raises:
            ConfigError: reentrant activation checkpointing, under which the AV encoder would get no gradient.
        """
        super().train(mode)
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.train(mode)
                module.get_base_layer().eval()
        for layer in self.fused.decoder.layers if CONTAINER in self._modules else ():
            if getattr(layer, "gradient_checkpointing", False):
                self._train_checkpointed(layer, mode)
        return self

    def _train_checkpointed(self, layer: nn.Module, mode: bool) -> None:
        """transformers checkpoints activations of layers "in training": the flag alone, not their submodules."""
        if getattr(layer._gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ConfigError(
                "gradient checkpointing must not be reentrant: what enters beside the hidden states gets no gradient; "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        if getattr(layer, "dropout", None):  # OPT's layers drop out by that very flag
            if mode:
                warnings.warn(
                    f"{type(layer).__name__} drops out in training mode: its activations are kept", stacklevel=3
                )
            return
        layer.training = mode

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise InjectionError(f"set_adapter({names}): one DeepMLF adapter can be active at a time")
        super().set_adapter(names[0] if names else [], inference_mode=inference_mode)
        self.deepmlf._active_adapter = names
        for name, stack in self.deepmlf.items():
            cast(FusionStack, stack).set_trainable(name in names and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            cast(FusionStack, self.deepmlf[name]).set_trainable(requires_grad)

    def enable_adapter_layers(self) -> None:
        super().enable_adapter_layers()
        self.deepmlf._disable_adapters = False

    def disable_adapter_layers(self) -> None:
        super().disable_adapter_layers()
        self.deepmlf._disable_adapters = True

    def delete_adapter(self, adapter_name: str) -> None:
        active = self.active_adapters
        super().delete_adapter(adapter_name)
        if adapter_name in self.deepmlf:
            del self.deepmlf[adapter_name]
        if adapter_name not in active:
            self.active_adapter: str | list[str] = (
                active  # PEFT looks for it in LoRA layers only, and there may be none
            )
        elif self.deepmlf:
            self.set_adapter(next(iter(self.deepmlf)))

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there is no rule for a sum of fusion modules.

        Raises:
            InjectionError: always.
        """
        raise InjectionError("add_weighted_adapter(): fusion tokens and MM Blocks of several adapters have no sum")

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Text by the plain LM, where adapters are switched off.

        Raises:
            InjectionError: they are not.
        """
        if not self.deepmlf.disable_adapters and self.deepmlf:
            refuse_generate("`with model.disable_adapter(): model.generate(...)`")
        return self.model.generate(*args, **kwargs)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> MergedDeepMLF:
        """See :meth:`deepmlf_llm.model.DeepMLFModel.merge_and_unload`."""
        if adapter_names not in (None, [self.active_stack_name]):
            raise InjectionError(
                f"merge_and_unload(adapter_names={adapter_names}): the active adapter alone can be merged, which is "
                f"{self.active_stack_name!r}; set_adapter chooses it"
            )
        self._check_mergeable()
        stack, config = self.active_stack, copy.deepcopy(self.peft_config[self.active_stack_name])
        for block in stack.blocks.values():  # before the LM changes: a block's FFW is that of the LM without its LoRA
            if block.ffw is not None:
                block.ffw.take_ownership()
        lm: Any = super().merge_and_unload(progressbar, safe_merge)
        return MergedDeepMLF(lm, stack, config)

    def _check_mergeable(self) -> None:
        check_mergeable(self.fused.decoder.lm, self.active_stack_name, self.peft_config[self.active_stack_name])

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Folds LoRA into the LM in place.

        Raises:
            InjectionError: MM Blocks share the LM's FFW, which would change under them.
            ConfigError: the LM's embeddings are its head, and would change with it.
        """
        self._check_mergeable()
        sharing = [
            name
            for name, config in self.peft_config.items()
            if config.ffw_weights == "shared" and config.ffw_scope != "none"
        ]
        if sharing and any(config.has_lm_lora for config in self.peft_config.values()):
            raise InjectionError(
                f"merge_adapter() would change the FFW weights that MM Blocks of adapter {sharing[0]!r} share with the "
                "LM; use merge_and_unload(), which gives them their own"
            )
        super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.fused.injection.detach()
        base: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        self.found.restore(base)
        return base

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """``..deepmlf.<adapter>.heads..`` -> ``..deepmlf.heads..``; PEFT's rule expects the name near the end."""
        before, mark, after = key.partition(f"{CONTAINER}.{adapter_name}.")
        if mark:
            return f"{before}{CONTAINER}.{after}"
        return super()._remove_adapter_name_from_key(key, adapter_name)


PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = DeepMLFTuner
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = LoraModel.prefix
