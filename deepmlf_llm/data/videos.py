"""The videos that utterances come from, and features standardised within each of them.

A corpus of few speakers lets a model tell them apart by means alone, and no speaker of validation or test is among
those it learnt. Within a video (one speaker, one microphone) each dimension gets mean 0 and deviation 1 over the
video's own frames: what is left is how an utterance differs from the others of its video. No label is needed, but the
whole video is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepmlf_llm.data.clean import Cleaned, fit_standardisation, standardise
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import DataError

SEPARATOR = "$_$"  # between video and clip, as in the field's files


def videos_of(ids: Sequence[str], source: str, wanted_by: str) -> list[str]:
    """The video of each utterance.

    Args:
        ids: of the utterances.
        source: name of what they were read from, for the message.
        wanted_by: what needs videos, a plural.

    Raises:
        DataError: an id that names none.
    """
    if unnamed := [identity for identity in ids if SEPARATOR not in identity]:
        raise DataError(f"{source}: {unnamed[0]!r} names no video; {wanted_by} need ids such as VIDEO{SEPARATOR}CLIP")
    return [identity.split(SEPARATOR)[0] for identity in ids]


def standardise_within(frames: Ragged, videos: Sequence[str]) -> Cleaned:
    """Standardises each video's frames by their own mean and deviation, in place.

    What is not finite becomes the video's mean, 0, and so does a dimension that does not vary in the video: of an
    utterance that is alone in its video with one frame nothing is left.

    Args:
        frames: of N utterances.
        videos: of each of them [N].

    Returns:
        How many values were not finite.
    """
    places: dict[str, list[int]] = {}
    for row, video in enumerate(videos):
        places.setdefault(video, []).append(row)
    found = Cleaned()
    for rows in places.values():
        here = np.concatenate([np.arange(frames.offsets[row], frames.offsets[row + 1]) for row in rows])
        own = Ragged(frames.values[here], np.array([0, len(here)]))
        frames.values[here], counts = standardise(own.values, fit_standardisation(own, clip=None))
        found += counts
    return found
