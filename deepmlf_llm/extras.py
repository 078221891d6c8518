"""Packages that not every use needs: which extra brings them, and one sentence where one is missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from deepmlf_llm.errors import MissingPackageError

EXTRAS = {
    "PIL": "media",
    "av": "media",
    "bitsandbytes": "quant",
    "cv2": "faces",
    "datasets": "train",
    "deepspeed": "train",
    "faster_whisper": "asr",
    "gguf": "quant",
    "gradio": "demo",
    "h5py": "data",
    "matplotlib": "study",
    "pyarrow": "study",
    "scipy": "train",
    "skimage": "lbp",
    "sklearn": "train",
    "tensorboard": "tensorboard",
}
"""Module -> the extra of this package that installs it."""

_PACKAGES = {  # where module and package have different names
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "faster_whisper": "faster-whisper",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def installed(module: str) -> bool:
    """Whether a module of :data:`EXTRAS` can be imported; nothing is loaded."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent package is missing, or the module is blocked
        return False


def require(module: str, purpose: str) -> Any:
    """Imports a module that may be missing.

    Args:
        module: of :data:`EXTRAS`, or a module inside one (``"scipy.stats"``).
        purpose: what needs it, as the message begins: "the correlation of polarities".

    Raises:
        MissingPackageError: not installed; the message has the pip line.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != top:
            raise  # it is there, and something that it needs itself is not
        raise MissingPackageError(missing(top, purpose)) from None


def missing(module: str, purpose: str) -> str:
    """The sentence about a missing module, with the pip line."""
    package = _PACKAGES.get(module, module)
    return f"{purpose} needs the package {package}: pip install 'deepmlf_llm[{EXTRAS[module]}]'"
