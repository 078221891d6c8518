"""Mirrors ``media/encoders.py``, ``hearing.py`` and ``seeing.py``: small random encoders of every family."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as hf

from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.media.encoders import FAMILIES, load_encoder, weights_digest
from deepmlf_llm.media.hearing import open_audio_encoder
from deepmlf_llm.media.seeing import Outline, open_vision_encoder, resized
from tests.media.clips import tone

pytest.importorskip("PIL", reason="needs Pillow")

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_CONVOLUTIONS = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **_SMALL}
_PICTURE = {"image_size": 32, "patch_size": 8, **_SMALL}
_WHISPER = {
    "d_model": 16,
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 2))},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
    "vocab_size": 60,
    **{f"{name}_token_id": 1 for name in ("bos", "eos", "pad", "decoder_start")},
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_MOONSHINE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    **{f"{side}_num_{what}": 2 for side in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")},
    "vocab_size": 60,
}


def _build(model_type):
    """A small random model of a family, whole as checkpoints are."""
    return {
        "whisper": lambda: hf.WhisperModel(hf.WhisperConfig(**_WHISPER)),
        "wav2vec2": lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**_CONVOLUTIONS)),
        "hubert": lambda: hf.HubertModel(hf.HubertConfig(**_CONVOLUTIONS)),
        "wavlm": lambda: hf.WavLMModel(hf.WavLMConfig(**_CONVOLUTIONS)),
        "moonshine": lambda: hf.MoonshineModel(hf.MoonshineConfig(**_MOONSHINE)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=_PICTURE, text_config={**_SMALL, "vocab_size": 60})),
        "siglip": lambda: hf.SiglipModel(
            hf.SiglipConfig(vision_config=_PICTURE, text_config={**_SMALL, "vocab_size": 60})
        ),
        "siglip2": lambda: hf.Siglip2Model(
            hf.Siglip2Config(
                vision_config={"patch_size": 8, "num_patches": 16, **_SMALL}, text_config={**_SMALL, "vocab_size": 60}
            )
        ),
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**{**_PICTURE, "mlp_ratio": 2})),
        "dinov3_vit": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_PICTURE, num_register_tokens=2)),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**_PICTURE)),
    }[model_type]()


WHOLE = [name for name in FAMILIES if not name.endswith("_vision_model")]
AUDIO = [name for name in WHOLE if FAMILIES[name].sense == "audio"]
VISION = [name for name in WHOLE if FAMILIES[name].sense == "vision"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Model type -> directory of a small random checkpoint."""
    root = tmp_path_factory.mktemp("encoders")
    for name in WHOLE:
        torch.manual_seed(0)
        _build(name).save_pretrained(root / name)
    return root


def encode(encoder, *blocks):
    times, values = zip(*encoder.encode(blocks), strict=True)
    return np.concatenate(times), np.concatenate(values)


@pytest.mark.parametrize("name", AUDIO)
def test_sound_of_two_seconds_has_the_frames_of_its_family(encoders, name):
    encoder = open_audio_encoder(str(encoders / name))
    times, values = encode(encoder, tone(2.0))
    expected = {"whisper": 100, "moonshine": (32000 - 895) // 384 + 1}.get(name, (32000 - 400) // 320 + 1)
    assert values.shape == (expected, 16)
    assert encoder.dim == 16
    assert np.isfinite(values).all()
    assert np.diff(times) == pytest.approx(0.024 if name == "moonshine" else 0.02)
    assert 0 < times[0] < 0.03
    assert times[-1] < 2.0
    assert len(encode(encoder, tone(0.01))[1]) == 1  # less than one frame hears


@pytest.mark.parametrize("name", VISION)
def test_a_picture_is_one_frame(encoders, name):
    encoder = open_vision_encoder(str(encoders / name))
    assert encoder.side == 32
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    values = encoder.encode(pictures)
    assert values.shape == (3, 16) == (3, encoder.dim)
    np.testing.assert_allclose(encoder.encode(pictures[1:2])[0], values[1], atol=1e-5)
    assert np.abs(values[0] - values[1]).max() > 1e-3


def test_clip_is_what_transformers_makes_of_it(encoders, tmp_path):
    model = hf.CLIPModel.from_pretrained(encoders / "clip").eval()
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "crop_size": {"height": 32, "width": 32}}
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    encoder = open_vision_encoder(str(tmp_path))
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    pixels = (picture / 255.0 - said["image_mean"]) / said["image_std"]
    with torch.no_grad():
        expected = model.vision_model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]).pooler_output
    np.testing.assert_allclose(encoder.encode([picture]), expected.numpy(), atol=1e-5)
    assert encoder.facts["mean"] == said["image_mean"]


@pytest.mark.parametrize(("name", "part"), [("clip", "image_processor"), ("wav2vec2", "feature_extractor")])
def test_what_transformers_5_writes_of_a_processor_is_read(encoders, tmp_path, name, part):
    shutil.copytree(encoders / name, tmp_path / "model")
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
    (tmp_path / "model" / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({part: said, "processor_class": "P"}))
    if name == "clip":
        assert open_vision_encoder(str(tmp_path / "model")).mean == said["image_mean"]
    else:
        assert open_audio_encoder(str(tmp_path / "model")).normalise is True


def test_clip_without_a_word_of_its_scale_has_the_familys(encoders, tmp_path):
    hf.CLIPModel.from_pretrained(encoders / "clip").save_pretrained(tmp_path)
    assert open_vision_encoder(str(tmp_path)).mean == pytest.approx([0.481, 0.458, 0.408], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", None, "its weights cannot be read"),
        ("model.safetensors", b"\x00" * 40, "its weights cannot be read"),
        ("preprocessor_config.json", b"{", "its preprocessor_config.json is damaged"),
    ],
)
def test_a_damaged_encoder_is_one_sentence(encoders, tmp_path, name, content, said):
    hf.CLIPModel.from_pretrained(encoders / "clip").save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_vision_encoder(str(tmp_path))


def test_whisper_s_encoder_is_the_one_of_the_file(encoders):
    """``WhisperEncoder.from_pretrained`` would load nothing, and say nothing."""
    loaded = load_encoder(str(encoders / "whisper"), "audio")
    expected = hf.WhisperModel.from_pretrained(encoders / "whisper").get_encoder()
    assert loaded.weights == weights_digest(expected)
    torch.manual_seed(1)
    random = hf.WhisperModel(hf.WhisperConfig(**_WHISPER)).get_encoder()
    assert loaded.weights != weights_digest(random)


def test_31_seconds_are_not_cut(encoders):
    encoder = open_audio_encoder(str(encoders / "whisper"))
    sound = tone(31.0)
    times, values = encode(encoder, sound[: 30 * 16000], sound[30 * 16000 :])
    assert values.shape == (1550, 16)
    assert times[-1] == pytest.approx(30.99)
    np.testing.assert_allclose(encode(encoder, sound[30 * 16000 :])[1], values[1500:], atol=1e-6)


def test_layers_differ_and_their_mean_is_their_mean(encoders):
    place, sound = str(encoders / "wav2vec2"), tone(0.5)
    last, mean, first, second = (encode(open_audio_encoder(place, k), sound)[1] for k in ("last", "mean", "1", "2"))
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    np.testing.assert_allclose(last, second, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    with pytest.raises(ConfigError, match="a number from 0 to 2"):
        encode(open_audio_encoder(place, "7"), sound)
    with pytest.raises(ConfigError, match="expected last, mean or a number"):
        open_audio_encoder(place, "lats")


def test_missing_weights_are_refused(encoders, tmp_path):
    from safetensors.torch import load_file, save_file

    model = hf.ViTModel.from_pretrained(encoders / "vit")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if "attention" in name)
    save_file(
        {k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(DataError, match="features would be random"):
        load_encoder(str(tmp_path), "vision")


def test_names_that_mean_nothing_are_refused(encoders, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'outline'"):
        open_vision_encoder("outlin")
    with pytest.raises(ConfigError, match="family 'vit': for audio expected one of whisper"):
        open_audio_encoder(str(encoders / "vit"))
    with pytest.raises(ConfigError, match="packaged: prosody, whisper-base"):
        open_audio_encoder(str(tmp_path))


def test_an_encoder_with_code_of_its_own_is_refused_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    named = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_its_own", "auto_map": named}))
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ConfigError, match="no directory or hub id of a model that can be read"):
        load_encoder(str(tmp_path), "audio")


def test_the_outline_sees_edges_by_their_direction():
    def stripes(angle):
        y, x = np.mgrid[:64, :64] / 64
        wave = np.sin(2 * np.pi * 8 * (x * np.cos(angle) + y * np.sin(angle)))
        return np.repeat(np.round(127 + 120 * wave).astype(np.uint8)[..., None], 3, 2)

    angles = np.arange(8) * np.pi / 8
    values = Outline().encode([stripes(angle) for angle in angles]).reshape(8, 64, 8)
    assert values.mean(1).argmax(1).tolist() == list(range(8))
    blank = Outline().encode([np.full((64, 64, 3), 90, np.uint8)])
    assert blank.shape == (1, 512)
    assert not blank.any()


def test_pictures_are_made_smaller_by_looking_at_every_pixel():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    grey = resized(np.repeat(board.astype(np.uint8)[..., None], 3, 2), 16)
    assert grey.shape == (16, 16, 3)
    assert np.abs(grey.astype(int) - 127).max() < 12
