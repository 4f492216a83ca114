"""What only a GPU can show of the JAX engine; `make test-gpu` runs it, and needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import commands
from pipeline.backbones import Pretrained, open_backbone
from pipeline.config import ExtractConfig
from pipeline.errors import EngineError
from pipeline.extraction.engines import EngineChoice, call, choose, judge, open_engine, reference
from pipeline.util import machine, runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(runtime.keras_backend() != "jax", reason="for Keras on JAX: set KERAS_BACKEND=jax"),
]

CHOICES = [EngineChoice("jax", "float32"), EngineChoice("jax", "bfloat16")]


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    """With real weights where they are: half precision can't hold features of random ones in all networks."""
    from pipeline.backbones import BACKBONES, find_imagenet

    weights = "imagenet" if find_imagenet(BACKBONES["densenet121"]) else "random"
    return open_backbone("densenet121", weights, 0, (224, 224))


def test_auto_takes_the_gpu() -> None:
    assert runtime.jax().default_backend() == "gpu"
    assert choose("auto", "auto") == EngineChoice("jax", "bfloat16")


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.precision)
def test_verdict_holds(choice: EngineChoice, pretrained: Pretrained, tmp_path: Path) -> None:
    """Against the processor: 1e-4 of the features' length in float32."""
    found = judge(choice, pretrained.network, "conv5", "avg", tmp_path)
    assert found.holds, found
    assert found.device != machine.processor()


def test_activations_at_the_cut(pretrained: Pretrained, tmp_path: Path) -> None:
    pictures, expected = reference(pretrained.network, "conv4", "none")
    engine = open_engine(CHOICES[0], pretrained.network, "conv4", "none", tmp_path)
    assert np.linalg.norm(call(engine, pictures) - expected) < 1e-4 * np.linalg.norm(expected)


def test_nothing_is_traced_again(pretrained: Pretrained, tmp_path: Path) -> None:
    engine: Any = open_engine(CHOICES[1], pretrained.network, "conv5", "avg", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2 * engine.batch_size + 3, 224, 224, 3), np.uint8)
    assert call(engine, images).shape == (len(images), 1024)
    with pytest.raises(TypeError):
        engine._run(engine._weights, images[:3])


def test_batch_that_is_too_large(pretrained: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Out of memory with \d+ images .*; try a --batch-size below \d+"):
        open_engine(CHOICES[0], pretrained.network, "conv5", "avg", tmp_path, 2**17)


def test_extract(pictures: Path, cache: Path) -> None:
    """From files to rows; a second time nothing is computed."""
    config = ExtractConfig(str(pictures), backbone="mobilenet025", weights="random", image_size=(96, 96))
    first, again = commands.extract(config, cache), commands.extract(config, cache)
    assert (first.choice.engine, first.n_computed, again.n_computed) == ("jax", 120, 0)
