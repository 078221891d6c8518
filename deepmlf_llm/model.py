"""``DeepMLFModel``: the public face of DeepMLF, a ``PeftModelForCausalLM`` whose forward speaks of polarity."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from deepmlf_llm.adapters import files
from deepmlf_llm.backbones import base_fingerprint, compare_fingerprints, is_quantised, load_base_model
from deepmlf_llm.config import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError, InjectionError
from deepmlf_llm.fused_decoder import DeepMLFOutput, FusedDecoder
from deepmlf_llm.fused_model import FusedModel
from deepmlf_llm.merged import MergedDeepMLF
from deepmlf_llm.modules import FusionStack
from deepmlf_llm.tuner import DeepMLFTuner


class DeepMLFModel(FusedModel, PeftModelForCausalLM):
    """A frozen decoder that reads text, and fusion tokens that read the text, hear and see (arXiv 2504.11082).

    Args:
        base: a causal LM; its modules, keys and classes stay what they are. :meth:`eject` gives it back.
        config: see :class:`DeepMLFConfig`.
        adapter_name: PEFT's name for this adapter.

    Raises:
        ConfigError: settings that do not fit this decoder.
        BaseModelError: no causal decoder of a declared family.
        InjectionError: ``base`` is wrapped already, or does not behave as its interface says. It is left as it was.
    """

    base_model: DeepMLFTuner

    def __init__(self, base: nn.Module, config: DeepMLFConfig, adapter_name: str = "default", **kwargs: Any) -> None:
        if isinstance(base, PeftModel) or hasattr(base, "peft_config"):
            raise InjectionError(
                "the base model carries a PEFT adapter already; give the bare causal LM, and ask for LoRA on it with "
                "DeepMLFConfig(r=...)"
            )
        if not isinstance(config, DeepMLFConfig):
            raise ConfigError(f"config is a {type(config).__name__}, expected a DeepMLFConfig")
        super().__init__(base, config, adapter_name, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """Polarity of a batch of utterances, and with labels the loss and its parts.

        Notation used for tensor shapes: b batch, l text tokens, t frames of a modality (each its own), d_m its width.

        Args:
            input_ids: [b x l], padded on either side, at least one real token a row.
            attention_mask: 1 where a token is real [b x l]; default: all.
            labels: polarity [b].
            features: for each modality of the config ``<name>`` [b x t x d_m] and ``<name>_mask``, True where a frame
                is real [b x t] (default: all). A modality that is not given, or a row masked out, is absent.

        Raises:
            ConfigError: a feature the config does not name, or of another width.
        """
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **features)

    @property
    def deepmlf_config(self) -> DeepMLFConfig:
        return self.peft_config[self.base_model.active_stack_name]

    @property
    def active_stack(self) -> FusionStack:
        return self.base_model.active_stack

    @property
    def fused_decoder(self) -> FusedDecoder:
        return self.base_model.fused

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by role: ``av_encoder``, ``fusion`` (the rest of DeepMLF), ``lm_lora``."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"av_encoder": [], "fusion": [], "lm_lora": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                role = "lm_lora" if ".deepmlf." not in name else "av_encoder" if ".av_encoder." in name else "fusion"
                groups[role].append((name, parameter))
        return groups

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Writes the active adapter: what was trained, its settings, a card. Written aside, read again, then renamed.

        Args:
            save_directory: gets ``adapter_model.safetensors``, ``adapter_config.json`` and ``README.md``.
            state_dict: whole weights, where the model's own are shards (ZeRO-3).
            kwargs: as in PEFT.

        Raises:
            AdapterError: what was written is not whole (empty, missing or misshapen tensors).
        """
        name = self.base_model.active_stack_name
        kwargs |= {"selected_adapters": [name], "save_embedding_layers": False, "safe_serialization": True}
        with files.written_aside(Path(save_directory)) as aside:
            super().save_pretrained(str(aside), state_dict=state_dict, **kwargs)
            if name != "default":  # PEFT puts adapters of another name into a folder of theirs
                for path in list((aside / name).iterdir()):
                    path.rename(aside / path.name)
                (aside / name).rmdir()
            files.seal(aside, files.package_versions())
            written = files.read_weights(aside, files.read_config(aside))
            files.check_tensors(written, self._adapter_tensors(name), save_directory)
            parameters = sum(p.numel() for group in self.parameter_groups().values() for _, p in group)
            (aside / files.CARD).write_text(files.model_card(self.deepmlf_config, parameters))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        base: nn.Module | None = None,
        is_trainable: bool = False,
        quantization: str = "none",
        dtype: str = "auto",
        attn_implementation: str = "auto",
    ) -> DeepMLFModel | MergedDeepMLF:
        """Loads an adapter, on its own base or on the one given. Everything is checked before anything is loaded.

        Args:
            directory: of the adapter; or of a merged model, which is then what comes back.
            base: the base model; default: found by the name and revision that the adapter gives.
            is_trainable: go on training (else frozen, in eval mode).
            quantization, dtype, attn_implementation: of a base that is loaded here.

        Raises:
            AdapterError: damaged files, another base, tensors that do not fit; a given base is left as it was.
        """
        if MergedDeepMLF.is_saved_in(directory):
            return MergedDeepMLF.from_pretrained(directory, quantization, dtype, attn_implementation)
        config = files.read_config(directory)
        tensors = files.read_weights(directory, config)
        if base is None:
            name = config.base_model_name_or_path
            if not name:
                raise AdapterError(f"{directory}: names no base model; give it with base=...")
            base = load_base_model(name, quantization, dtype, attn_implementation, config.revision)
        differences = compare_fingerprints(config.base_fingerprint or {}, base_fingerprint(base))
        if differences:
            raise AdapterError(f"{directory}: another base model; {'; '.join(differences)}")
        config.inference_mode = not is_trainable
        try:
            model = cls(base, config)
        except (ConfigError, InjectionError) as error:
            raise AdapterError(f"{directory}: {error}") from error
        try:
            files.check_tensors(tensors, model._adapter_tensors("default"), directory)
        except AdapterError:
            model.eject()
            raise
        set_peft_model_state_dict(model, tensors)
        return model.train(is_trainable)

    def load_adapter(self, model_id: str | Path, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As in PEFT, several adapters on one base; a local directory is checked first, see :meth:`from_pretrained`."""
        if Path(model_id).is_dir():
            config = files.read_config(model_id)
            files.read_weights(model_id, config)
            differences = compare_fingerprints(config.base_fingerprint or {}, base_fingerprint(self.get_base_model()))
            if differences:
                raise AdapterError(f"{model_id}: another base model; {'; '.join(differences)}")
        return super().load_adapter(str(model_id), adapter_name, *args, **kwargs)

    def _adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """What an adapter's file holds, by the file's keys."""
        return get_peft_model_state_dict(self, adapter_name=name, save_embedding_layers=False)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> MergedDeepMLF:
        """One model without PEFT: LoRA folded into the LM, each MM Block's LoRA into its own FFW weights.

        Raises:
            ConfigError: the base is quantised: weights that are sums of 4-bit ones do not fit 4 bits.
        """
        if is_quantised(self.get_base_model()):
            raise ConfigError(
                "a quantised base cannot be merged into: load the adapter on base.dequantize() (same outputs) or on "
                "the 16-bit original, then merge (recipes/merge_adapter.py --base dequantized|16bit)"
            )
        stack, config = self.active_stack, copy.deepcopy(self.deepmlf_config)
        for block in stack.blocks.values():  # before the LM changes: a block's FFW is that of the LM without its LoRA
            block.ffw.take_ownership()
        lm = self.base_model.merge_and_unload(*args, **kwargs)
        return MergedDeepMLF(lm, stack, config)

    def eject(self) -> nn.Module:
        """Takes MM Blocks and hooks out and gives back the very same base model."""
        return self.base_model.unload()
