"""Predictions do not depend on company: order, batches, padding, missing modalities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError, DataError, InjectionError
from deepmlf_llm.inference import predictor as inference
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.peft_model import DeepMLFModel

MEAN, STD = [1.0, 2.0, 3.0], [2.0, 2.0, 0.5]
FACTS = {"mean": MEAN, "std": STD, "clip": 10.0, "constant": []}


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    config = DeepMLFConfig(
        fusion_layers=[1, 3],
        ffw_scope="fusion",
        modalities={"audio": {"dim": 3, "standardisation": FACTS}, "vision": {"dim": 2}},
        text={"case": "lower", "template": "{text} ?"},
    )
    model = DeepMLFModel(load_base_model("tiny-llama"), config)
    return SentimentPredictor(model, load_tokenizer("tiny-llama"), batch_size=3)


@pytest.fixture(scope="module")
def utterances():
    rng = np.random.default_rng(0)
    text = ["I LOVED it", "no", "it was, well, two hours long", "fine", "no"]
    audio = [rng.normal(size=(t, 3)) for t in (5, 1, 9, 4, 7)]
    vision = [rng.normal(size=(t, 2)) if t else None for t in (3, 0, 2, 60, 0)]
    return text, audio, vision


def numbers(prediction):
    return np.array([prediction.polarity, prediction.text_polarity, prediction.fusion_polarity])


def test_a_prediction_does_not_depend_on_its_batch_and_order_is_kept(predictor, utterances):
    text, audio, vision = utterances
    together = predictor.predict(text, audio=audio, vision=vision)
    for i, prediction in enumerate(together):
        (alone,) = predictor.predict([text[i]], audio=[audio[i]], vision=[vision[i]])
        np.testing.assert_allclose(numbers(alone), numbers(prediction), atol=1e-5)
    turned = predictor.predict(text[::-1], audio=audio[::-1], vision=vision[::-1])
    np.testing.assert_allclose([numbers(p) for p in turned[::-1]], [numbers(p) for p in together], atol=1e-5)


def test_predictions_equal_the_model_on_standardised_features_and_prepared_text(predictor, utterances):
    text, audio, _ = utterances
    (prediction,) = predictor.predict(text[:1], audio=audio[:1])
    device = predictor.model.device
    ids = torch.tensor([load_tokenizer("tiny-llama")("i loved it ?")["input_ids"]], device=device)
    frames = (torch.tensor(audio[0]) - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        expected = predictor.model(ids, audio=frames[None].float().to(device)).polarity.item()
    assert prediction.polarity == pytest.approx(expected, abs=1e-5)
    (same,) = predictor.predict(text[:1], standardised=True, audio=[frames.numpy()])
    assert same.polarity == pytest.approx(expected, abs=1e-5)


def test_a_missing_modality_is_absent_however_it_is_said(predictor):
    ways = [{}, {"audio": None}, {"audio": [None], "vision": [[]]}, {"vision": [np.empty((0, 2))]}]
    predictions = [predictor.predict(["a word"], **way)[0] for way in ways]
    assert len({round(p.polarity, 5) for p in predictions}) == 1
    assert all(p.av_polarity is None for p in predictions)
    assert predictor.predict(["a word"], vision=[np.ones((2, 2))])[0].av_polarity is not None


def test_labels_follow_the_rule_of_the_data_set_and_gates_are_told(predictor, utterances):
    text, audio, vision = utterances
    for prediction in predictor.predict(text, audio=audio, vision=vision):
        rounded = round(prediction.polarity)  # MOSI's three classes
        assert prediction.label == ("neutral" if rounded == 0 else "positive" if rounded > 0 else "negative")
    assert predictor.gates == {f"layer {i}": {"gca": 0.5, "ffw": 0.5} for i in (1, 3)}


def test_utterances_that_share_a_text_read_it_once(predictor):
    predictor.model.enable_text_cache("memory")
    predictor.predict(["the same words"] * 7, audio=[np.full((2, 3), i) for i in range(7)])
    assert len(predictor.model.text_cache) == 1


def test_what_is_kept_in_memory_is_bounded_and_somebodys_own_choice_is_left_alone(predictor, monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "TEXT_CACHE_BYTES", 0)
    model, text = predictor.model, ["a word", "another word"]
    model.enable_text_cache("memory", storage="bfloat16", fusion_tokens=True)
    expected = [p.polarity for p in predictor.predict(text)]
    assert len(model.text_cache) == len(model.fused_decoder.token_cache) == model.text_cache.nbytes == 0
    assert model.text_cache.storage == "bfloat16"
    model.enable_text_cache("disk", tmp_path)
    predictor.predict(text)
    assert len(model.text_cache) == 2
    model.enable_text_cache("none")
    assert [p.polarity for p in predictor.predict(text)] == pytest.approx(expected, abs=0.05)
    assert model.fused_decoder.cache is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": ["a"], "audoi": [None]}, r"'audoi' \(did you mean 'audio'\?\)"),
        ({"text": ["a", "b"], "audio": [None]}, "audio: 1 sequences for 2 texts"),
        ({"text": ["a", "b"], "audio": [None, np.ones((4, 7))]}, r"utterance 1: audio: .*\[4, 7\].*\[frames, 3\]"),
        ({"text": ["a"], "audio": [np.ones(4)]}, r"utterance 0: audio: .*\[4\]"),
        ({"text": ["a"], "audio": [[["x"]]]}, "not a table of numbers"),
        ({"text": [None]}, "utterance 0: text is NoneType"),
        ({"text": "ab"}, r"text='ab' is one text: expected a list of them, \['ab'\]"),
    ],
)
def test_bad_input_is_named(predictor, call, message):
    with pytest.raises(DataError, match=message):
        predictor.predict(**call)


def test_a_model_in_training_mode_does_not_predict(predictor):
    expected = predictor.predict(["a"])[0].polarity
    predictor.model.train()
    try:
        with pytest.raises(InjectionError, match=r"training mode: call model\.eval\(\)"):
            predictor.predict(["a"])
    finally:
        predictor.model.eval()
    assert predictor.predict(["a"])[0].polarity == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_another_model_or_no_number_of_utterances_is_refused(predictor, batch_size):
    with pytest.raises(ConfigError, match=r"model is a LlamaForCausalLM, expected a DeepMLFModel(.|\n)*batch_size="):
        SentimentPredictor(predictor.model.get_base_model(), predictor.tokenizer, batch_size)


def test_several_numbers_of_a_scale_are_no_prediction(predictor):
    several = DeepMLFModel(load_base_model("tiny-llama"), DeepMLFConfig(fusion_layers=[1], num_outputs=2))
    with pytest.raises(ConfigError, match="num_outputs=2: a predictor says one number"):
        SentimentPredictor(several, predictor.tokenizer)


def test_tensors_of_a_graph_and_in_bf16_are_frames(predictor):
    frames = torch.randn(4, 3).bfloat16().float()
    expected, *others = (
        predictor.predict(["a"], audio=[given])[0].polarity
        for given in (frames.numpy(), frames.clone().requires_grad_(), frames.bfloat16(), list(frames.bfloat16()))
    )
    assert others == pytest.approx([expected] * 3, abs=1e-6)


def test_raw_frames_where_a_model_reads_those_standardised_within_a_video_are_refused(predictor, monkeypatch):
    facts = predictor.config.modalities["audio"]
    monkeypatch.setattr(facts, "features", {"kind": "precomputed", "standardised_by": "video"})
    call = {"text": ["a word"], "audio": [np.ones((2, 3))]}
    with pytest.raises(DataError, match=r"utterance 0: audio: .*within each video, which raw frames of one utterance"):
        predictor.predict(**call)
    assert predictor.predict(**call, standardised=True) != predictor.predict(["a word"], audio=[None])


def test_one_vector_is_one_frame(predictor):
    (one,) = predictor.predict(["a word"], audio=[[1.0, 2.0, 3.0]])
    (same,) = predictor.predict(["a word"], audio=[np.array([[1.0, 2.0, 3.0]])])
    assert one == same


def test_a_text_of_any_length_is_cut_before_it_is_read(predictor, monkeypatch):
    long = "well it was " * 50
    (expected,) = predictor.predict([long])
    read = []
    tokenizer = predictor.tokenizer
    monkeypatch.setattr(predictor, "tokenizer", lambda text, **options: read.append(text) or tokenizer(text, **options))
    (found,) = predictor.predict([long * 100_000])
    assert found.polarity == expected.polarity
    assert max(len(text) for texts in read for text in ([texts] if isinstance(texts, str) else texts)) < 10_000


def test_a_token_beyond_the_embedding_is_an_error_of_its_utterance(predictor):
    """A special token that was added to the tokenizer, and never to the base, may be typed into a text."""
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.add_tokens([f"[x{i}]" for i in range(70)], special_tokens=True)
    odd = SentimentPredictor(predictor.model, tokenizer)
    assert odd.predict(["fine [x1]"])
    with pytest.raises(
        DataError, match=r"utterance 1: .*the token '\[x69\]' \(328\) has no row in the embedding of 320"
    ):
        odd.predict(["fine", "bad [x69]"])
