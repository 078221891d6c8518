"""A training step without numbers: the model's own code on fake tensors, every storage counted.

What autograd keeps, which pass runs, what a cache saves and what checkpointing drops are then no formulas of ours that
could fall behind the code. A fake tensor has a shape, a dtype and a device, and no memory
(``torch._subclasses.FakeTensorMode``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from deepmlf_llm.backbones.stream import TextStream
from deepmlf_llm.planning.live_bytes import LiveBytes, module_tensors, storage_bytes
from deepmlf_llm.planning.operators import OperatorWork, Work
from deepmlf_llm.planning.packed import pack, packed_linears


@dataclass(frozen=True)
class Step:
    """One batch of one process.

    Args:
        utterances: of the batch.
        text_tokens: length that texts are padded to.
        frames: modality -> length that its frames are padded to.
        checkpointing: activations of the LM's layers are computed again in the backward pass.
        autocast: the forward pass runs under bf16 autocast.
        text_cached: the frozen text stream is read from a cache.
        cache_dtype: of what is kept; None: the LM's.
        accumulates: gradients of an earlier batch of the step are there.
        drops_gradients: each goes as it comes, as where an engine sends it on to the process that keeps it.
        keeps_inputs: every linear layer keeps its input, frozen ones too, as DeepSpeed's do under ZeRO-3.
        real: share of the text's positions that are no padding.
        granule: the allocator's smallest block, bytes.
        on_cpu: a CPU will compute, where the model's code asks.
        notes_work: keep what each operator computes and moves, for the time that a CPU takes.
    """

    utterances: int
    text_tokens: int
    frames: Mapping[str, int] = field(default_factory=dict)
    checkpointing: bool = False
    autocast: bool = False
    text_cached: bool = False
    cache_dtype: str | None = None
    accumulates: bool = False
    drops_gradients: bool = False
    keeps_inputs: bool = False
    real: float = 1.0
    granule: int = 1
    on_cpu: bool = False
    notes_work: bool = False


@dataclass(frozen=True)
class StepBytes:
    """Of one process, bytes.

    Args:
        weights: parameters and buffers.
        trained: of them, those that get a gradient.
        batch: its input.
        peak: most that was alive of what the step made, gradients included.
        kept: alive at the end of the forward pass: what autograd keeps.
        gradients: after the backward pass.
        text: of the text stream that a cache hands in.
        operators: how many ran.
        largest: of the trained parameters.
        work: what the operators computed and moved, where the step asked for it.
    """

    weights: int
    trained: int
    batch: int
    peak: int
    kept: int
    gradients: int
    text: int
    operators: int
    largest: int = 0
    work: Counter[Work] = field(default_factory=Counter)


class _Answers(TorchFunctionMode):
    """Answers what a fake tensor cannot: how many entries a mask picks, whether all rows are real, what computes."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.is_cpu:
            return self.step.on_cpu  # a fake tensor says that it is on a CPU, whatever will compute
        if func is nn.functional.linear and self.step.keeps_inputs:
            return _linear_keeping_input(*args, **kwargs)
        if func is torch.Tensor.__bool__:
            return False  # "no row is padded": of a batch of texts hardly ever so
        if func is torch.Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            whole = args[0].flatten(0, args[1].dim() - 1)
            return whole[: max(1, round(len(whole) * self.step.real))].clone()
        return func(*args, **kwargs)


class _LinearKeepingInput(torch.autograd.Function):
    """x W^T + b, as DeepSpeed has it under ZeRO-3 in the place of PyTorch's: the input stays, trained or frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = x.matmul(weight.t())
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        of_x = grad.matmul(weight) if for_x else None
        of_weight = rows.t().matmul(x.reshape(-1, x.shape[-1])) if for_weight else None
        return of_x, of_weight, rows.sum(0) if for_bias else None


def _linear_keeping_input(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = _LinearKeepingInput.apply(x, weight, bias)
    return out


class _KeptTexts:
    """In the place of a text cache: hands in what it would, of no text."""

    def __init__(
        self, decoder: Any, depth: int | None, lowest: int, notes: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.decoder, self.depth, self.lowest, self.notes, self.dtype = decoder, depth, lowest, notes, dtype
        self.nbytes = 0
        self.key: dict[str, Any] = {}

    def follow_weights(self) -> None:
        """They do not change here."""

    def serves(self, *_: Any) -> bool:
        return True

    def read(self, input_ids: Tensor, mask: Tensor) -> TextStream:
        lm = self.decoder.lm.config.get_text_config()
        batch, length = input_ids.shape
        heads = getattr(lm, "num_key_value_heads", None) or lm.num_attention_heads
        width = getattr(lm, "head_dim", None) or lm.hidden_size // lm.num_attention_heads
        layers = (self.depth or self.decoder.end or self.decoder.num_layers) - self.lowest
        kept = 1 + len(self.notes) if self.depth is None else length
        keys_values = torch.zeros(layers, 2, batch, heads, length, width, dtype=self.dtype)
        states = torch.zeros(batch, kept, lm.hidden_size, dtype=self.decoder.embeddings.weight.dtype)
        self.nbytes = storage_bytes([keys_values, states])
        return TextStream([(layer[0], layer[1]) for layer in keys_values], states, None, self.lowest)


class DryModel:
    """A model on fake tensors, ready for dry steps.

    Args:
        model: a :class:`~deepmlf_llm.model.DeepMLFModel` on the meta device; its weights become fake ones.
        dtype: of the frozen base.
        quantization: of the frozen base: none, nf4, fp4, int8.
    """

    def __init__(self, model: Any, dtype: torch.dtype, quantization: str = "none") -> None:
        self.model = model
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        lm = model.fused_decoder.decoder.lm
        own = {id(p) for p in model.parameters() if p.requires_grad} | {
            id(t) for t in module_tensors(model.active_stack)
        }
        with self.mode:
            shared: dict[int, nn.Parameter] = {}
            for module in model.modules():
                for name, parameter in list(module._parameters.items()):
                    if parameter is not None:
                        kind = parameter.dtype if id(parameter) in own else dtype
                        if id(parameter) not in shared:
                            fake = torch.empty(parameter.shape, dtype=kind)
                            shared[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                        module._parameters[name] = shared[id(parameter)]
                for name, buffer in list(module._buffers.items()):
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            if quantization != "none":
                for linear in packed_linears(lm, lm.get_output_embeddings()):
                    pack(linear, quantization)

    def run(self, step: Step) -> StepBytes:
        """One forward and backward pass."""
        model, config = self.model, self.model.deepmlf_config
        self._prepare(step)
        with self.mode:
            batch = self._batch(step)
            held = [*module_tensors(model), *batch.values()]
            trained = [p for p in model.parameters() if p.requires_grad]
            gradients = []
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter) if step.accumulates else None
                gradients += [] if parameter.grad is None else [parameter.grad]
            texts = self._texts(step, config)
            model.fused_decoder.cache = texts
            begun = storage_bytes(gradients)
            hooks = [p.register_post_accumulate_grad_hook(_drop) for p in trained if step.drops_gradients]
            work = OperatorWork()
            notes = work if step.notes_work else nullcontext()
            with LiveBytes([*held, *gradients], step.granule) as live, notes, _Answers(step):
                with torch.autocast("cpu", torch.bfloat16) if step.autocast else nullcontext():
                    loss = model(**batch).loss
                kept = live.now
                # Of an edge: of a tensor it would leave the mode that answers, which recomputed layers ask.
                torch.autograd.backward(get_gradient_edge(loss))
                del loss
            found = StepBytes(
                weights=storage_bytes(module_tensors(model)),
                trained=storage_bytes(trained),
                batch=storage_bytes(batch.values()),
                peak=live.peak + begun,
                kept=kept,
                gradients=storage_bytes([p.grad for p in trained if p.grad is not None]),
                text=0 if texts is None else texts.nbytes,
                operators=live.operators,
                largest=max((p.numel() * p.element_size() for p in trained), default=0),
                work=work.seen,
            )
            for hook in hooks:
                hook.remove()
            for parameter in trained:
                parameter.grad = None
            model.fused_decoder.cache = None
        return found

    def _prepare(self, step: Step) -> None:
        lm = self.model.fused_decoder.decoder.lm
        if step.checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            lm.gradient_checkpointing_disable()
        self.model.train()

    def _batch(self, step: Step) -> dict[str, Tensor]:
        b, config = step.utterances, self.model.deepmlf_config
        batch = {
            "input_ids": torch.empty(b, step.text_tokens, dtype=torch.long),
            "attention_mask": torch.empty(b, step.text_tokens, dtype=torch.long),
            "labels": torch.empty(b),
        }
        for name, modality in config.modalities.items():
            batch[name] = torch.empty(b, step.frames[name], modality.dim)
            batch[f"{name}_mask"] = torch.empty(b, step.frames[name], dtype=torch.bool)
        return batch

    def _texts(self, step: Step, config: Any) -> Any:
        if not step.text_cached:
            return None
        fused, stack = self.model.fused_decoder, self.model.active_stack
        decoder, depth = fused.running(config, stack), fused.text_depth(config, stack)
        own = decoder.embeddings.weight.dtype
        dtype = own if step.cache_dtype is None else getattr(torch, step.cache_dtype)
        notes = stack.noted_layers if depth is None else ()
        return _KeptTexts(
            decoder, depth, fused.lowest_kept(config, stack), notes, own if dtype == torch.int8 else dtype
        )


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
