"""Where fusion tokens enter, whether they train, where the LM ends: against the formulas, in every pass, by cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm import DeepMLFModel, SentimentPredictor, load_base_model, load_tokenizer
from deepmlf_llm.backbones import Decoder, run_layers
from deepmlf_llm.fusion.passes import Whole, WholeFromBlock, choose_pass
from deepmlf_llm.fusion.token_start import typical_states
from tests import reference
from tests.families import (
    FRAMES,
    HEADS,
    LAYERS,
    LENGTHS,
    MODALITIES,
    WIDTH,
    losses_and_gradients,
    randomise,
    tiny_batch,
    tiny_config,
    tiny_family,
    tiny_model,
)

REFERENCES = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}
FIRST, LAST = 1, 2  # MM Blocks follow these layers of four
LATE, FROZEN, CUT = {"fusion_entry": "first_block"}, {"freeze_fusion_tokens": True}, {"truncate_lm": True}
COMBINED = [LATE, FROZEN, CUT, LATE | CUT, FROZEN | CUT, LATE | FROZEN | CUT]
TOKENS = "fusion_tokens.embedding.weight"


def make(family="llama", **settings):
    return tiny_model(tiny_family(family), **{"fusion_layers": [FIRST, LAST], **settings})


def layers_run(model, batch):
    """(layer, positions, whether with a graph) of each LM layer that a pass runs."""
    seen = []
    handles = [
        layer.register_forward_hook(
            lambda m, a, out, index=index: seen.append((index, out.shape[1], out.requires_grad)), prepend=True
        )
        for index, layer in enumerate(model.fused_decoder.decoder.layers)
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("settings", COMBINED, ids=str)
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", REFERENCES)
def test_values_and_gradients_are_those_of_the_formulas(family, scope, settings):
    lm = tiny_family(family)
    model = tiny_model(
        lm, fusion_layers=[FIRST, LAST], ffw_scope=scope, ffw_lora_alpha=6.0, gca_head_width=5, **settings
    ).double()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in tiny_batch().items()}
    out = model(**batch)
    out.loss.backward()
    stack = model.active_stack
    weights = {name: w.requires_grad_() for name, w in reference.weights_of(stack).items() if w.is_floating_point()}
    told = reference.Settings(
        heads=HEADS, ffw_scope=scope, lora_scale=6.0 / 4, av_heads=3, max_frames=5,
        fusion_entry=settings.get("fusion_entry", "embedding"), truncate_lm=settings.get("truncate_lm", False),
    )  # fmt: skip
    rows = [
        reference.deepmlf(
            REFERENCES[family](lm),
            batch["input_ids"][row, -length:],
            {name: batch[name][row, : FRAMES[name][row]] for name in MODALITIES},
            weights,
            told,
        )
        for row, length in enumerate(LENGTHS)
    ]
    close = {"rtol": 2e-5, "atol": 2e-6}  # transformers' norms and rotary tables are fp32 in any model
    assert_close(out.polarity, torch.stack([row.task[0] for row in rows]), **close)
    assert_close(out.fusion_polarity, torch.stack([row.fusion.mean() for row in rows]), **close)
    assert_close(out.text_polarity, torch.stack([row.text_polarity[0] for row in rows]), **close)
    objective, labels = model.deepmlf_config.objective, batch["labels"]
    total = sum(
        (row.task - y).abs() / 3
        + objective.lambda_fusion * (row.fusion - y).abs().mean() / 3
        + objective.lambda_text * (row.text_polarity - y).abs() / 3
        + objective.lambda_av * (row.av - y).abs() / 2 * (index != 1)  # the middle row has neither modality
        for index, (row, y) in enumerate(zip(rows, labels, strict=True))
    )
    total.squeeze().backward()
    assert_close(out.loss, total.squeeze(), **close)
    for name, parameter in stack.named_parameters():
        expected = weights[name].grad
        scale = float(expected.abs().max()) + 1e-4
        assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4 * scale, msg=name)
    assert (TOKENS in dict(stack.named_parameters())) is ("freeze_fusion_tokens" not in settings)


@pytest.mark.parametrize("settings", [LATE, FROZEN, LATE | FROZEN | CUT], ids=str)
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "opt"])
def test_text_apart_kept_or_at_once_gives_the_same_numbers(family, scope, settings):
    model, batch = make(family, ffw_scope=scope, **settings), tiny_batch()
    ways = {"apart": losses_and_gradients(model, **batch)}
    model.enable_text_cache("memory")
    for name in ("read", "kept"):
        ways[name] = losses_and_gradients(model, **batch)
    model.enable_text_cache("memory", fusion_tokens=True)
    ways["kept for new texts too"] = losses_and_gradients(model, **batch)
    model.enable_text_cache("none")
    model.get_base_model().set_attn_implementation("varlen")
    ways["packed"] = losses_and_gradients(model, **batch)
    model.fused_decoder.text_once = False
    ways["at once, packed"] = losses_and_gradients(model, **batch)
    model.get_base_model().set_attn_implementation("sdpa")
    whole, whole_gradients = losses_and_gradients(model, **batch)
    for way, (values, gradients) in ways.items():
        for name, expected in whole.items():
            assert_close(values[name], expected, rtol=1e-4, atol=1e-5, msg=f"{way}: {name}")
        assert gradients.keys() == whole_gradients.keys()
        for name, expected in whole_gradients.items():
            scale = float(expected.abs().max()) + 1e-3
            assert_close(gradients[name], expected, rtol=1e-3, atol=2e-4 * scale, msg=f"{way}: {name}")


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_lora_on_the_lm_trains_below_the_block_where_tokens_enter(scope):
    model = make(ffw_scope=scope, r=2, target_modules=["q_proj"], fusion_entry="first_block")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "deepmlf" not in name:
                parameter.add_(0.1)
    _, gradients = losses_and_gradients(model, **tiny_batch())
    lora = {name: g for name, g in gradients.items() if "q_proj" in name}
    assert len(lora) == 2 * LAYERS
    assert all(g.abs().sum() > 0 for g in lora.values())
    model.get_base_model().set_attn_implementation("varlen")
    _, packed = losses_and_gradients(model, **tiny_batch())
    for name, expected in gradients.items():
        assert_close(packed[name], expected, rtol=1e-3, atol=2e-4 * (float(expected.abs().max()) + 1e-3), msg=name)


def test_tokens_that_enter_at_the_first_block_run_in_no_layer_below():
    batch = tiny_batch()
    length, n = batch["input_ids"].shape[1], 3
    text = [(i, length, False) for i in range(LAYERS)]
    assert layers_run(make(ffw_scope="fusion", **LATE), batch) == [*text, *((i, n, True) for i in (2, 3))]
    both = [(i, length + n, True) for i in (2, 3)]
    assert layers_run(make(ffw_scope="joint", **LATE), batch) == [*text[: FIRST + 1], *both]
    whole = make(ffw_scope="joint", **LATE)
    whole.fused_decoder.text_once = False
    assert layers_run(whole, batch) == [*text[: FIRST + 1], *both]


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_a_step_with_kept_frozen_tokens_begins_at_the_first_block(scope):
    model, batch = make(ffw_scope=scope, **FROZEN).train(), tiny_batch()
    length, n = batch["input_ids"].shape[1], 3
    below = [(i, n, False) for i in range(FIRST + 1)]
    assert [row for row in layers_run(model, batch) if row[1] == n and row[0] <= FIRST] == below, "no graph below"
    model.enable_text_cache("memory")
    model(**batch)
    rows = n if scope == "fusion" else length + n
    assert layers_run(model, batch) == [(i, rows, True) for i in (2, 3)]
    trained = make(ffw_scope=scope)
    trained.enable_text_cache("memory")
    trained(**batch)
    assert [row[0] for row in layers_run(trained, batch)] == [0, 1, 2, 3]


@pytest.mark.parametrize("settings", [FROZEN, LATE, FROZEN | CUT], ids=str)
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_only_what_every_step_reads_is_kept_of_a_text(scope, where, settings, tmp_path):
    model, batch = make(ffw_scope=scope, **settings), tiny_batch()
    texts = [ids[-length:].tolist() for ids, length in zip(batch["input_ids"], LENGTHS, strict=True)]
    model.enable_text_cache(where, tmp_path)
    foretold = model.text_cache.predicted_bytes(texts)
    assert model.build_text_cache(texts) == foretold
    end = LAST + 1 if "truncate_lm" in settings else LAYERS
    layers = end - FIRST - 1 if scope == "fusion" else 0
    kept = 2 * layers * WIDTH // 2 * sum(LENGTHS)  # two key-value heads for four
    kept += WIDTH * (len(LENGTHS) if scope == "fusion" else sum(LENGTHS))
    assert foretold == 4 * kept
    expected = make(ffw_scope=scope, **settings)(**batch)
    for _ in range(2):
        assert_close(model(**batch).polarity, expected.polarity, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_a_cache_of_one_adapter_is_not_read_for_another_that_needs_more(scope):
    model, batch = make(ffw_scope=scope, **FROZEN), tiny_batch()
    model.add_adapter("trained", tiny_config(ffw_scope=scope, fusion_layers=[FIRST, LAST]))
    model.add_adapter("cut", tiny_config(ffw_scope=scope, fusion_layers=[FIRST, LAST], **CUT))
    expected = {}
    for name in ("default", "trained", "cut"):
        model.set_adapter(name)
        expected[name] = model.eval()(**batch).polarity
    model.set_adapter("default")
    model.enable_text_cache("memory")
    for name in ("default", "trained", "cut", "default"):
        model.set_adapter(name)
        assert_close(model(**batch).polarity, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_augmented_text_is_read_as_it_is_augmented():
    """Frozen tokens read the very text of the pass, which is in no cache."""
    settings = {"seqaug": {"embedding_noise": 0.5}, "av_encoder": {"width": 12, "num_heads": 3, "dropout": 0.0}}
    model, batch = make(ffw_scope="fusion", head_norm="layer", **settings, **FROZEN), tiny_batch()
    model.enable_text_cache("memory")
    model(**batch)
    model.train()
    torch.manual_seed(5)
    found = model(**batch).fusion_polarity
    model.eval().enable_text_cache("none")
    model.fused_decoder.text_once = False
    model.train()
    torch.manual_seed(5)
    assert_close(found, model(**batch).fusion_polarity, rtol=1e-4, atol=1e-5)


def test_frozen_tokens_start_like_trained_ones_and_are_stored_with_them(tmp_path):
    base = load_base_model("tiny-llama")
    models = []
    for settings in ({}, FROZEN):
        torch.manual_seed(0)
        models.append(DeepMLFModel(load_base_model("tiny-llama"), tiny_config(fusion_layers=[FIRST], **settings)))
    trained, frozen = models
    assert torch.equal(frozen.active_stack.fusion_tokens.embedding.weight, trained.active_stack.state_dict()[TOKENS])
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models]
    width = base.config.hidden_size
    assert counts[0] - counts[1] == 3 * width
    for group in frozen.parameter_groups().values():
        assert not any(TOKENS in name for name, _ in group)
    randomise(frozen).save_pretrained(tmp_path)
    loaded = DeepMLFModel.from_pretrained(tmp_path, base=base, is_trainable=True)
    assert torch.equal(loaded.active_stack.state_dict()[TOKENS], frozen.active_stack.state_dict()[TOKENS])
    assert not loaded.active_stack.fusion_tokens.embedding.weight.requires_grad


@pytest.mark.parametrize("settings", [LATE | CUT, FROZEN | CUT], ids=str)
def test_saved_merged_and_asked_through_a_predictor_it_is_the_same_model(settings, tmp_path):
    lm = load_base_model("tiny-llama")
    model = tiny_model(lm, fusion_layers=[FIRST, LAST], ffw_scope="fusion", **settings)
    model.save_pretrained(tmp_path / "adapter")
    say = {"text": ["not bad", "well, that was two hours"], "audio": [torch.randn(4, 3).cpu().numpy()] * 2}
    tokenizer = load_tokenizer("tiny-llama")
    expected = SentimentPredictor(model, tokenizer).predict(**say)
    logits = lm(torch.arange(6)[None]).logits
    model.merge_and_unload().save_pretrained(tmp_path / "merged", tokenizer)
    for place in ("adapter", "merged"):
        predictor = SentimentPredictor.from_pretrained(tmp_path / place)
        for _ in range(2):
            for found, told in zip(predictor.predict(**say), expected, strict=True):
                assert found.polarity == pytest.approx(told.polarity, abs=1e-5), place
        whole = predictor.model.get_base_model()
        assert len(Decoder(whole).layers) == LAYERS
        if place == "adapter":
            assert torch.equal(predictor.model.eject()(torch.arange(6)[None]).logits, logits)


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_no_layer_above_the_last_block_runs_in_a_truncated_lm(scope):
    batch = tiny_batch()
    model, whole = make(ffw_scope=scope, **CUT), make(ffw_scope=scope)
    for text_once in (True, False):
        model.fused_decoder.text_once = whole.fused_decoder.text_once = text_once
        assert {row[0] for row in layers_run(model, batch)} == {0, 1, 2}
        assert {row[0] for row in layers_run(whole, batch)} == {0, 1, 2, 3}
    model.get_base_model().set_attn_implementation("varlen")
    assert {row[0] for row in layers_run(model, batch)} == {0, 1, 2}


def test_activation_checkpointing_gives_the_same_gradients():
    for settings, scope in itertools.product((LATE, FROZEN | CUT), ("joint", "fusion")):
        plain, model = make(ffw_scope=scope, **settings), make(ffw_scope=scope, **settings)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.active_stack.modules():
            module.training = False  # its dropouts and running statistics are beside the point
        _, expected = losses_and_gradients(plain, **tiny_batch())
        _, found = losses_and_gradients(model, **tiny_batch())
        for name, gradient in expected.items():
            scale = float(gradient.abs().max()) + 1e-3
            assert_close(found[name], gradient, rtol=1e-3, atol=2e-4 * scale, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_states_are_those_where_tokens_enter(family):
    """transformers' own record of hidden states has the output of layer i at i + 1."""
    lm = tiny_family(family)
    vocabulary = lm.config.vocab_size
    ids = torch.tensor([int(i * (vocabulary - 1) / 67) for i in range(68)]).reshape(17, 4).T
    recorded = lm(ids, output_hidden_states=True).hidden_states
    for behind in (None, 0, 2):
        states = lm.get_input_embeddings()(ids) if behind is None else recorded[behind + 1]
        rows = states[:, 1:].reshape(-1, WIDTH)
        assert_close(typical_states(Decoder(lm), behind), rows, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_position_that_holds_attention_and_not_meaning_tells_nothing_of_states():
    lm = tiny_family("llama")
    usual = typical_states(Decoder(lm), None)
    lm.get_input_embeddings().weight[lm.config.vocab_size - 1] = 500.0  # the last id of the texts is this one
    assert torch.equal(typical_states(Decoder(lm), None), usual[:-1])


@pytest.mark.parametrize(
    ("settings", "behind"),
    [
        (LATE, FIRST),
        (FROZEN | {"fusion_token_init": "lm"}, None),
        ({}, "paper"),
        (LATE | {"fusion_token_init": "normal"}, "paper"),
    ],
    ids=str,
)
def test_tokens_start_like_what_they_stand_among(settings, behind):
    lm = tiny_family("llama", max_position_embeddings=2000)
    torch.manual_seed(0)
    model = DeepMLFModel(lm, tiny_config(num_fusion_tokens=1000, fusion_layers=[FIRST], **settings))
    found = model.active_stack.fusion_tokens(1)[0].detach()
    assert abs(model.active_stack.state_dict()[TOKENS].std() - 0.02) < 1e-3, "what trains keeps its size"
    mean, std = (torch.zeros(WIDTH), torch.full((WIDTH,), 0.02))
    if behind != "paper":
        states = typical_states(Decoder(lm), behind)
        mean, std = states.mean(0), states.std(0)
        assert std.min() > 0.04
    assert_close(found.std(0), std, rtol=0.12, atol=0)
    assert ((found.mean(0) - mean).abs() < 0.16 * std).all()


def test_the_pass_that_takes_all_at_once_goes_by_the_entry():
    decoder = Decoder(tiny_family("llama"))
    for settings, expected in ((LATE, WholeFromBlock), ({}, Whole)):
        assert type(choose_pass(decoder, tiny_config(**settings), False, None, text_once=False)) is expected


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_decoder_until_a_layer_ends_with_its_final_norm(family):
    lm = tiny_family(family)
    decoder, batch = Decoder(lm), tiny_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    states = lm(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    found = run_layers(decoder.until(2), decoder.embeddings(ids), mask)
    assert torch.equal(found, decoder.final_norm(states[2]))
    assert decoder.until(LAYERS).end is decoder.end is None
