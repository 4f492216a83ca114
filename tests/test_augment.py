"""Views: drawn once and for all, and what they may not do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.config.extract import check_views
from pipeline.data.augment import OPERATIONS, Augment
from pipeline.errors import ConfigError

KEY = b"a" * 32


@pytest.fixture
def image(random: np.random.Generator) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))


def test_view_0_is_the_image(image: Image.Image) -> None:
    assert Augment(OPERATIONS)(image, KEY, 0) is image
    assert Augment(OPERATIONS).row_key(KEY, 0) == KEY


def test_one_view_of_flip_is_the_mirror_image(image: Image.Image) -> None:
    mirrored = np.asarray(Augment.parse("flip")(image, KEY, 1))
    np.testing.assert_array_equal(mirrored, np.asarray(image)[:, ::-1])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_changes_the_image_the_same_way_each_time(operation: str, image: Image.Image) -> None:
    augment = Augment.parse(operation)
    once, again = (np.asarray(augment(image, KEY, 1)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.shape != (30, 40, 3) or (once != np.asarray(image)).any()


def test_views_and_images_draw_differently(image: Image.Image) -> None:
    augment = Augment.parse("crop,rotate")
    drawn = [augment(image, key, view).tobytes() for key in (KEY, b"b" * 32) for view in (1, 2)]
    assert len(set(drawn)) == 4
    keys = {augment.row_key(key, view) for key in (KEY, b"b" * 32) for view in (1, 2)}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert augment.row_key(KEY, 1) != Augment.parse("crop").row_key(KEY, 1)


def test_rotation_leaves_no_empty_corners() -> None:
    white = Image.new("RGB", (60, 40), "white")
    for view in range(1, 10):
        assert np.asarray(Augment.parse("rotate")(white, KEY, view)).min() > 250


def test_order_of_names_does_not_matter() -> None:
    assert Augment.parse("crop, flip") == Augment.parse("flip,crop")


@pytest.mark.parametrize("text", ["", "flop", "flip,,spin"])
def test_unknown_operations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="flip"):
        Augment.parse(text)


def test_more_views_of_flip_would_repeat() -> None:
    with pytest.raises(ConfigError, match="repeat"):
        check_views(2, "flip")
    check_views(2, "flip,crop")
