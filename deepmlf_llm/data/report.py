"""The manifest as a person reads it."""

from __future__ import annotations

from typing import Any

from deepmlf_llm.data.facts import VIDEO, FeatureRecipe
from deepmlf_llm.data.manifest import Manifest
from deepmlf_llm.tasks.registry import task_of


def report_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What was prepared, as pairs of a name and a sentence."""
    source, text = manifest.source, manifest.text
    rows = [
        ("source", f"{source['name']} ({source['kind']}), sha256 {source['sha256'][:12]}"),
        ("dataset", f"{manifest.dataset}, {_labels(manifest)}"),
    ]
    for name, facts in manifest.splits.items():
        rows.append((name, f"{facts['rows']} utterances; {_counts(facts['labels'])}"))
    words = text["words"]
    empty = f"; {words['empty']} empty" if words["empty"] else ""
    rows.append(("text", f"case {text['case']}; words: median {words['median']:g}, max {words['max']}{empty}"))
    for name, facts in manifest.modalities.items():
        rows += _modality_rows(name, facts)
    return rows + [("note", note) for note in manifest.notes]


def _labels(manifest: Manifest) -> str:
    """What labels are, in words."""
    if manifest.task is not None:
        return task_of(manifest.dataset, manifest.task).describe()
    low, high = manifest.labels["range"]
    return f"polarity in [{low:g}, {high:g}]"


def _counts(labels: dict[str, Any]) -> str:
    """The labels of a split, in words."""
    if "classes" in labels:
        counted = ", ".join(f"{count} {name}" for name, count in labels["classes"].items())
        return counted + (f", {labels['none']} of no class" if "none" in labels else "")
    return (
        f"polarity {labels['min']:.4g} to {labels['max']:.4g}, mean {labels['mean']:.3f}; {labels['negative']} "
        f"negative, {labels['neutral']} neutral, {labels['positive']} positive"
    )


def _modality_rows(name: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    rate = f" at {facts['frame_rate']:g} Hz" if facts["frame_rate"] else ""
    frames, standardisation = facts["frames"], facts["standardisation"]
    counted = list(facts["cleaned"].values())
    total = {key: sum(counts[key] for counts in counted) for key in counted[0]}
    absent = ", ".join(f"{split} {count}" for split, count in facts["absent"].items() if count)
    infinite = total["positive_inf"] + total["negative_inf"]
    clip = (
        "no clip"
        if standardisation["clip"] is None
        else f"{total['clipped']} clipped at {standardisation['clip']:g} sd"
    )
    by_video = FeatureRecipe.of(facts).standardised_by == VIDEO
    return [
        (name, f"{facts['dim']} dims{rate}; frames: median {frames['median']:g}, max {frames['max']}"),
        *([("  standardised", "within each video, then over the training split")] if by_video else []),
        ("  absent", absent or "in no utterance"),
        (
            "  cleaned",
            f"{total['nan']} NaN and {infinite} infinite values set to the {'video' if by_video else 'training'} mean; "
            f"{clip}; "
            f"{len(standardisation['constant'])} constant dims",
        ),
    ]
