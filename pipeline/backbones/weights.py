"""Where a backbone's ImageNet weights come from, and how weights are loaded."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backbones.catalogue import Backbone
from pipeline.errors import WeightsError
from pipeline.util import runtime
from pipeline.util.archives import keras_model
from pipeline.util.text import first_line

if TYPE_CHECKING:
    import keras

WEIGHTS_FOLDER = "TLPIPE_WEIGHTS"


def keras_file(row: Backbone) -> Path:
    """Where Keras keeps the ImageNet weights of a backbone once it has fetched them."""
    return runtime.keras_home() / "models" / row.weights_file


def find_imagenet(row: Backbone) -> Path | None:
    """The file with ImageNet weights: in $TLPIPE_WEIGHTS, else in Keras's own cache, else None."""
    candidates = [keras_file(row)]
    if folder := os.environ.get(WEIGHTS_FOLDER):
        candidates = [Path(folder) / row.weights_file, Path(folder) / f"{row.name}_imagenet_notop.h5", *candidates]
    return next((path for path in candidates if path.is_file()), None)


def fetch_imagenet(row: Backbone) -> Path:
    """Let Keras fetch the ImageNet weights of a backbone, and check them.

    Raises:
        WeightsError: If they can't be fetched, with what to do instead.
    """
    function = getattr(runtime.keras().applications, row.function)
    shape = (row.native_size, row.native_size, 3)
    try:
        # Where the folder isn't there yet, Keras would quietly take another one.
        runtime.keras_home().mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # Keras draws its progress on standard output
            function(weights="imagenet", include_top=False, input_shape=shape, **row.arguments)
    except Exception as error:  # Keras raises a bare Exception where the network fails
        raise WeightsError(
            f"The ImageNet weights of {row.name} are not here and can't be fetched: {first_line(error)}. "
            f"Put {row.weights_file} from {row.weights_address} into the folder that ${WEIGHTS_FOLDER} names, "
            "or go without: --weights random"
        ) from error
    return keras_file(row)


def load_weights(model: keras.Model, path: Path, name: str) -> None:
    """Give a network the weights in a file, also in that of a model with a head above it.

    Raises:
        WeightsError: If they are those of another network, or the file is damaged.
    """
    try:
        if path.suffix == ".keras":
            # A model that was trained further has a head above the backbone's own arrays.
            arrays = keras_model(path).get_weights()[: len(model.get_weights())]
            model.set_weights(arrays)
        else:
            model.load_weights(path)
    except Exception as error:  # h5py, Keras and zipfile raise many kinds
        raise WeightsError(
            f"{path} doesn't hold weights of {name} without its classifier, or is damaged: {first_line(error)}. "
            "If Keras fetched it, delete it to have it fetched again"
        ) from error
