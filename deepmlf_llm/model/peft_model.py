"""``DeepMLFModel``: DeepMLF's public model, a ``PeftModelForCausalLM`` whose forward predicts polarity."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor, nn

from deepmlf_llm.adapters import files, hub, lora
from deepmlf_llm.adapters.card import adapter_card
from deepmlf_llm.adapters.compatibility import adapter_tensors, check_fit, other_settings
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.deferred import deferred
from deepmlf_llm.errors import AdapterError, ConfigError, DeepMLFError
from deepmlf_llm.fusion.decoder import DeepMLFOutput, FusedDecoder
from deepmlf_llm.model.loading import base_for, refuse_wrapped
from deepmlf_llm.model.merged import MergedDeepMLF
from deepmlf_llm.model.switching import SwitchedModel
from deepmlf_llm.model.tuner import DeepMLFTuner
from deepmlf_llm.modules import FusionStack

_OF_PEFT = frozenset(inspect.signature(PeftModel.load_adapter).parameters)
_TRAINERS_CHECKPOINT = re.compile(r"checkpoint-\d+$")


class DeepMLFModel(SwitchedModel):
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
        refuse_wrapped(base)
        if not isinstance(config, DeepMLFConfig):
            raise ConfigError(f"config is a {type(config).__name__}, expected a DeepMLFConfig")
        super().__init__(base, config, adapter_name, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_counts: Mapping[str, Tensor] | None = None,
        head_labels: Mapping[str, Tensor] | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """Polarity of a batch of utterances, and with labels the loss and its parts.

        Notation used for tensor shapes: b batch, l text tokens, t frames of a modality (each its own), d_m its width.

        Args:
            input_ids: [b x l], padded on either side, at least one real token a row.
            attention_mask: 1 where a token is real [b x l]; default: all.
            labels: polarity [b]; of classes the index of each [b], with several labels 0 and 1 [b x c].
            loss_counts: term of the loss -> what its sum over this batch is divided by, where the batch is part of a
                larger step (see :mod:`~deepmlf_llm.fusion.objective`); default: what the batch has, which gives means.
            head_labels: term of the loss -> labels of its own [b], in the place of ``labels``: "task", "fusion", "av",
                "text".
            features: for each modality of the config ``<name>`` [b x t x d_m] and ``<name>_mask``, True where a frame
                is real [b x t] (default: all). A modality that is not given, or a row masked out, is absent. Beside
                them ``unimodal_labels`` of text, audio, vision [b x 3], NaN where not rated, for ``unimodal_targets``.

        Raises:
            ConfigError: a feature the config does not name, or of another width.
        """
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            loss_counts=loss_counts,
            head_labels=head_labels,
            **features,
        )

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

        LoRA on the LM is part of it, and lies in ``lora/`` once more for plain PEFT; not in a Trainer's checkpoints
        (``checkpoint-<step>``), where Trainer takes a folder with an adapter in it for another adapter.

        Args:
            save_directory: gets ``adapter_model.safetensors``, ``adapter_config.json`` and ``README.md``.
            state_dict: whole weights, where the model's own are shards (ZeRO-3).
            kwargs: as in PEFT; ``selected_adapters`` names another adapter than the active one.

        Raises:
            AdapterError: what was written is not whole (empty, missing or misshapen tensors).
            ConfigError: ``selected_adapters`` does not name one adapter of this model.
        """
        if not kwargs.get("is_main_process", True):
            return
        directory, name = Path(save_directory), self._selected(kwargs.get("selected_adapters"))
        config = self.peft_config[name]
        kwargs |= {"selected_adapters": [name], "save_embedding_layers": False, "safe_serialization": True}
        kwargs.pop("push_to_hub", None)
        writes_lora = config.has_lm_lora and not _TRAINERS_CHECKPOINT.match(directory.name)
        with files.written_aside(directory) as aside:
            super().save_pretrained(str(aside), state_dict=state_dict, **kwargs)
            if name != "default":  # PEFT puts adapters of another name into a folder of theirs
                for path in list((aside / name).iterdir()):
                    path.rename(aside / path.name)
                (aside / name).rmdir()
            files.seal(aside, files.package_versions(), directory)
            _, written = files.read_adapter(aside)
            files.check_tensors(written, adapter_tensors(self, name), save_directory)
            if writes_lora:
                lora.write_lm_lora(aside, config, written)
            (aside / files.CARD).write_text(adapter_card(config, written), encoding="utf-8")
            if not writes_lora:  # before the new settings come, by which an earlier copy would be nobody's
                lora.remove_lm_lora(directory)

    def _selected(self, names: Any) -> str:
        """The one adapter that is to be saved."""
        if names is None:
            return self.base_model.active_stack_name
        if not isinstance(names, (list, tuple)) or len(names) != 1 or names[0] not in self.peft_config:
            raise ConfigError(
                f"selected_adapters={names!r}: expected a list of one of {', '.join(self.peft_config)}; a directory "
                "holds one adapter"
            )
        return str(names[0])

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Nothing: :meth:`save_pretrained` writes a card of ours in the place of PEFT's."""

    def push_to_hub(self, repo_id: str, private: bool | None = None, commit_message: str | None = None) -> str:
        """Uploads what :meth:`save_pretrained` writes, as one commit; returns its address.

        Raises:
            AdapterError: offline, or refused by the hub; nothing has been uploaded.
        """
        return hub.push(self.save_pretrained, repo_id, private, commit_message)

    @classmethod
    @deferred()
    def from_pretrained(
        cls,
        directory: str | Path,
        base: nn.Module | str | Path | None = None,
        is_trainable: bool = False,
        quantization: str = "trained",
        dtype: str = "auto",
        attn_implementation: str = "auto",
        revision: str | None = None,
    ) -> DeepMLFModel | MergedDeepMLF:
        """Loads an adapter, on its own base or on the one given. Everything is checked before anything is loaded.

        Args:
            directory: of the adapter, or its hub id; or of a merged model, which is then what comes back.
            base: the base model, or its name or path; default: found by the name and revision that the adapter gives.
            is_trainable: go on training (else frozen, in eval mode).
            quantization, dtype, attn_implementation: of a base that is loaded here. ``quantization="trained"``: what
                the adapter was trained on; the others as for :func:`~deepmlf_llm.backbones.load_base_model`.
            revision: of an adapter on the hub.

        Raises:
            AdapterError: damaged files, another base, tensors that do not fit; a given base is left as it was.
            TypeError: the base model first, as in PEFT.
        """
        if isinstance(directory, nn.Module):
            raise TypeError(
                f"from_pretrained(directory, base): the adapter's directory comes first, and here a "
                f"{type(directory).__name__} does"
            )
        directory = hub.local_directory(directory, revision)
        if MergedDeepMLF.is_saved_in(directory):
            if base is not None or is_trainable:
                raise AdapterError(f"{directory}: a merged model: it has its base inside, and is not trained further")
            return MergedDeepMLF.from_pretrained(directory, quantization, dtype, attn_implementation)
        config, tensors = files.read_adapter(directory)
        lm = base_for(config, tensors, directory, base, quantization, dtype, attn_implementation)
        config.inference_mode = not is_trainable
        try:
            model = cls(lm, config)
        except DeepMLFError as error:
            raise AdapterError(f"{directory}: {error}") from error
        try:
            files.check_tensors(tensors, adapter_tensors(model, "default"), directory)
        except AdapterError:
            model.eject()
            raise
        set_peft_model_state_dict(model, tensors)
        return model.train(is_trainable)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        revision: str | None = None,
        **of_peft: Any,
    ) -> Any:
        """Another adapter beside those on this base, or other weights for the one of that name (Trainer does that).

        It is not made the active one: see ``set_adapter``. Checked as in :meth:`from_pretrained`.

        Args:
            model_id: directory of the adapter, or its hub id.
            adapter_name: PEFT's name for it. Weights for one that is there already must be of the same settings.
            is_trainable: go on training it.
            revision: of an adapter on the hub.
            of_peft: its other arguments, which change nothing here.

        Raises:
            AdapterError: as there, or weights of other settings; the model is left as it was.
            TypeError: an argument that PEFT has not either.
        """
        if unknown := of_peft.keys() - _OF_PEFT:
            raise TypeError(f"load_adapter() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        directory = hub.local_directory(model_id, revision)
        config, tensors = files.read_adapter(directory)
        check_fit(config, tensors, self.get_base_model(), directory)
        is_new = adapter_name not in self.peft_config
        if is_new:
            config.inference_mode = not is_trainable
            try:
                self.add_adapter(adapter_name, config)
            except DeepMLFError as error:
                raise AdapterError(f"{directory}: {error}") from error
        elif differing := other_settings(config, self.peft_config[adapter_name]):
            raise AdapterError(
                f"{directory}: trained with other settings than adapter {adapter_name!r}, which is there already: "
                f"{'; '.join(differing)}. Load it under another name"
            )
        try:
            files.check_tensors(tensors, adapter_tensors(self, adapter_name), directory)
        except AdapterError:
            if is_new:
                self.delete_adapter(adapter_name)
            raise
        result = set_peft_model_state_dict(self, tensors, adapter_name)
        result.missing_keys.clear()  # the base's own; what the adapter has is all there
        if not is_trainable:
            self.eval()
        return result

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> MergedDeepMLF:
        """One model without PEFT: LoRA folded into the LM, each MM Block's LoRA into its own FFW weights.

        Args:
            progressbar, safe_merge: as in PEFT.
            adapter_names: the active adapter, or None for it.

        Raises:
            ConfigError: the base is quantized: weights that are sums of 4-bit ones do not fit 4 bits; or LoRA is on
                embeddings that are the LM's head too, and a merged model would predict something else.
            InjectionError: another adapter than the active one.
        """
        return self.base_model.merge_and_unload(progressbar, safe_merge, adapter_names)

    def eject(self) -> nn.Module:
        """Takes MM Blocks and hooks out and gives back the very same base model, mode and trainability included."""
        return self.base_model.unload()
