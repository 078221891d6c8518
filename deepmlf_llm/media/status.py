"""What became of a clip: one word, and the sentence behind it."""

from __future__ import annotations

from deepmlf_llm.errors import DataError

OK = "ok"
NO_AUDIO, NO_VIDEO, NO_SPEECH, NO_FACE = "ok_no_audio", "ok_no_video", "ok_no_speech", "ok_no_face"
GOOD = (OK, NO_AUDIO, NO_VIDEO, NO_SPEECH, NO_FACE)
"""The clip has its features; what it does not have is absent, an empty sequence, never zeros."""

MISSING, UNREADABLE, TRUNCATED, CORRUPT = "missing", "unreadable", "truncated", "corrupt"
TOO_SHORT, TOO_LONG = "too_short", "too_long"
FAILED = (MISSING, UNREADABLE, TRUNCATED, CORRUPT, TOO_SHORT, TOO_LONG)


class ClipError(DataError):
    """A clip that gives no features.

    Attributes:
        status: one of :data:`FAILED`.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def status_of(absent: list[str]) -> str:
    """The status of a clip that has its features, by the first thing that it lacks: of audio, video, speech, face."""
    return f"ok_no_{absent[0]}" if absent else OK
