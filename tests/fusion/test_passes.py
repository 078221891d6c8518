"""The whole forward pass against the paper's equations, and what must never change a prediction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.fusion.decoder import left_padded
from deepmlf_llm.fusion.passes import Split, TextOnce, Whole, choose_pass
from tests import reference
from tests.families import (
    FAMILY_NAMES,
    FRAMES,
    HEADS,
    LENGTHS,
    MODALITIES,
    POLARITIES,
    losses_and_gradients,
    outputs,
    randomise,
    tiny_batch,
    tiny_config,
    tiny_family,
    tiny_model,
)

REFERENCES = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}


@pytest.mark.parametrize("head_norm", ["batch", "layer"])
@pytest.mark.parametrize("weights", ["shared", "copy"])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", REFERENCES)
def test_equals_the_equations_of_the_paper(family, scope, weights, head_norm):
    lm = tiny_family(family)
    gamma = 0.7 if scope == "joint" else 0.0
    model = tiny_model(
        lm, ffw_scope=scope, ffw_weights=weights, ffw_lora_alpha=6.0, head_norm=head_norm, gca_head_width=5,
        objective={"gamma": gamma, "lambda_fusion": 0.3, "lambda_av": 0.6, "lambda_text": 0.9},
    ).double()  # fmt: skip
    batch = tiny_batch()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    with torch.no_grad():
        out = model(**batch)

    stack = model.base_model.active_stack
    config = reference.Settings(heads=HEADS, ffw_scope=scope, lora_scale=6.0 / 4, av_heads=3, max_frames=5)
    formulas = REFERENCES[family](lm)  # in float64 by now
    rows = [
        reference.deepmlf(
            formulas,
            batch["input_ids"][row, -length:],
            {name: batch[name][row, : FRAMES[name][row]] for name in MODALITIES},
            reference.weights_of(stack),
            config,
        )
        for row, length in enumerate(LENGTHS)
    ]
    close = {"rtol": 2e-5, "atol": 2e-6}  # transformers' norms and rotary tables are fp32 in any model
    assert_close(out.polarity, torch.stack([row.task[0] for row in rows]), **close)
    assert_close(out.fusion_polarity, torch.stack([row.fusion.mean() for row in rows]), **close)
    assert_close(out.text_polarity, torch.stack([row.text_polarity[0] for row in rows]), **close)
    assert_close(out.av_polarity, torch.stack([row.av[0] for row in rows]), **close)

    labels, heard = batch["labels"], [0, 2]  # the middle row has neither modality
    parts = {
        "task": sum((row.task - y).abs() for row, y in zip(rows, labels, strict=True)) / 3,
        "fusion": sum((row.fusion - y).abs().mean() for row, y in zip(rows, labels, strict=True)) / 3,
        "text": sum((row.text_polarity - y).abs() for row, y in zip(rows, labels, strict=True)) / 3,
        "av": sum((rows[i].av - labels[i]).abs() for i in heard) / 2,
    }
    total = parts["task"] + 0.3 * parts["fusion"] + 0.6 * parts["av"] + 0.9 * parts["text"]
    if gamma:
        surprises = [
            loss
            for row, length, ids in zip(rows, LENGTHS, batch["input_ids"], strict=True)
            for loss in reference.next_token_losses(formulas, row.text, ids[-length:])
        ]
        assert len(surprises) == sum(LENGTHS) - 3
        parts["lm"] = sum(surprises) / len(surprises)
        total = total + gamma * parts["lm"]
    assert out.losses.keys() == parts.keys()
    for name, part in parts.items():
        assert_close(out.losses[name].double(), part.squeeze(), msg=name, **close)
    assert_close(out.loss.double(), total.squeeze(), **close)


ELSEWHERE = [(family, layers) for family in ("mistral", "gpt2") for layers in ([0, 2], "last:1")]


@pytest.mark.parametrize(("family", "layers"), [*((family, [1, 3]) for family in FAMILY_NAMES), *ELSEWHERE])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_text_computed_apart_or_kept_is_the_whole_pass(family, scope, layers):
    """Three ways to the same numbers and gradients: one pass; the text on its own without a graph; the text kept."""
    gamma = 0.5 if scope == "joint" else 0.0
    model = tiny_model(tiny_family(family), ffw_scope=scope, fusion_layers=layers, objective={"gamma": gamma})
    batch = tiny_batch()
    apart, apart_gradients = losses_and_gradients(model, **batch)
    model.enable_text_cache("memory")
    losses_and_gradients(model, **batch)
    kept, kept_gradients = losses_and_gradients(model, **batch)
    assert len(model.text_cache) == 3
    model.base_model.fused.text_once = False
    whole, whole_gradients = losses_and_gradients(model, **batch)
    for name, expected in whole.items():
        assert_close(apart[name], expected, rtol=1e-4, atol=1e-5, msg=f"apart: {name}")
        assert_close(kept[name], expected, rtol=1e-4, atol=1e-5, msg=f"kept: {name}")
    for name, expected in whole_gradients.items():
        assert expected.isfinite().all(), name
        scale = float(expected.abs().max()) + 1e-3
        assert_close(apart_gradients[name], expected, rtol=1e-3, atol=1e-4 * scale, msg=f"apart: {name}")
        assert_close(kept_gradients[name], expected, rtol=1e-3, atol=1e-4 * scale, msg=f"kept: {name}")


@pytest.mark.parametrize(("family", "layers"), [*((family, [1, 3]) for family in FAMILY_NAMES), *ELSEWHERE])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_kept_fusion_tokens_change_no_prediction(family, scope, layers):
    model = tiny_model(tiny_family(family), ffw_scope=scope, fusion_layers=layers).eval()
    first_take, second_take = tiny_batch(), {**tiny_batch(), **{"audio": torch.randn_like(tiny_batch()["audio"])}}
    expected = outputs(model, **first_take), outputs(model, **second_take)
    model.enable_text_cache("memory", fusion_tokens=True)
    found = outputs(model, **first_take), outputs(model, **second_take)
    assert len(model.fused_decoder.token_cache) == 3
    for take, plain in zip(found, expected, strict=True):
        for name in POLARITIES:
            assert_close(take[name], plain[name], rtol=1e-4, atol=1e-5)


def test_kept_fusion_tokens_spare_the_layers_below_the_first_block():
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion", fusion_layers=[2, 3]).eval()
    model.enable_text_cache("memory", fusion_tokens=True)
    calls = []
    for index, layer in enumerate(model.fused_decoder.decoder.layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    outputs(model, **tiny_batch())
    calls.clear()
    outputs(model, **tiny_batch())
    assert calls == [3]


def test_kept_fusion_tokens_go_when_the_learned_ones_move():
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion").eval()
    model.enable_text_cache("memory", fusion_tokens=True)
    before = outputs(model, **tiny_batch())["polarity"]
    with torch.no_grad():
        model.active_stack.fusion_tokens.embedding.weight.data.mul_(3.0)  # .data: no version of the parameter says so
    after = outputs(model, **tiny_batch())["polarity"]
    model.enable_text_cache("none")
    assert_close(after, outputs(model, **tiny_batch())["polarity"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-3)


def test_kept_fusion_tokens_are_not_another_adapters():
    """Two adapters that start from the same tokens, their first MM Blocks after other layers."""
    lm, batch = tiny_family("llama"), tiny_batch()
    model = tiny_model(lm, ffw_scope="fusion", fusion_layers=[1, 3]).eval()
    model.add_adapter("later", tiny_config(ffw_scope="fusion", fusion_layers=[2, 3]))
    tokens = [model.base_model.deepmlf[name].fusion_tokens.embedding.weight for name in ("default", "later")]
    with torch.no_grad():
        tokens[1].copy_(tokens[0])
    model.enable_text_cache("memory", fusion_tokens=True)
    outputs(model, **batch)
    model.set_adapter("later")
    found = outputs(model, **batch)["polarity"]
    model.enable_text_cache("none")
    assert_close(found, outputs(model, **batch)["polarity"], rtol=1e-4, atol=1e-5)


def test_kept_fusion_tokens_go_with_a_move_of_the_model():
    """To another dtype here, where there is no other device."""
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion").eval()
    model.enable_text_cache("memory", fusion_tokens=True)
    tokens = model.fused_decoder.token_cache
    expected = outputs(model, **tiny_batch())["polarity"]
    model.double()
    model.enable_text_cache("memory")  # what is kept of the text goes by its base's dtype
    model.fused_decoder.token_cache = tokens
    batch = {name: x.double() if x.is_floating_point() else x for name, x in tiny_batch().items()}
    assert_close(outputs(model, **batch)["polarity"].float(), expected, rtol=1e-4, atol=1e-5)
    assert {x.dtype for x in tokens.states.values()} == {torch.float64}


def test_kept_fusion_tokens_are_not_those_of_a_pass_under_autocast():
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion").eval()
    expected = outputs(model, **tiny_batch())["polarity"]
    model.enable_text_cache("memory", fusion_tokens=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs(model, **tiny_batch())
    assert_close(outputs(model, **tiny_batch())["polarity"], expected, rtol=1e-4, atol=1e-5)


def test_what_kept_fusion_tokens_take_is_known():
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion").eval()
    model.enable_text_cache("memory", fusion_tokens=True)
    outputs(model, **tiny_batch())
    kept = model.fused_decoder.token_cache
    assert kept.nbytes == sum(x.nbytes for x in kept.states.values()) > 0
    kept.clear()
    assert len(kept) == kept.nbytes == 0


@pytest.mark.parametrize(("scope", "cached"), [("fusion", True), ("fusion", False), ("joint", True)])
def test_a_kernel_for_packed_rows_does_not_read_a_text_again(scope, cached):
    model = tiny_model(tiny_family("llama"), ffw_scope=scope, fusion_layers=[2, 3]).eval()
    expected = outputs(model, **tiny_batch())["polarity"]
    model.get_base_model().set_attn_implementation("varlen")
    if cached:
        model.enable_text_cache("memory")
        outputs(model, **tiny_batch())
    seen = []
    lowest = model.fused_decoder.decoder.layers[0]
    lowest.self_attn.register_forward_hook(lambda m, a, out: seen.append((out[0].shape[1], out[0].requires_grad)))
    found = model(**tiny_batch()).polarity
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    n = model.active_stack.num_tokens
    assert seen == [*([] if cached else [(tiny_batch()["input_ids"].shape[1], False)]), (n, True)]


def test_kept_fusion_tokens_are_not_used_where_gradients_are_wanted():
    model = tiny_model(tiny_family("llama"), ffw_scope="fusion").eval()
    model.enable_text_cache("memory", fusion_tokens=True)
    outputs(model, **tiny_batch())
    model(**tiny_batch()).loss.backward()
    assert model.active_stack.fusion_tokens.embedding.weight.grad.abs().sum() > 0


def test_joint_blocks_run_once_each():
    """No MM Block may run on states that are thrown away."""
    model = tiny_model(tiny_family("llama"))
    calls = []
    for layer, block in model.base_model.active_stack.blocks.items():
        block.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    outputs(model, **tiny_batch())
    assert calls == [1, 3]


@pytest.fixture(scope="module", params=["joint", "fusion"])
def model(request):
    return tiny_model(tiny_family("mistral"), ffw_scope=request.param)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_padding_side_and_amount_change_nothing(family):
    model = tiny_model(tiny_family(family))
    expected = outputs(model, **tiny_batch())
    for side, padding in (("right", 0), ("left", 5), ("right", 3)):
        found = outputs(model, **tiny_batch(side, padding))
        for name in POLARITIES:
            assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=f"{side} {padding}: {name}")


@settings(max_examples=12)
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=4), padding=st.integers(0, 4))
def test_a_sample_does_not_depend_on_its_batch(model, rows, padding):
    expected = outputs(model, **tiny_batch())
    found = outputs(model, **{name: x[rows] for name, x in tiny_batch(padding=padding).items()})
    for name in POLARITIES:
        assert_close(found[name], expected[name][rows], rtol=1e-4, atol=1e-5)


def test_what_stands_in_padding_is_never_read(model):
    batch = tiny_batch(padding=2)
    expected = outputs(model, **batch)
    batch["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)
    for name in MODALITIES:
        batch[name] = batch[name].masked_fill(~batch[f"{name}_mask"][..., None], float("nan"))
    found = outputs(model, **batch)
    for name in POLARITIES:
        assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("present", [(), ("audio",), ("vision",), ("audio", "vision")])
def test_a_modality_that_is_not_given_is_masked_out(model, present):
    batch = tiny_batch()
    real = {f"{name}_mask": torch.full_like(batch[f"{name}_mask"], name in present) for name in MODALITIES}
    masked = {**batch, **real}
    left_out = {key: x for key, x in masked.items() if key.split("_mask")[0] not in set(MODALITIES) - set(present)}
    expected, found = outputs(model, **masked), outputs(model, **left_out)
    for name in POLARITIES:
        assert found[name].isfinite().all()
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    if present:
        no_masks = {name: x for name, x in left_out.items() if name not in ("audio_mask", "vision_mask")}
        assert_close(outputs(model, **no_masks)["polarity"], found["polarity"], rtol=0, atol=0)


def test_without_any_modality_gca_adds_exactly_nothing(model):
    stack = model.base_model.active_stack
    updates = []
    handles = [
        b.cross_attention.register_forward_hook(lambda m, a, o: updates.append(o)) for b in stack.blocks.values()
    ]
    batch = tiny_batch()
    out = outputs(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    assert len(updates) == 2
    assert not any(update.count_nonzero() for update in updates)
    assert all(x.isfinite().all() for x in out.values())


def test_text_reads_no_fusion_token(model):
    """In joint scope text positions pass an FFW of their own more, but never hear what fusion tokens heard."""
    batch = tiny_batch()
    expected = outputs(model, **batch)["text_polarity"]
    batch["audio"] = batch["audio"] + 10
    assert_close(outputs(model, **batch)["text_polarity"], expected, rtol=0, atol=0)
    assert not torch.equal(outputs(model, **batch)["polarity"], outputs(model, **tiny_batch())["polarity"])


def test_default_masks_mean_all_real(model):
    batch = tiny_batch()
    batch = {name: x[:1] for name, x in batch.items() if name != "labels"}  # a row without padding
    full = {**batch, "vision": batch["vision"][:, :4], "vision_mask": batch["vision_mask"][:, :4]}
    bare = {name: x for name, x in full.items() if not name.endswith("_mask")}
    assert_close(outputs(model, **bare)["polarity"], outputs(model, **full)["polarity"], rtol=0, atol=0)


def test_augmentation_acts_in_training_only():
    model = tiny_model(
        tiny_family("llama"), ffw_scope="fusion", av_encoder={"width": 12, "num_heads": 3, "dropout": 0.0},
        head_norm="layer", seqaug={"p_apply": 1.0, "p_feat": 0.5},
    )  # fmt: skip
    model.enable_text_cache("memory")
    batch = tiny_batch()
    outputs(model, **batch)  # the first meeting is one pass, which rounds otherwise
    expected = outputs(model, **batch)
    model.train()
    assert not torch.allclose(outputs(model, **batch)["text_polarity"], expected["text_polarity"])
    model.eval()
    assert_close(outputs(model, **batch), expected, rtol=0, atol=0)
    model.deepmlf_config.seqaug.p_apply = 0.0
    model.train()
    assert_close(outputs(model, **batch)["polarity"], expected["polarity"], rtol=1e-5, atol=1e-6)
    model.deepmlf_config.seqaug.av_p_apply, model.deepmlf_config.seqaug.av_p_feat = 1.0, 0.5
    assert not torch.allclose(outputs(model, **batch)["av_polarity"], expected["av_polarity"])
    assert_close(outputs(model, **batch)["text_polarity"], expected["text_polarity"], rtol=1e-5, atol=1e-6)


def test_embedding_ablations_change_the_text_in_training():
    for ablation in ({"embedding_dropout": 0.5}, {"embedding_noise": 0.5}):
        model = tiny_model(tiny_family("llama"), seqaug=ablation)
        batch = tiny_batch()
        expected = outputs(model, **batch)["text_polarity"]
        model.train()
        assert not torch.allclose(outputs(model, **batch)["text_polarity"], expected), ablation


def test_features_that_do_not_fit_are_refused_by_name(model):
    batch = tiny_batch()
    with pytest.raises(ConfigError, match=r"forward got 'vison' \(did you mean 'vision'\?\): expected audio, vision"):
        model(batch["input_ids"], vison=batch["vision"])
    with pytest.raises(ConfigError, match=r"audio: got shape \[3, 7, 4\], expected \[3, frames, 3\]"):
        model(batch["input_ids"], audio=torch.zeros(3, 7, 4))
    with pytest.raises(ConfigError, match=r"audio: got shape \[3, 3\]"):
        model(batch["input_ids"], audio=torch.zeros(3, 3))
    with pytest.raises(ConfigError, match=r"audio_mask: got shape \[3, 6\], expected \[3, 7\]"):
        model(batch["input_ids"], audio=batch["audio"], audio_mask=torch.ones(3, 6))


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_left_padding_keeps_real_tokens_in_order(mask):
    mask = torch.tensor(mask).long()
    ids = torch.arange(mask.numel()).reshape(mask.shape)
    moved, moved_mask = left_padded(ids, mask)
    for row in range(len(mask)):
        count = int(mask[row].sum())
        assert moved_mask[row].tolist() == [0] * (5 - count) + [1] * count
        assert moved[row, 5 - count :].tolist() == ids[row, mask[row] == 1].tolist()


def test_several_outputs_per_utterance():
    model = tiny_model(tiny_family("gpt2"), num_outputs=2)
    out = model(**tiny_batch(labels=torch.zeros(3, 2)))
    assert out.polarity.shape == out.fusion_polarity.shape == (3, 2)
    out.loss.backward()


@pytest.mark.parametrize("settings", [{}, {"r": 2, "target_modules": ["q_proj"]}])
def test_accumulating_eight_batches_of_one_is_one_batch_of_eight(settings):
    model = randomise(tiny_model(tiny_family("llama"), head_norm="layer", **settings))
    batch = tiny_batch()
    rows = [0, 2, 0, 2, 2, 0, 2, 0]  # rows that have a modality: L_av is a mean over those
    batch = {name: x[rows] for name, x in batch.items()}
    batch["labels"] = torch.randn(8)
    _, expected = losses_and_gradients(model, **batch)
    model.zero_grad()
    for row in range(8):
        (model(**{name: x[row : row + 1] for name, x in batch.items()}).loss / 8).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.cpu  # tests of other devices run in a function mode, which the compiler does not enter
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_compiles_without_breaking_the_graph(scope):
    from torch._dynamo.utils import counters

    model, batch = tiny_model(tiny_family("llama"), ffw_scope=scope), tiny_batch()
    expected = outputs(model, **batch)
    torch._dynamo.reset()
    counters.clear()
    model.get_base_model().get_decoder().compile(backend="eager", dynamic=True)
    for name, x in outputs(model, **batch).items():
        assert_close(x, expected[name], rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("settings", "kernel", "keeps_text", "expected"),
    [
        ({}, "sdpa", False, Split),
        ({}, "sdpa", True, Split),
        ({}, "varlen", False, Whole),
        ({}, "varlen", True, Split),
        ({"ffw_scope": "fusion"}, "sdpa", False, TextOnce),
        ({"ffw_scope": "fusion"}, "varlen", False, TextOnce),
        ({"r": 2, "target_modules": ["q_proj"]}, "sdpa", False, Whole),
        ({"ffw_scope": "fusion", "r": 2, "target_modules": ["q_proj"]}, "varlen", False, Whole),
        ({"ffw_scope": "none"}, "varlen", False, TextOnce),
        ({"ffw_scope": "none", "gca_queries": "text"}, "sdpa", False, Split),
        ({"ffw_scope": "fusion", "gca_queries": "both"}, "varlen", False, Whole),
        ({"ffw_scope": "fusion", "gca_queries": "both", "modalities": {}}, "varlen", False, TextOnce),
    ],
)
def test_the_pass_goes_by_the_adapter_the_kernel_and_whether_text_is_kept(settings, kernel, keeps_text, expected):
    decoder = Decoder(tiny_family("llama"))
    decoder.lm.set_attn_implementation(kernel)
    found = choose_pass(decoder, tiny_config(**settings), keeps_text, None)
    assert type(found) is expected
    if expected is Whole:
        assert found.packed is (kernel == "varlen")
    assert type(choose_pass(decoder, tiny_config(**settings), keeps_text, None, text_once=False)) is Whole
