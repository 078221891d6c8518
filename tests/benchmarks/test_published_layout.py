"""The yardstick computes the method: held against the package, against the bare LM and against its published size."""

import pytest
import torch
from published_layout import ModalityEncoder, PublishedLayout, blocks_after, pooling_weights
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from variants import make_loop
from workload import Geometry, make_utterances, with_token_ids

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.backbones.toys import toy_model

GEOMETRY = Geometry(max_tokens=20, frames=70, modalities={"audio": 5, "vision": 3})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-llama")


@pytest.fixture(scope="module")
def utterances(tokenizer):
    made = with_token_ids(make_utterances(6, GEOMETRY), tokenizer, GEOMETRY.max_tokens)
    made[1]["vision"] = made[1]["vision"][:0]  # one does not see
    assert max(len(u[name]) for u in made for name in GEOMETRY.modalities) > 50
    return made


@pytest.fixture
def loops(tokenizer, utterances):
    """The yardstick and the package's joint form with the same weights, on one batch."""
    torch.manual_seed(0)
    yardstick, ours = (
        make_loop(name, toy_model("tiny-llama"), tokenizer, [utterances], GEOMETRY, rank=4)
        for name in ("yardstick", "joint")
    )
    with torch.no_grad():
        for parameter in yardstick.trainable():
            parameter.normal_(std=0.1)
    copy_weights(yardstick.model, ours.model.base_model.active_stack)
    yardstick.model.eval()
    ours.model.eval()
    return yardstick, ours


@torch.no_grad()
def copy_weights(layout, stack):
    """Each weight of the yardstick to its place in the package's stack; both must be used up."""
    source, target = dict(layout.named_parameters()), dict(stack.named_parameters())

    def copy(into, *names):
        target.pop(into).copy_(torch.cat([source.pop(name) for name in names]))

    copy("fusion_tokens.embedding.weight", "fusion_tokens")
    for name in layout.encoders:
        copy(f"av_encoder.encoders.{name}.projection.weight", f"encoders.{name}.project.weight")
        for i in range(3):
            mine, theirs = f"encoders.{name}.layers.{i}", f"av_encoder.encoders.{name}.layers.{i}"
            for kind in ("weight", "bias"):
                qkv = [f"{mine}.{part}.{kind}" for part in ("query", "key", "value")]
                copy(f"{theirs}.query_key_value.{kind}", *qkv)
                pairs = {"attention_norm": "norm_attention", "output": "output", "ffw_norm": "norm_ffw"}
                for there, here in {**pairs, "ffw.0": "up", "ffw.3": "down"}.items():
                    copy(f"{theirs}.{there}.{kind}", f"{mine}.{here}.{kind}")
    keys_values = [f"blocks.{i}.{part}.weight" for i in layout.layers for part in ("key", "value")]
    copy("context_projection.weight", *keys_values)
    for i in layout.layers:
        pairs = {
            "attention_norm.weight": "norm_tokens.weight",
            "ffw_norm.weight": "norm_all.weight",
            "cross_attention.mm_query.weight": "query.weight",
            "cross_attention.mm_output.weight": "output.weight",
            "cross_attention.gate.alpha": "gate_attention",
            "ffw_gate.alpha": "gate_ffw",
        }
        for role in ("gate", "up", "down"):
            pairs[f"ffw.ffw_lora.{role}.low.weight"] = f"ffw_{role}.lora_a"
            pairs[f"ffw.ffw_lora.{role}.high.weight"] = f"ffw_{role}.lora_b"
        for there, here in pairs.items():
            copy(f"mm_blocks.{i}.{there}", f"blocks.{i}.{here}")
    for kind in ("weight", "bias"):
        pairs = {"fusion": "fusion_head", "text": "text_head", "av": "av_head"}
        for there, here in {**pairs, "task.1": "task_head.0", "task.2": "task_head.1", "task.4": "task_head.3"}.items():
            copy(f"heads.{there}.{kind}", f"{here}.{kind}")
        copy(f"av_encoder.join.{kind}", f"merge.{kind}")
        copy(f"av_encoder.norm.{kind}", f"norm_context.{kind}")
    assert not target
    assert all(name.startswith("lm.") or name.split(".")[-1] == "weight" for name in source)  # the LM, the FFW copies


def test_same_weights_give_the_packages_polarity_loss_and_gradients(loops):
    yardstick, ours = loops
    batch, labels = yardstick.batches.next()
    order = yardstick.batches.order[: len(labels)]
    output = yardstick.model(batch)
    loss = yardstick.model.loss(output, labels)
    loss.backward()
    expected = ours.model(**ours.collate([ours.batches[0][row] for row in order]))
    expected.loss.backward()

    assert_close(output["task"], expected.polarity)
    assert_close(output["fusion"].mean(dim=1), expected.fusion_polarity)
    assert_close(output["text"], expected.text_polarity)
    assert_close(output["av"], expected.av_polarity)
    assert_close(loss, expected.loss)
    stack = ours.model.base_model.active_stack
    assert_close(yardstick.model.fusion_tokens.grad, stack.fusion_tokens.embedding.weight.grad, rtol=1e-3, atol=1e-5)
    last = yardstick.model.layers[-1]
    assert_close(
        yardstick.model.blocks[str(last)].ffw_up.lora_a.grad,
        stack.mm_blocks[str(last)].ffw.ffw_lora["up"].low.weight.grad,
        rtol=1e-3,
        atol=1e-5,
    )


def test_logits_before_any_mm_block_reaches_the_text_are_the_bare_lms(tokenizer, utterances):
    """Gates far shut: text positions say what the LM says, so right-padding and positions are in order."""
    loop = make_loop("yardstick", toy_model("tiny-llama"), tokenizer, [utterances[:4]], GEOMETRY)
    for block in loop.model.blocks.values():
        block.gate_attention.data.fill_(-1e4)
        block.gate_ffw.data.fill_(-1e4)
    batch, _ = loop.batches.next()
    with torch.no_grad():
        logits = loop.model(batch)["logits"]
        alone = toy_model("tiny-llama")(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (4, GEOMETRY.max_tokens + 12, alone.shape[-1])
    real = batch["attention_mask"].bool()
    assert_close(logits[:, : GEOMETRY.max_tokens][real], alone[real], rtol=1e-4, atol=1e-4)


def test_layers_are_the_published_ones_and_keep_their_proportion():
    assert blocks_after(30) == [11, 14, 17, 20, 23, 26, 29]
    assert blocks_after(80)[-1] == 79
    assert blocks_after(4) == [0, 1, 2, 3]


def test_size_is_the_published_one():
    """7.89 M trainable parameters at SmolLM2-135M's geometry with 7 MM Blocks, 12 tokens, LoRA r 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        layout = PublishedLayout(LlamaForCausalLM(config), Geometry().modalities)
    trainable = sum(p.numel() for p in layout.parameters() if p.requires_grad)
    assert trainable == pytest.approx(7.89e6, rel=0.01)
    copies = sum(p.numel() for p in layout.blocks.parameters() if not p.requires_grad)
    assert copies == 7 * 3 * 576 * 1536
    assert {p.dtype for p in layout.blocks.parameters()} == {torch.float32}


def test_the_whole_graph_is_kept_and_only_new_weights_train(tokenizer, utterances):
    loop = make_loop("yardstick", toy_model("tiny-llama"), tokenizer, [utterances[:4]], GEOMETRY)
    batch, labels = loop.batches.next()
    output = loop.model(batch)
    assert output["logits"].requires_grad  # of text and padding too: nothing is spared
    loop.model.loss(output, labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loop.trainable())
    assert not any(p.requires_grad for p in loop.model.lm.parameters())
    before = [p.clone() for p in loop.trainable()]
    assert loop.step() == 4
    assert all(not torch.equal(old, new) for old, new in zip(before, loop.trainable(), strict=True))


@pytest.mark.parametrize(("length", "windows"), [(1, 1), (3, 3), (7, 4), (13, 5), (2, 5)])
def test_pooling_averages_contiguous_windows_of_real_frames(length, windows):
    weights = pooling_weights(torch.tensor([length]), torch.tensor([windows]), frames=16, most=6)[0]
    expected = torch.zeros(6, 16)
    identity = torch.eye(length)[None]
    expected[:windows, :length] = torch.nn.functional.adaptive_avg_pool1d(identity, windows)[0].T
    assert_close(weights, expected)


@pytest.mark.parametrize(("frames", "length"), [(500, 500), (500, 30), (120, 1)])
def test_frames_are_pooled_before_the_layers(frames, length):
    """500 raw frames come in, 50 go through the layers: all arithmetic but pooling's own product is that of 50."""
    encoder, seen = ModalityEncoder(74, 50), []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    lengths, windows = torch.tensor([length, frames]), torch.tensor([min(length, 50), 50])
    features = torch.randn(2, frames, 74)
    features[0, length:] = 0
    with FlopCounterMode(display=False) as counter:
        encoder(features, lengths, windows).sum().backward()
    assert seen == [(2, 50, 30)] * 3
    pooling, projection = 50 * frames * 74, 2 * 50 * 74 * 30  # raw features get no gradient
    layer = 3 * (50 * (4 * 30 * 30 + 2 * 30 * 120) + 2 * 50 * 50 * 30)  # forward, and two gradients
    assert counter.get_total_flops() == 2 * 2 * (pooling + projection + 3 * layer)
