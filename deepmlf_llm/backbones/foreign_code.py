"""A base model's files run nothing: transformers would ask whether to run the Python code beside them, and we never do.

Three ways lead from a directory, or a hub id, to code that is not installed: classes named under ``auto_map``, an
attention kernel named as ``owner/kernel``, which is fetched from the hub, and an adapter's settings, which make PEFT
load another model, and import modules by name.
"""

from __future__ import annotations

from typing import Any

from deepmlf_llm.errors import BaseModelError

# Every call of transformers gets it. Without it transformers asks in the terminal, and "y" runs the code.
NO_CODE = {"trust_remote_code": False}
NO_PICKLE = {"weights_only": True}  # of .bin files: tensors only


def check_no_code(source: str, revision: str | None, name: str) -> None:
    """Checks a base before anything of it is loaded; what cannot be read at all is left to whoever loads it.

    Args:
        source: directory or hub id.
        revision: of a hub id.
        name: what the user calls it.

    Raises:
        BaseModelError: it needs code of its own, or names a kernel or another model to fetch.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(source, revision=revision) is not None:
            raise BaseModelError(
                f"base_model={name!r}: holds an adapter (adapter_config.json), and the model that it names would be "
                "loaded instead; give that model, or merge the adapter into it first"
            )
        config = AutoConfig.from_pretrained(source, revision=revision, **NO_CODE)
    except BaseModelError:
        raise
    except Exception as error:  # damaged or not there: whoever loads it says so
        if (refusal := code_refusal(error, name)) is not None:
            raise refusal from None
        return
    if "AutoModelForCausalLM" in _named(config, "auto_map") and type(config) not in AutoModelForCausalLM._model_mapping:
        raise _refusal(name, f"its architecture {config.model_type!r} is Python code beside its weights")
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if "/" in str(getattr(part, "_attn_implementation", None)):
            raise _refusal(name, f"its config.json names the attention kernel {part._attn_implementation!r} of a hub")


def code_refusal(error: Exception, name: str) -> BaseModelError | None:
    """What to say where transformers or torch would have needed to run code; None where the error is another one.

    Their own words recommend to let it run.
    """
    if "weights_only" in str(error):
        return BaseModelError(
            f"base_model={name!r}: its .bin weights hold more than tensors, which only running them would give; "
            "nothing of them was run; use a base whose weights are in safetensors"
        )
    if "trust_remote_code" not in str(error):
        return None
    return _refusal(name, "its config.json or tokenizer_config.json names Python code beside its weights (auto_map)")


def _refusal(name: str, reason: str) -> BaseModelError:
    return BaseModelError(
        f"base_model={name!r}: {reason}, and this package runs no code that comes with a model; use a base whose "
        "architecture and tokenizer transformers has itself"
    )


def _named(config: Any, key: str) -> Any:
    value = getattr(config, key, None)
    return value if isinstance(value, dict) else {}
