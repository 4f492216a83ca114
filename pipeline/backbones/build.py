"""How the graph of a backbone is made: by keras.applications, or from a file; uint8 RGB in, preprocessing inside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones.catalogue import Anatomy, Backbone
from pipeline.backbones.graph import apply, nodes, tensor_of
from pipeline.backbones.network import Network
from pipeline.backbones.parts import hold_back_warnings, mend, mended
from pipeline.errors import ConfigError, WeightsError
from pipeline.util import runtime
from pipeline.util.archives import keras_model
from pipeline.util.text import first_line

if TYPE_CHECKING:
    import keras

# Mean and standard deviation of ImageNet's RGB as shares of white, and the mean in BGR 0..255: the constants of
# keras.applications.imagenet_utils.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_BGR_MEAN = (103.939, 116.779, 123.68)


@contextmanager
def fresh_names() -> Iterator[None]:
    """Count the layers without a name of their own from the start, so that their names tell them in every process."""
    runtime.keras()
    from keras.src.backend.common import global_state

    before = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


@contextmanager
def dtype_policy(policy: str) -> Iterator[None]:
    """Let layers that are made in the block have a policy."""
    keras = runtime.keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_network(row: Backbone, image_size: tuple[int, int], policy: str = "float32") -> Network:
    """Build a backbone of the table with weights as Keras draws them.

    Args:
        row: The backbone.
        image_size: (height, width), pixels.
        policy: Keras dtype policy: "float32", "mixed_float16" or "mixed_bfloat16".
    """
    keras = runtime.keras()
    with fresh_names(), dtype_policy(policy):
        pixels = keras.Input((*image_size, 3), dtype="uint8", name="pixels")
        inside = _preprocess(row, pixels)
        function = getattr(keras.applications, row.function)
        model = function(
            weights=None, include_top=False, input_tensor=inside, input_shape=(*image_size, 3), **row.arguments
        )
    return Network(keras.Model(pixels, model.outputs[0], name=row.name), row)


def check_image_size(row: Backbone, image_size: tuple[int, int]) -> None:
    """Refuse images that a backbone can't take, before anything is loaded.

    Raises:
        ConfigError: If a side is too small.
    """
    if min(image_size) < row.least_size:
        raise ConfigError(
            f"--image-size {image_size[0]}x{image_size[1]} is too small for {row.name}, which takes "
            f"{row.least_size} pixels or more; its native size is {row.native_size}"
        )


def _preprocess(row: Backbone, pixels: Any) -> Any:
    """Apply keras.applications' `preprocess_input` as layers, which are saved with the model."""
    rescaling = runtime.keras().layers.Rescaling
    if row.preprocessing == "torch":
        scale = [1 / (255 * std) for std in IMAGENET_STD]
        offset = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        return rescaling(scale, offset, name="preprocessing")(pixels)
    if row.preprocessing == "caffe":
        rgb = rescaling(1.0, [-mean for mean in reversed(IMAGENET_BGR_MEAN)], name="preprocessing")(pixels)
        return runtime.keras().ops.flip(rgb, axis=-1)
    if row.preprocessing == "tf":
        return rescaling(1 / 127.5, -1.0, name="preprocessing")(pixels)
    if row.preprocessing == "efficientnet":
        # Keras divides once more, by the root of the standard deviation, but only if it loads ImageNet itself. The
        # same factor, before the network's own (x / 255 - mean) / root, is s * x + 255 * mean * (1 - s).
        scale = [std**-0.5 for std in IMAGENET_STD]
        offset = [255 * mean * (1 - factor) for mean, factor in zip(IMAGENET_MEAN, scale, strict=True)]
        return rescaling(scale, offset, name="preprocessing")(pixels)
    return rescaling(1.0, name="preprocessing")(pixels)


def load_network(path: Path, image_size: tuple[int, int], policy: str = "float32") -> Network:
    """Load a model of one's own from a `.keras` file, without running code from it.

    Args:
        path: The file; a functional or sequential model that takes RGB 0..255.
        image_size: (height, width), pixels.
        policy: Keras dtype policy.

    Raises:
        WeightsError: If it can't be loaded.
        ConfigError: If it doesn't take images of this size.
    """
    keras, loaded = runtime.keras(), _load_model(path)
    if not getattr(loaded, "inputs", None) or len(loaded.inputs) != 1 or len(loaded.inputs[0].shape) != 4:
        raise ConfigError(f"{path} is no model with one input of images [n, height, width, 3]; such a one is needed")
    expected = tuple(loaded.inputs[0].shape[1:])
    if any(side not in (None, given) for side, given in zip(expected, (*image_size, 3), strict=True)):
        sides = "x".join(str(side) for side in expected[:2])
        raise ConfigError(
            f"{path} takes images of {sides} with {expected[2]} channels, not {image_size[0]}x{image_size[1]} RGB; "
            f"give --image-size {sides}"
        )
    with fresh_names(), dtype_policy(policy):
        pixels = keras.Input((*image_size, 3), dtype="uint8", name="pixels")
        takes_bytes = loaded.inputs[0].dtype == "uint8"  # such as a model that tlpipe fine-tuned
        inside = pixels if takes_bytes else keras.layers.Rescaling(1.0, name="preprocessing")(pixels)
        model = keras.Model(pixels, apply(_under(loaded, policy), inside), name=re.sub(r"\W", "_", path.stem))
    return Network(model, None)


def load_tuned(path: Path, row: Anatomy | None, top: str, policy: str = "float32") -> Network:
    """Load the backbone inside a model that was fine-tuned, which takes uint8 images, without running code from it.

    Args:
        path: The `.keras` file.
        row: The row of the backbone that was fine-tuned; None for a model of one's own.
        top: Name of the highest layer of the backbone.
        policy: Keras dtype policy.

    Raises:
        WeightsError: If it can't be loaded, or has no such layer.
    """
    keras, loaded = runtime.keras(), _load_model(path)
    if top not in (node.name for node in nodes(loaded)):
        raise WeightsError(f"{path} has no layer {top!r}, so it is not the model of its run")
    found = keras.Model(loaded.inputs[0], tensor_of(loaded, top))
    pixels = keras.Input(found.inputs[0].shape[1:], dtype="uint8", name="pixels")
    # Once more layer by layer: those that were mended give other shapes than the graph in the file declares.
    model = found if policy == "float32" else _under(found, policy)
    return Network(keras.Model(pixels, apply(model, pixels), name="backbone"), row)


def _load_model(path: Path) -> keras.Model:
    """Load a file of Keras without running code from it, with layers that can all be trained.

    Raises:
        WeightsError: If it can't be loaded.
    """
    hold_back_warnings()
    try:
        model = keras_model(path)
    except Exception as error:  # Keras raises many kinds, for damaged files and for code it won't run
        raise WeightsError(f"{path} can't be loaded as a Keras model: {first_line(error)}") from error
    for layer in model._flatten_layers():
        layer.trainable = True  # what was frozen when a model was saved is not frozen for good
    mend(model)
    return model


def _under(model: keras.Model, policy: str) -> keras.Model:
    """A copy for a dtype policy, with the same weights: a loaded layer keeps the policy it was saved with."""
    keras = runtime.keras()

    def under(operation: Any) -> Any:
        if not isinstance(operation, keras.layers.Layer):
            return operation  # such as the flip of colours, which has no policy
        return mended(type(operation).from_config({**operation.get_config(), "dtype": policy}))

    with dtype_policy(policy):  # some layers leave it to their parts to find theirs
        copy = keras.models.clone_model(model, clone_function=under)
    copy.set_weights(model.get_weights())
    return copy
