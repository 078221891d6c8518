"""What was computed as features, apart from where they came from; and whether features are those of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRECOMPUTED = "precomputed"
"""Kind of features that were read from a file: how they were made is not known."""

STANDARDISED_BY = "standardised_by"
"""Key among what was computed: over which frames features have mean 0 and deviation 1."""

CORPUS, VIDEO = "corpus", "video"
STANDARDISATIONS = (CORPUS, VIDEO)
"""Over those of the training split; or over those of each video first (:mod:`deepmlf_llm.data.videos`)."""

_FROM = ("source", "fingerprint")  # what older manifests and adapters say of the file, among what says how


@dataclass(frozen=True)
class FeatureRecipe:
    """What was computed, as far as it is known: two sets of features are the same kind if nothing known differs.

    Which file they were read from is not part of it, see :func:`provenance_of`.

    Attributes:
        dim: width of one frame; None: unknown.
        frame_rate: frames a second (Hz); None: unknown.
        computed: encoder, layer and whatever else names the computation; empty: unknown.
        standardised_by: "corpus", or "video"; always known.
    """

    dim: int | None = None
    frame_rate: float | None = None
    computed: dict[str, Any] = field(default_factory=dict)
    standardised_by: str = CORPUS

    @classmethod
    def of(cls, facts: Any) -> FeatureRecipe:
        """From what a manifest (a mapping) or an adapter (a ``ModalityConfig``) says of a modality, of any version."""
        made = _fact(facts, "features") or {}
        computed = {key: value for key, value in made.items() if key not in (*_FROM, STANDARDISED_BY)}
        if computed.get("kind") == PRECOMPUTED:
            del computed["kind"]
        by = str(made.get(STANDARDISED_BY, CORPUS))
        return cls(_fact(facts, "dim"), _fact(facts, "frame_rate"), computed, by)

    def differences(self, other: FeatureRecipe) -> list[str]:
        """What differs from ``other`` (the features at hand), one phrase each."""
        found = []
        if None not in (self.dim, other.dim) and self.dim != other.dim:
            found.append(f"has {other.dim} dimensions, expected {self.dim}")
        rates = (self.frame_rate, other.frame_rate)
        if None not in rates and abs(rates[0] - rates[1]) > 1e-6 * rates[0]:  # type: ignore[operator]
            found.append(f"has {other.frame_rate:g} frames a second, expected {self.frame_rate:g}")
        if self.standardised_by != other.standardised_by:
            found.append(
                f"is standardised by {other.standardised_by}, expected by {self.standardised_by} (`deepmlf prepare "
                f"--standardise {self.standardised_by}`)"
            )
        if self.computed and other.computed:
            names = sorted({*self.computed, *other.computed})
            differing = [name for name in names if self.computed.get(name) != other.computed.get(name)]
            if differing:
                values = ", ".join(
                    f"{name} {other.computed.get(name)!r}, expected {self.computed.get(name)!r}"
                    for name in differing[:4]
                )
                found.append(f"was made by another feature recipe (it differs in {', '.join(differing)}: {values})")
        return found

    def describe(self) -> str:
        """A few words; empty where nothing is known of how they were computed."""
        told = [f"{name} {value}" for name, value in self.computed.items()]
        return ", ".join([*told, "standardised within each video"] if self.standardised_by == VIDEO else told)


def provenance_of(facts: Any) -> dict[str, Any]:
    """Where the features of a modality came from (``source``: name of the file), in manifests and adapters of any
    version; never compared."""
    own = _fact(facts, "provenance")
    if own:
        return dict(own)
    made = _fact(facts, "features") or {}
    return {key: made[key] for key in _FROM if key in made}


def _fact(facts: Any, name: str) -> Any:
    return facts.get(name) if isinstance(facts, Mapping) else getattr(facts, name, None)


def feature_problems(trained: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps features from being used, one phrase each; empty where they fit.

    Args:
        trained: modality -> facts of the training (``config.modalities``).
        given: modality -> facts of the features at hand (``store.modalities``): ``dim``, ``frame_rate`` and
            ``features`` (what was computed), where known.
    """
    problems = []
    for name, facts in trained.items():
        if name not in given:
            problems.append(f"no {name!r}")
            continue
        differing = FeatureRecipe.of(facts).differences(FeatureRecipe.of(given[name]))
        problems += [f"{name!r} {difference}" for difference in differing]
    return problems
