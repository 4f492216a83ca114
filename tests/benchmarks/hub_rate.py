"""How fast networks of KerasHub run taken apart: OpenVINO beside Keras's own predict, in turns, with random weights."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.backbones import open_keras
from pipeline.extraction.engines import EngineChoice, open_engine
from pipeline.extraction.engines.base import call
from pipeline.extraction.engines.turns import turns
from pipeline.util import runtime

SIDE, N = 224, 16


def measure(name: str, folder: Path, seconds: float) -> None:
    hub = runtime.keras_hub()
    shape = {"image_shape": (SIDE, SIDE, 3), "num_layers": 12}
    if name == "dinov2 small":
        backbone = hub.models.DINOV2Backbone(patch_size=14, hidden_dim=384, num_heads=6, intermediate_dim=1536, **shape)
        converter = hub.layers.DINOV2ImageConverter
    else:
        backbone = hub.models.ViTBackbone(patch_size=16, hidden_dim=768, num_heads=12, mlp_dim=3072, **shape)
        converter = hub.layers.ViTImageConverter
    backbone.save_to_preset(str(folder))
    converter(image_size=(SIDE, SIDE), scale=1 / 127.5, offset=-1.0).save_to_preset(str(folder))
    opened = open_keras(f"hub:{folder}", "imagenet", 0, None)
    endpoint = opened.default_endpoint()
    images = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
    features = opened.network().features(endpoint, "cls")
    ways = {"keras predict": partial(features.predict, images, batch_size=N, verbose=0)}
    for precision in ("float32", "bfloat16"):
        choice = EngineChoice("openvino", precision)
        engine = open_engine(choice, opened.network, endpoint, "cls", folder / "graph")
        ways[f"openvino {precision}"] = partial(call, engine, images)
    for way, rate in turns(ways, seconds, N).items():
        print(f"{name:<14}{way:<20}{rate:6.1f} images/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    for kind in ("dinov2 small", "vit base"):
        with tempfile.TemporaryDirectory() as place:
            measure(kind, Path(place), arguments.seconds)
