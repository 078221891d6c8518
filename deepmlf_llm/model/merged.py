"""A merged model: everything in one place and one directory, without PEFT, still multimodal.

Gated cross-attention cannot be folded into the LM's weights, so what is merged is LoRA: the LM's into the LM, each MM
Block's into FFW weights of its own. The fusion modules stay beside the LM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepmlf_llm.adapters import files, hub
from deepmlf_llm.adapters.card import merged_card
from deepmlf_llm.adapters.compatibility import base_and_revision, trained_dtype
from deepmlf_llm.adapters.listing import check_listed, list_files, listed_names
from deepmlf_llm.backbones import Decoder, base_fingerprint, load_base_model, load_tokenizer, quantization_of
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.config.method import NO_LM_LORA, DeepMLFConfig
from deepmlf_llm.deferred import deferred
from deepmlf_llm.errors import AdapterError, BaseModelError
from deepmlf_llm.fusion.build import build_stack
from deepmlf_llm.fusion.decoder import DeepMLFOutput, FusedDecoder
from deepmlf_llm.model.base import FusedModel
from deepmlf_llm.modules import FusionStack

REPORT, LISTED = "merge.json", "files.json"
FUSION = "fusion"  # folder of a merged directory that holds all but the LM, in the adapter's own file format
APART = (FUSION, files.CARD)  # the fusion modules carry hashes of their own; the card may be edited


class MergedDeepMLF(FusedModel, nn.Module):
    """A decoder with its fusion modules, for inference.

    Args:
        lm: the causal LM, LoRA folded in.
        stack: fusion modules whose FFWs own their weights.
        config: of the adapter that was merged.
    """

    def __init__(self, lm: nn.Module, stack: FusionStack, config: DeepMLFConfig) -> None:
        super().__init__()
        self.lm = lm
        self.stack = stack
        self.config = config
        config.r, config.target_modules, config.ffw_weights = 0, NO_LM_LORA, "copy"
        config.dequantize_copy = True  # own FFW weights are in the files, whatever the LM's are stored in
        config.base_fingerprint, config.base_quantization = base_fingerprint(lm), quantization_of(lm)
        config.base_init_seed = None  # the weights are in the files
        dtype = lm.get_input_embeddings().weight.dtype  # type: ignore[operator]
        for block in stack.blocks.values():
            if block.ffw is not None:
                block.ffw.own.to(dtype)  # as exact as the LM's own, not twice as large
        self._fused = FusedDecoder(Decoder(lm))
        self._fused.injection.attach()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MergedDeepMLF:
        """Nothing drops out here: the LM is frozen, and so is the rest."""
        return super().train(False)

    @property
    def deepmlf_config(self) -> DeepMLFConfig:
        return self.config

    @property
    def active_stack(self) -> FusionStack:
        return self.stack

    @property
    def fused_decoder(self) -> FusedDecoder:
        return self._fused

    plain_lm = "merged.lm.generate(...)"

    def get_base_model(self) -> nn.Module:
        return self.lm

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """As :meth:`deepmlf_llm.model.DeepMLFModel.forward`."""
        return self._fused.forward(self.stack, self.config, input_ids, attention_mask, labels, None, None, **features)

    def save_pretrained(
        self, directory: str | Path, tokenizer: Any = None, report: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Writes one directory that loads without the adapter, and into no PEFT model.

        Args:
            directory: gets the LM as transformers saves it, and ``fusion/``.
            tokenizer: saved with it.
            report: what merging changed, for the card and ``fusion/merge.json``: what was compared -> ``largest`` and
                ``mean`` difference of polarities.

        Raises:
            AdapterError: what was written is not whole.
        """
        from safetensors.torch import save_file

        with files.written_aside(Path(directory)) as aside:
            self.lm.save_pretrained(aside)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            fusion = aside / FUSION
            fusion.mkdir()
            tensors = {name: tensor.contiguous() for name, tensor in self.stack.state_dict().items()}
            save_file(tensors, fusion / files.WEIGHTS, {"format": "pt"})
            (fusion / files.CONFIG).write_text(self.config.to_json(), encoding="utf-8")
            files.seal(fusion, files.package_versions(), Path(directory) / FUSION)
            files.check_tensors(files.read_adapter(fusion)[1], tensors, directory)
            if report is not None:
                (fusion / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (aside / files.CARD).write_text(merged_card(self.config, FUSION, report), encoding="utf-8")
            list_files(aside, fusion / LISTED, APART)
            before, now = (listed_names(place / FUSION / LISTED) for place in (Path(directory), aside))
        for name in before - now:  # of a merged model that was saved there earlier, in more parts perhaps
            (Path(directory) / name).unlink(missing_ok=True)

    def push_to_hub(self, repo_id: str, private: bool | None = None, commit_message: str | None = None) -> str:
        """As :meth:`deepmlf_llm.model.DeepMLFModel.push_to_hub`."""
        return hub.push(self.save_pretrained, repo_id, private, commit_message)

    @staticmethod
    def is_saved_in(directory: str | Path) -> bool:
        return (Path(directory) / FUSION / files.CONFIG).is_file()

    @classmethod
    @deferred()
    def from_pretrained(
        cls, directory: str | Path, quantization: str = "none", dtype: str = "auto", attn_implementation: str = "auto"
    ) -> MergedDeepMLF:
        """Loads a merged directory; its files are checked first.

        Args:
            directory: as :meth:`save_pretrained` wrote it.
            quantization, dtype, attn_implementation: of the LM; ``"none"`` (or ``"trained"``): as it was saved.

        Raises:
            AdapterError: damaged files, or fusion modules that do not fit the LM beside them.
        """
        fusion = Path(directory) / FUSION
        config, tensors = files.read_adapter(fusion)
        check_listed(Path(directory), fusion / LISTED, APART)
        kind = "none" if quantization == "trained" else quantization
        try:
            shape = base_model_shape(str(directory))
            files.check_fit(config, tensors, shape, fusion, lambda: build_stack(Decoder(shape), config).state_dict())
            lm = load_base_model(str(directory), kind, trained_dtype(config, dtype), attn_implementation)
        except BaseModelError as error:
            raise AdapterError(f"{directory}: damaged: {error}") from error
        files.check_base(config, lm, directory)
        stack = build_stack(Decoder(lm), config)
        stack.load_state_dict(tensors)
        return cls(lm, stack, config)


def tokenizer_beside(directory: str | Path, config: DeepMLFConfig, base: Any = None) -> Any:
    """The tokenizer beside an adapter or in a merged directory, where there is one, else that of the base model.

    Args:
        directory: of the adapter, or the merged one.
        config: of it.
        base: the base model that is used; default: the one that the adapter names.

    Raises:
        AdapterError: there is none beside, and the base that is named is not there.
        BaseModelError: the base has none.
    """
    if (Path(directory) / "tokenizer_config.json").is_file():
        return load_tokenizer(str(directory))
    used = None if MergedDeepMLF.is_saved_in(directory) else getattr(base, "name_or_path", None)
    name, revision = base_and_revision(config, directory, used or None)
    return load_tokenizer(name, revision)


def read_settings(directory: str | Path) -> DeepMLFConfig:
    """The settings of an adapter or of a merged directory.

    Raises:
        AdapterError: neither of the two, or damaged.
    """
    place = Path(directory)
    return files.read_config(place / FUSION if MergedDeepMLF.is_saved_in(place) else place)


def identity_of(directory: str | Path) -> str:
    """A hash over what the predictions of an adapter or of a merged directory come from.

    Raises:
        AdapterError: neither of the two.
    """
    place = Path(directory)
    merged = MergedDeepMLF.is_saved_in(place)
    digest = hashlib.sha256()
    for path in [place / FUSION / files.CONFIG, place / FUSION / LISTED] if merged else [place / files.CONFIG]:
        if not path.is_file():
            raise AdapterError(f"{directory}: no {path.name}: expected the directory of a saved adapter")
        digest.update(path.read_bytes())  # which holds the hashes of all other files
    return digest.hexdigest()
