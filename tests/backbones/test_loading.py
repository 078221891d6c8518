"""Base models: frozen, in eval mode, in the dtype asked for; what is not there is refused with a sentence."""

from __future__ import annotations

import pytest
import torch
import transformers

from deepmlf_llm.backbones import cpu_or_cuda_dtype, load_base_model, load_tokenizer, loading
from deepmlf_llm.backbones.loading import attention_kernel, cut_layers
from deepmlf_llm.errors import BaseModelError
from tests.families import tiny_batch, tiny_family

TOYS = ["tiny-llama", "tiny-mistral", "tiny-gpt2"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TOYS)
def test_a_base_is_frozen_and_quiet(name, dtype):
    lm = load_base_model(name, dtype=dtype)
    assert not lm.training
    assert not any(module.training for module in lm.modules())
    assert not any(p.requires_grad for p in lm.parameters())
    assert {p.dtype for p in lm.parameters()} == {getattr(torch, dtype)}
    assert lm.name_or_path == lm.config._name_or_path == name


def test_a_directory_is_loaded_as_it_was_saved(tmp_path):
    lm = load_base_model("tiny-llama")
    lm.save_pretrained(tmp_path)
    again = load_base_model(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), again.parameters(), strict=True))
    shallow = load_base_model(str(tmp_path), num_layers=2)
    assert (len(shallow.model.layers), shallow.config.num_hidden_layers) == (2, 2)
    shallow(tiny_batch()["input_ids"])


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "gpt2"])
def test_a_cut_decoder_runs_and_is_the_whole_one_up_to_there(family):
    lm, whole = tiny_family(family), tiny_family(family)
    cut_layers(lm, 2)
    ids = tiny_batch()["input_ids"]
    assert len(lm(ids, output_hidden_states=True).hidden_states) == 3
    states = whole(ids, output_hidden_states=True).hidden_states
    assert torch.equal(lm(ids, output_hidden_states=True).hidden_states[1], states[1])
    with pytest.raises(BaseModelError, match="num_layers=5: this decoder has 2 layers"):
        cut_layers(lm, 5)


def test_what_is_not_there_is_refused_in_one_line(tmp_path):
    for name in (str(tmp_path / "none"), "nobody/nothing"):
        with pytest.raises(BaseModelError, match=f"base_model='{name}': expected") as caught:
            load_base_model(name)
        assert "\n" not in str(caught.value)
        with pytest.raises(BaseModelError, match="no tokenizer found"):
            load_tokenizer(name)
    load_base_model("tiny-llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match=r"model.safetensors is not a safetensors file, or damaged"):
        load_base_model(str(tmp_path))


def test_an_encoder_is_refused(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20, is_decoder=True
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="'bert' is not supported: it is not a causal decoder"):
        load_base_model(str(tmp_path))


def test_settings_that_cannot_be_served_are_refused():
    with pytest.raises(BaseModelError, match="dtype='fp32': expected 'auto' or one of 'float32'"):
        load_base_model("tiny-llama", dtype="fp32")
    with pytest.raises(BaseModelError, match="quantization='int4': expected one of 'none', 'nf4', 'fp4', 'int8'"):
        load_base_model("tiny-llama", quantization="int4")
    with pytest.raises(BaseModelError, match="attn_implementation='flash': expected one of 'auto', 'sdpa'"):
        load_base_model("tiny-llama", attn_implementation="flash")
    with pytest.raises(BaseModelError, match=r"storage_dtype='int4': expected one of 'float32', .*'uint8'"):
        load_base_model("tiny-llama", quantization="nf4", storage_dtype="int4")
    if not torch.cuda.is_available():
        with pytest.raises(BaseModelError, match="no backward pass on CPU"):
            attention_kernel("flex_attention")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "flash_attention_2",
            r"needs CUDA and flash-attn: pip install flash-attn --no-build-isolation \(or use 'sdpa'",
        ),
        ("flash_attention_3", "needs a Hopper GPU and FlashAttention-3, built from .*; use 'sdpa' or"),
    ],
)
def test_a_kernel_that_is_not_installed_says_how_to_install_it(monkeypatch, name, message):
    question = f"is_flash_attn_{name[-1]}_available"
    monkeypatch.setattr(transformers.utils, question, lambda: False)
    with pytest.raises(BaseModelError, match=message):
        load_base_model("tiny-llama", attn_implementation=name)
    monkeypatch.setattr(transformers.utils, question, lambda: True)
    assert attention_kernel(name) == name


def test_packed_rows_on_a_gpu_need_a_kernel_that_can_be_causal(monkeypatch):
    assert attention_kernel("varlen") == "varlen"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "varlen_kernel", lambda: None)
    with pytest.raises(BaseModelError, match=r"attn_implementation='varlen' needs a newer PyTorch: .* use 'sdpa'"):
        attention_kernel("varlen")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_the_automatic_kernel(monkeypatch, cuda, installed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    expected = ("flash_attention_2" if installed else None) if cuda else "eager"
    assert attention_kernel("auto", torch.bfloat16) == expected


def test_quantization_without_its_package_says_how_to_install_it(monkeypatch):
    import transformers.quantizers.quantizer_bnb_4bit as room

    monkeypatch.setattr(room, "is_bitsandbytes_available", lambda *a, **k: False)
    with pytest.raises(BaseModelError, match=r"base_model='tiny-llama': .*requires bitsandbytes: `pip install"):
        load_base_model("tiny-llama", quantization="nf4")


SAFE = {"trust_remote_code": False, "weights_only": True}  # nothing that comes with a model is run


def test_what_is_asked_of_transformers(monkeypatch):
    """Revision, dtype, kernel and quantization go on as given; what is not set is not mentioned."""
    asked = []

    def from_pretrained(source, **options):
        checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        assert {key: options.pop(key) for key in checked} == checked
        asked.append((source, options))
        return tiny_family("llama"), {}

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    load_base_model("someone/some-lm", dtype="float16", attn_implementation="sdpa", revision="v1.2")
    assert asked.pop() == (
        "someone/some-lm", {"dtype": torch.float16, "attn_implementation": "sdpa", "revision": "v1.2", **SAFE}
    )  # fmt: skip
    load_base_model("someone/some-lm", dtype="float32", attn_implementation="sdpa")
    assert asked.pop()[1] == {"dtype": torch.float32, "attn_implementation": "sdpa", **SAFE}
    load_base_model("someone/some-lm", quantization="fp4", dtype="bfloat16", storage_dtype="bfloat16", revision="x")
    options = asked.pop()[1]
    assert (options["revision"], options["dtype"]) == ("x", torch.bfloat16)
    config = options["quantization_config"]
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("fp4", torch.bfloat16)
    assert config.bnb_4bit_quant_storage == torch.bfloat16
    load_base_model("tiny-llama", quantization="nf4", revision="main")
    assert "revision" not in asked.pop()[1], "a toy has none"


def test_a_tokenizer_of_the_same_revision(monkeypatch):
    asked = []

    def from_pretrained(source, **options):
        asked.append((source, options["revision"]))
        return load_tokenizer("tiny-llama")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    load_tokenizer("someone/some-lm", revision="v1.2")
    assert asked == [("someone/some-lm", "v1.2")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without CUDA gets")
def test_automatic_choices_on_a_cpu():
    assert cpu_or_cuda_dtype("auto") == torch.float32
    assert attention_kernel("auto", torch.float32) is None
    assert attention_kernel("auto", torch.bfloat16) == "eager"
    assert attention_kernel("sdpa") == "sdpa"
    for dtype in ("float32", "bfloat16"):
        assert load_base_model("tiny-llama", dtype=dtype).config._attn_implementation == "prefix"
    assert load_base_model("tiny-llama", attn_implementation="sdpa").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", TOYS)
def test_a_toys_tokenizer_starts_with_bos_and_pads_on_the_left(name):
    tokenizer = load_tokenizer(name)
    batch = tokenizer(["hello there", "hé"], padding=True)
    assert tokenizer.padding_side == "left"
    assert batch["attention_mask"][0][0] == 1
    assert batch["attention_mask"][1][0] == 0
    assert batch["input_ids"][0][0] == tokenizer.bos_token_id
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "hé"


def test_a_tokenizer_without_pad_token_gets_eos_and_one_with_bos_gets_no_second(tmp_path):
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    load_base_model("tiny-llama").save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.pad_token == again.eos_token == "<eos>"
    assert again("a")["input_ids"] == [again.bos_token_id, tokenizer("a")["input_ids"][1]]
