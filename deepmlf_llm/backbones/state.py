"""What fusion and its training change about a base model beside its weights: noted first, so that it can be undone."""

from __future__ import annotations

from typing import Any

from torch import nn

# Entries of a module's own __dict__: mode, activation checkpointing, what Trainer asks the base.
_FLAGS = (
    "training",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_require_grads_hook",
    "_require_grads_hooks",
    "accepts_loss_kwargs",
)
# transformers and PEFT hook the embeddings for checkpointing; transformers forgets the first hook at the second call.
_HOOKS = "make_inputs_require_grad"


class BaseState:
    """Mode, trainability, activation checkpointing and its hooks of every part of ``lm``, by name: LoRA swaps modules,
    4-bit loading swaps parameters.
    """

    def __init__(self, lm: nn.Module) -> None:
        self._flags = {
            name: {flag: vars(module)[flag] for flag in _FLAGS if flag in vars(module)}
            for name, module in lm.named_modules()
        }
        self._hooks = {name: set(module._forward_hooks) for name, module in lm.named_modules()}
        self._trainable = {name: parameter.requires_grad for name, parameter in lm.named_parameters()}

    def restore(self, lm: nn.Module) -> None:
        """Makes ``lm``, its own modules in their places again, what it was."""
        for name, module in lm.named_modules():
            if name in self._flags:
                own: dict[str, Any] = vars(module)
                for flag in _FLAGS:
                    own.pop(flag, None)
                own.update(self._flags[name])
                self._unhook(module, self._hooks[name])
        for name, parameter in lm.named_parameters():
            if name in self._trainable:
                parameter.requires_grad_(self._trainable[name])

    @staticmethod
    def _unhook(module: nn.Module, before: set[int]) -> None:
        for key, hook in list(module._forward_hooks.items()):
            if key not in before and getattr(hook, "__name__", "").startswith(_HOOKS):
                del module._forward_hooks[key]
