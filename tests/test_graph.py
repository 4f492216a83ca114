"""Cuts, found from the graph itself."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from pipeline.backbones import cuts
from pipeline.backbones.graph import nodes


def test_chain() -> None:
    model = keras.Sequential([keras.Input((4,), name="in"), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    assert cuts(model) == ["in", "a"]


def test_a_branch_has_no_cut_inside() -> None:
    start = keras.Input((4,), name="in")
    stem = layers.Dense(4, name="stem")(start)
    left, right = layers.Dense(4, name="left")(stem), layers.Dense(4, name="right")(stem)
    joined = layers.Add(name="joined")([layers.ReLU(name="relu")(left), right])
    assert cuts(keras.Model(start, layers.Dense(1, name="top")(joined))) == ["in", "stem", "joined"]


def test_a_skip_over_a_layer_hides_it() -> None:
    start = keras.Input((4,), name="in")
    inner = layers.Dense(4, name="inner")(start)
    assert cuts(keras.Model(start, layers.Dense(1, name="top")(layers.Add(name="sum")([start, inner])))) == [
        "in",
        "sum",
    ]


def test_two_inputs_meet_before_any_cut() -> None:
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    deep = layers.Dense(4, name="deep")(layers.Dense(4, name="first")(one))
    joined = layers.Add(name="joined")([deep, two])
    assert cuts(keras.Model([one, two], layers.Dense(1, name="top")(joined))) == ["joined"]


def test_nothing_above_an_output_is_cut_off_from_it() -> None:
    start = keras.Input((4,), name="in")
    early = layers.Dense(2, name="early")(layers.Dense(4, name="stem")(start))
    late = layers.Dense(2, name="late")(early)
    last = layers.Dense(2, name="last")(late)
    assert cuts(keras.Model(start, [early, last])) == ["in", "stem"]


def test_operations_count_as_layers() -> None:
    start = keras.Input((4,), name="in")
    assert cuts(keras.Model(start, layers.Dense(1, name="top")(keras.ops.relu(start) * 2.0)))[0] == "in"


def test_layers_that_no_output_needs_are_left_out() -> None:
    start = keras.Input((4,), name="in")
    used = layers.Dense(2, name="used")(start)
    layers.Dense(2, name="unused")(start)
    assert [node.name for node in nodes(keras.Model(start, used))] == ["in", "used"]


@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("NASNetMobile", marks=pytest.mark.slow), "InceptionV3"])
def test_every_cut_splits_the_model_in_two(name: str) -> None:
    """Metamorphic: the upper half, fed by the lower half, gives what the whole gives."""
    import numpy as np

    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(96, 96, 3))
    found = cuts(model)
    images = np.random.default_rng(0).random((2, 96, 96, 3), np.float32)
    expected = model(images, training=False)
    for cut in (found[1], found[len(found) // 2], found[-1]):
        tensor = model.get_layer(cut).output
        below, above = keras.Model(model.input, tensor), keras.Model(tensor, model.output)
        np.testing.assert_allclose(above(below(images, training=False), training=False), expected, atol=1e-4)
