"""Tokens of a transformer: which of them stand for patches of the picture, and which come before."""

from __future__ import annotations

MOST_PREFIX = 8
"""Class token and registers; DINOv2 has five of them with registers, and no network that is known has more."""


def prefix_of(n_tokens: int, image_size: tuple[int, int]) -> int | None:
    """How many tokens come before those of the patches, if patches are square and lie side by side.

    Args:
        n_tokens: Tokens in all.
        image_size: (height, width), pixels.

    Returns:
        None if the tokens are no grid of patches with a few more before it.
    """
    height, width = image_size
    grids = [
        (height // side) * (width // side)
        for side in range(2, min(image_size) + 1)
        if height % side == 0 == width % side
    ]
    rest = n_tokens - max((grid for grid in grids if grid <= n_tokens), default=0)
    return rest if rest <= MOST_PREFIX else None
