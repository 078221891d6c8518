"""Ablations: named variants of one recipe, the same seeds for each, and a table of what every change does."""

from deepmlf_llm.ablation.plan import AblationPlan, Variant
from deepmlf_llm.ablation.report import write_report
from deepmlf_llm.ablation.runner import run_ablation

__all__ = ["AblationPlan", "Variant", "run_ablation", "write_report"]
