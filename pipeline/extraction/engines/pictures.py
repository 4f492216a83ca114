"""Fixed pictures by which engines are calibrated and judged: the same on every machine and for all data."""

from __future__ import annotations

import math

import numpy as np

from pipeline.config import ImageConfig
from pipeline.data.images import Pixels, from_array, resize


def crops(n: int, size: tuple[int, int], seed: int, *, varied: bool) -> Pixels:
    """Crops of the two photographs that come with scikit-learn, small and large, uint8 [n, height, width, 3].

    Args:
        n: How many.
        size: (height, width), pixels.
        seed: Which.
        varied: Whether contrast, brightness and the order of colours vary, too, so that ranges fit other pictures.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    draw = np.random.default_rng(seed)
    least = 24 if varied else 64
    config = ImageConfig(size)
    pictures = np.empty((n, *size, 3), np.uint8)
    for number in range(n):
        photograph = photographs[number % len(photographs)]
        sides = photograph.shape[:2]
        side = int(math.exp(draw.uniform(math.log(least), math.log(min(sides)))))
        top, left = (int(draw.integers(0, whole - side + 1)) for whole in sides)
        crop = photograph[top : top + side, left : left + side]
        if varied:
            contrast, brightness = draw.uniform(0.5, 1.6), draw.uniform(60, 200)
            crop = np.clip((crop - 118.0) * contrast + brightness, 0, 255).astype(np.uint8)
            crop = crop[..., draw.permutation(3)] if draw.random() < 0.5 else crop
        pictures[number] = resize(from_array(np.ascontiguousarray(crop)), config)
    return pictures
