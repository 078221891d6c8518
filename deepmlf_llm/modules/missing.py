"""What is taken from a sequence of frames in training, so that a model learns to do without it: masks only.

Modality dropout makes a whole modality of an utterance absent; frame dropout makes the frames of one that stays sparse.
Both only turn entries of a mask to False: every rank runs the same modules, and what remains is pooled and numbered as
if the other frames had never been there.
"""

from torch import Tensor


def drop_rows(mask: Tensor, draw: Tensor, probability: float) -> Tensor:
    """The mask without the rows whose draw is below ``probability``: there the modality is absent.

    Args:
        mask: True where a frame is real [b x t].
        draw: one number in [0, 1) a row [b].
        probability: that a row goes.
    """
    return mask & (draw >= probability)[:, None]


def drop_frames(mask: Tensor, draws: Tensor, rate: float) -> Tensor:
    """The mask without the frames whose draw is below ``rate``; of a row that has real frames, one always stays.

    The one with the largest draw: a modality that loses its last frame would be absent, which is another thing to
    learn, and drawn apart (:func:`drop_rows`). So a row of a single frame keeps it at any rate.

    Args:
        mask: True where a frame is real [b x t].
        draws: one number in [0, 1) a frame [b x t].
        rate: that a frame goes.
    """
    largest = draws.masked_fill(~mask, -1.0).amax(dim=1, keepdim=True)
    return mask & ((draws >= rate) | (draws == largest))
