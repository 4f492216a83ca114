"""Ten lines that use an exported file rightly, written beside it."""

from __future__ import annotations

from typing import Any

from pipeline.config.extract import share_of_crop

USAGE = "usage.py"

OPEN = {
    "keras": (
        "import keras",
        "model = keras.models.load_model(file, compile=False)",
        "model.predict(images, verbose=0)",
    ),
    "savedmodel": (
        "import tensorflow as tf",
        "model = tf.saved_model.load(file)",
        "model.serve(images).numpy()",
    ),
    "onnx": (
        "import onnxruntime",
        "model = onnxruntime.InferenceSession(file)",
        'model.run(["probabilities"], {"image": images})[0]',
    ),
    "openvino": (
        "import openvino",
        'model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "model(images)[0]",
    ),
    "tflite": (
        "from ai_edge_litert.interpreter import Interpreter",
        "model = Interpreter(file).get_signature_runner()",
        "next(iter(model(**{next(iter(model.get_input_details())): images}).values()))",
    ),
}
"""For each format: what is imported, how it is opened, and how it is asked."""

RESIZE = {
    "stretch": "picture = picture.resize(({width}, {height}), {method})",
    "pad": 'picture = ImageOps.pad(picture, ({width}, {height}), {method}, color="white")',
    "crop": "picture = ImageOps.fit(picture, ({width}, {height}), {method}, bleed={bleed})",
}

SCRIPT = '''\
"""Name the class of each picture whose path is given."""

import sys
from pathlib import Path

import numpy as np
{imported}
from PIL import Image, ImageOps

names = {names}
file = str(Path(__file__).with_name({file!r}))
{opened}
for path in sys.argv[1:]:
    picture = Image.open(path)
    wide, high = picture.size if picture.getexif().get(274, 1) < 5 else picture.size[::-1]  # 274: orientation
    share = {fit}({width} / wide, {height} / high){kept}
    if share <= 0.5:  # large JPEGs were shrunk by the decoder in training, too
        picture.draft(None, (round(picture.width * share), round(picture.height * share)))
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    {resized}
    images = np.asarray(picture)[None]
    probabilities = {asked}[0]
    print(path, names[probabilities.argmax()], f"{{probabilities.max():.3f}}")
'''


def usage(form: str, file: str, metadata: dict[str, Any]) -> str:
    """A script that opens an exported file and names the classes of pictures.

    Pictures with transparency or more than 8 bits a channel are rarer, and take more than a script of this length.

    Args:
        form: Name of the format.
        file: Name of the file, beside the script.
        metadata: What the file says of itself.
    """
    imported, opened, asked = OPEN[form]
    height, width = metadata["image_size"]
    share = share_of_crop(metadata["resize"])
    resize = "crop" if metadata["resize"].startswith("crop") else metadata["resize"]
    method = f"Image.Resampling.{metadata['interpolation'].upper()}"
    return SCRIPT.format(
        imported=imported,
        names=list(metadata["class_names"]),
        file=file,
        opened=opened,
        kept="" if share == 1 else f" / {share}",
        fit="min" if metadata["resize"] == "pad" else "max",
        width=width,
        height=height,
        resized=RESIZE[resize].format(width=width, height=height, method=method, bleed=(1 - share) / 2),
        asked=asked,
    )
