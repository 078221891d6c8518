"""One predictor, many threads, and processes that were forked: what a single thread would have said."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import warnings

import numpy as np
import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.collate import token_ids
from deepmlf_llm.errors import InjectionError
from deepmlf_llm.inference import predictor as room
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.peft_model import DeepMLFModel

TEXTS = [f"utterance number {i} " + "and on " * (i % 9) for i in range(40)]  # the longest are cut
AUDIO = [np.random.default_rng(i).normal(size=(1 + i % 5, 3)) for i in range(40)]
LORA = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}


def make_config(**settings):
    return DeepMLFConfig(
        **{"fusion_layers": [1, 3], "ffw_scope": "fusion", "modalities": {"audio": {"dim": 3}},
           "text": {"max_tokens": 40}, **settings}
    )  # fmt: skip


def make_predictor(**settings):
    torch.manual_seed(0)
    model = DeepMLFModel(load_base_model("tiny-llama"), make_config(**settings))
    return SentimentPredictor(model, load_tokenizer("tiny-llama"), batch_size=4)


def ask(predictor, numbers):
    predictions = predictor.predict([TEXTS[i] for i in numbers], audio=[AUDIO[i] for i in numbers])
    return [(p.polarity, p.text_polarity, p.av_polarity, p.fusion_polarity) for p in predictions]


def together(*works):
    """Runs these at the same time, some often; raises what one of them raised."""
    errors, start = [], threading.Barrier(len(works))

    def run(work):
        try:
            start.wait(60)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def asker(predictor, expected, seed, rounds=12):
    def work():
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            numbers = rng.integers(0, len(TEXTS), size=6)
            np.testing.assert_allclose(ask(predictor, numbers), [expected[i] for i in numbers], atol=2e-5)

    return work


CACHES = ["memory", "memory that overflows", "disk", "none", "tokens on disk"]


@pytest.mark.parametrize("scope", ["fusion", "joint"])
@pytest.mark.parametrize("cache", CACHES)
def test_four_threads_predict_as_one(cache, scope, tmp_path, monkeypatch):
    predictor = make_predictor(ffw_scope=scope)
    expected = ask(predictor, range(len(TEXTS)))
    if cache == "memory that overflows":
        monkeypatch.setattr(room, "TEXT_CACHE_BYTES", 0)
    kind = cache.split()[-1] if "disk" in cache else cache.split()[0]
    predictor.model.enable_text_cache(kind, tmp_path, fusion_tokens=cache != "disk")
    together(*(asker(predictor, expected, seed) for seed in range(4)))
    np.testing.assert_allclose(ask(predictor, range(len(TEXTS))), expected, atol=2e-5)  # what is kept is right
    if kind == "disk":
        again = make_predictor(ffw_scope=scope)
        again.model.enable_text_cache("disk", tmp_path)
        assert len(again.model.text_cache) == len(set(TEXTS))
        np.testing.assert_allclose(ask(again, range(len(TEXTS))), expected, atol=2e-5)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_the_plain_lm_in_one_thread_does_not_disturb_predictions_in_others(settings):
    predictor = make_predictor(**settings)
    model, ids = predictor.model, torch.arange(3, 9, device=predictor.model.device)[None]
    expected = ask(predictor, range(len(TEXTS)))
    with model.disable_adapter(), torch.no_grad():
        plain = model(ids).logits

    def speak():
        for _ in range(6):
            with model.disable_adapter(), torch.no_grad():
                torch.testing.assert_close(model(ids).logits, plain)
                assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[0] == 1

    together(speak, speak, *(asker(predictor, expected, seed, rounds=6) for seed in range(2)))
    np.testing.assert_allclose(ask(predictor, range(4)), expected[:4], atol=2e-5)


def test_predictors_on_one_model_stay_with_their_adapter():
    first = make_predictor()
    model = first.model
    torch.manual_seed(7)
    model.add_adapter("other", make_config(fusion_layers=[2, 3]))
    model.set_adapter("other")
    second = SentimentPredictor(model, first.tokenizer, batch_size=4)
    model.set_adapter("default")
    expected = [ask(predictor, range(len(TEXTS))) for predictor in (first, second)]
    assert not np.allclose(*expected)
    alone = make_predictor()
    np.testing.assert_allclose(ask(alone, range(8)), expected[0][:8], atol=2e-5)

    def switch():
        for _ in range(40):
            model.set_adapter("other")
            model.set_adapter("default")

    together(switch, asker(first, expected[0], 1), asker(second, expected[1], 2), asker(first, expected[0], 3))
    model.delete_adapter("other")
    with pytest.raises(InjectionError, match="adapter 'other' is not there any more; this model has default"):
        ask(second, [0])


def test_an_adapter_is_added_and_probed_while_others_predict():
    predictor = make_predictor()
    expected = ask(predictor, range(len(TEXTS)))
    stack, blocks = predictor.model.active_stack, []

    def shut():
        for _ in range(30):
            with stack.gates_shut():
                blocks.append(next(iter(stack.blocks.values())).cross_attention.gate().item())

    together(shut, *(asker(predictor, expected, seed) for seed in range(3)))
    assert set(blocks) == {0.0}


def test_lora_that_is_switched_off_here_is_said(recwarn):
    predictor = make_predictor(**LORA)
    with predictor.model.disable_adapter():
        with pytest.raises(InjectionError, match="LoRA on the language model is switched off"):
            ask(predictor, [0])
    ask(predictor, [0])


def test_one_tokenizer_cuts_for_many_threads():
    tokenizer = load_tokenizer("tiny-llama")
    expected = {limit: token_ids(TEXTS, tokenizer, limit) for limit in (5, 20, 400)}

    def cut(limit):
        def work():
            for _ in range(25):
                assert token_ids(TEXTS, tokenizer, limit) == expected[limit]

        return work

    together(cut(5), cut(20), cut(400), cut(5))


def in_a_child(work, seconds=60):
    """Runs ``work`` in a forked process; its exit code, or minus the signal that ended it."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that is forked cannot use CUDA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads: that is the point
        process = os.fork()
    if not process:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_process_forked_while_threads_predict_predicts_too(cache, tmp_path):
    predictor = make_predictor()
    expected = ask(predictor, range(len(TEXTS)))
    predictor.model.enable_text_cache(cache, tmp_path, fusion_tokens=True)
    codes = []

    def fork():
        for seed in range(3):
            codes.append(in_a_child(asker(predictor, expected, 10 + seed, rounds=3)))

    together(fork, *(asker(predictor, expected, seed, rounds=12) for seed in range(3)))
    assert codes == [0] * 3
    np.testing.assert_allclose(ask(predictor, range(len(TEXTS))), expected, atol=2e-5)


def test_a_fork_while_every_lock_is_held_hangs_nobody(tmp_path):
    predictor = make_predictor(**LORA)
    plain = make_predictor()
    plain.model.enable_text_cache("disk", tmp_path)
    expected = ask(plain, range(len(TEXTS)))
    held, done = threading.Event(), threading.Event()

    def hold():
        with (
            plain.model.text_cache.store._lock,
            predictor.model.fused_decoder.lm_lora.alone(),
        ):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    try:
        assert in_a_child(lambda: ask(predictor, [0, 1])) == 0
        assert in_a_child(asker(plain, expected, 1, rounds=2)) == 0
    finally:
        done.set()
        holder.join()


def test_a_child_of_a_process_that_computes_on_several_threads_computes():
    predictor = make_predictor()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        large = torch.randn(700, 700)
        torch.softmax(large @ large, -1).sum()
        assert in_a_child(lambda: (torch.softmax(large @ large, -1).exp().sum(), ask(predictor, [0, 1]))) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.cpu  # CUDA does not live on in a process that forks
def test_workers_of_a_data_loader_use_the_predictor_of_their_parent():
    predictor = make_predictor()
    expected = ask(predictor, range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(
            range(8), batch_size=4, num_workers=2, multiprocessing_context="fork",
            collate_fn=lambda numbers: ask(predictor, numbers),
        )  # fmt: skip
        found = [row for batch in loader for row in batch]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_model_that_has_predicted_is_copied_and_pickled(tmp_path):
    predictor = make_predictor()
    predictor.model.enable_text_cache("disk", tmp_path, fusion_tokens=True)
    expected = ask(predictor, range(4))
    for copied in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor.model.text_cache.store))):
        store = copied.model.text_cache.store if isinstance(copied, SentimentPredictor) else copied
        assert len(store) == 4
        assert store._shard is None, "two must not write one shard"
        if isinstance(copied, SentimentPredictor):
            np.testing.assert_allclose(ask(copied, range(8))[:4], expected, atol=2e-5)
