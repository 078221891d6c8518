"""What a run begins with: the weights of an adapter, an AV encoder that was trained alone, or fresh ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from deepmlf_llm.adapters import av_encoder_file, files
from deepmlf_llm.adapters.av_encoder_file import AVEncoderFile
from deepmlf_llm.adapters.compatibility import adapter_tensors
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.training.init_from import read_start
from deepmlf_llm.training.settings import RunSettings

INSIDE = "av_encoder"  # of a run that has trained one


class Start(Protocol):
    """Weights to begin with."""

    @property
    def digest(self) -> str | None:
        """sha256 of the file that they are from."""

    def check(self, config: DeepMLFConfig) -> list[str]:
        """Before anything loads, whether the file fits the run; returns what differs without harm."""

    def put_into(self, model: Any) -> list[str]:
        """Loads them, all or none; returns what a user may want to know."""


@dataclass
class StartingEncoder:
    """An AV encoder that a run begins with.

    Args:
        name: as given.
        file: what is there.
    """

    name: str
    file: AVEncoderFile

    @property
    def digest(self) -> str | None:
        return self.file.digest

    def check(self, config: DeepMLFConfig) -> list[str]:
        """Before anything loads.

        Raises:
            AdapterError: other settings, modalities or features, by name.
        """
        return [f"{self.name} was trained with {note}" for note in self.file.check(config)]

    def put_into(self, model: Any) -> list[str]:
        """Loads the weights; the same on every process, before an engine splits the model.

        Args:
            model: a new :class:`~deepmlf_llm.model.DeepMLFModel`.

        Raises:
            AdapterError: tensors that do not fit, by name.
        """
        encoder = model.active_stack.av_encoder
        self.file.check_tensors(encoder.state_dict())
        encoder.load_state_dict(self.file.tensors)
        return [f"AV encoder from {self.name}" + (", frozen" if model.deepmlf_config.freeze_av_encoder else "")]


def read_encoder(name: str) -> StartingEncoder:
    """The AV encoder of ``av_encoder_from``: its directory, or a run that has one.

    Raises:
        AdapterError: not there, or damaged.
    """
    directory = Path(name).expanduser()
    if not (directory / av_encoder_file.SETTINGS).is_file() and (directory / INSIDE).is_dir():
        directory = directory / INSIDE
    try:
        return StartingEncoder(name, av_encoder_file.read_av_encoder(directory))
    except AdapterError as error:
        raise AdapterError(f"av_encoder_from={name}: {error}") from None


def start_of(settings: RunSettings) -> Start | None:
    """What the settings ask to begin with; None: fresh weights.

    Raises:
        AdapterError: it is not there, or damaged.
    """
    if settings.init_from is not None:
        return read_start(settings.init_from)
    return None if settings.av_encoder_from is None else read_encoder(settings.av_encoder_from)


def find_start(settings: RunSettings, needed: bool) -> Start | None:
    """The same; None too where it is not there and not needed, because the run goes on from a checkpoint.

    Raises:
        AdapterError: it is needed, and not there or damaged.
    """
    try:
        return start_of(settings)
    except AdapterError:
        if needed:
            raise
        return None


def restore(model: Any, checkpoint: Path, whole: bool = False) -> None:
    """What a checkpoint's adapter holds and its engine's files lack: what nobody trains (a frozen AV encoder), or all.

    Args:
        model: a new :class:`~deepmlf_llm.model.DeepMLFModel`, before an engine splits it.
        checkpoint: directory of it.
        whole: trained weights too: the engine has no files of its own there.

    Raises:
        AdapterError: the adapter there is damaged, or of another model.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return  # the AV encoder alone
    members = adapter_tensors(model, model.base_model.active_stack_name)
    if not whole:
        members = {k: p for k, p in members.items() if isinstance(p, nn.Parameter) and not p.requires_grad}
    if not members:
        return
    stored = files.read_adapter(checkpoint)[1]
    files.check_tensors({key: tensor for key, tensor in stored.items() if key in members}, members, checkpoint)
    with torch.no_grad():
        for key, tensor in members.items():
            tensor.copy_(stored[key])


def fact_name(settings: RunSettings) -> str:
    """Under which name ``run.json`` holds its digest."""
    return "init_from" if settings.av_encoder_from is None else "av_encoder_from"
