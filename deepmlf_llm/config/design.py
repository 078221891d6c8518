"""What the settings of an MM Block and of the heads say together: combinations that could do nothing are refused."""

from __future__ import annotations

from typing import Any

from deepmlf_llm.config.rules import brief


def design_problems(config: Any) -> list[str]:
    """What is wrong with the design of a :class:`~deepmlf_llm.config.method.DeepMLFConfig`, one phrase each."""
    found = []
    if config.gate == "none":
        for name, at_rest in (("gate_init", 0), ("gca_gate_init", None), ("gate_per", "block")):
            value = getattr(config, name)
            if value != at_rest:
                found.append(f"{name}={brief(value)}: gate='none' has no value to start or to learn; leave it out")
    frozen = config.r == 0 and config.ffw_scope != "joint" and config.gca_queries == "tokens"
    if config.objective.gamma != 0 and frozen:
        found.append(
            f"objective.gamma > 0 trains nothing with ffw_scope={brief(config.ffw_scope)} and no LM LoRA: the text "
            "never leaves the frozen LM; set gamma to 0, ffw_scope to 'joint' or r above 0"
        )
    deep = {"LoRA on the LM (r > 0)": config.r != 0, "objective.gamma > 0": config.objective.gamma != 0}
    found += [
        f"truncate_lm=true with {what}, which needs the LM's last layers; num_layers cuts the base itself"
        for what, wanted in deep.items()
        if config.truncate_lm is True and wanted
    ]
    if config.head_base == "text" and config.objective.lambda_text == 0:
        found.append(
            "head_base='text' with objective.lambda_text=0: nothing would train the text head that the prediction "
            "starts from; set lambda_text above 0"
        )
    return found


def text_alone_problems(config: Any) -> list[str]:
    """What a model that reads text alone cannot be, one phrase each; nothing for any other.

    Apart from :func:`design_problems`: the settings of a run say nothing of modalities, which its data have.
    """
    if not config.reads_text_alone:
        return []
    found = []
    if config.freeze_av_encoder:
        found.append("modalities: none, with freeze_av_encoder: there is no AV encoder to keep; leave it out")
    if config.ffw_scope == "none":
        found.append("modalities: none, with ffw_scope='none': MM Blocks would hold nothing; choose another ffw_scope")
    elif config.objective.gamma != 0 and config.r == 0 and not config.blocks_change_text:
        found.append(
            f"modalities: none, with objective.gamma > 0, ffw_scope={brief(config.ffw_scope)} and no LM LoRA: the text "
            "never leaves the frozen LM; set gamma to 0, ffw_scope to 'joint' or r above 0"
        )
    return found
