"""Where in a picture a classifier sees a class: class activation maps, and Grad-CAM for heads that are not linear.

Pooled features are means over height and width, so what a feature adds to a logit is a mean, too, of what each place
adds: the activation there, times the gradient of the logit by the feature. For a linear head that is the class
activation map (Zhou et al. 2016, arXiv:1512.04150); for others it is Grad-CAM (Selvaraju et al. 2017,
arXiv:1610.02391), of which that is a case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import Network, tensor_of
from pipeline.config import ExtractConfig
from pipeline.data import ImageSource
from pipeline.errors import ConfigError
from pipeline.extraction.plan import Done, complete_all, keys_of_all, open_plan
from pipeline.heads import PROBABILITIES
from pipeline.runs.classifier import Classifier
from pipeline.runs.run import FinetuneRun
from pipeline.util import runtime

POOLINGS = ("avg", "max")
BLOCK = 64  # pictures whose activations are held at a time

Maps = Sequence[NDArray[np.floating]]
"""Maps [h, w] of a picture, one for each endpoint; what they show adds up."""


def class_maps(
    classifier: Classifier, source: ImageSource, locations: Sequence[str], labels: NDArray[np.int64], cache: Path
) -> Iterator[Maps]:
    """What each place of a picture adds to the logit of a class, less the mean of the logits of all classes.

    Activations that are not in the cache are computed and kept there.

    Args:
        classifier: The run.
        source: The pictures.
        locations: Where they lie, for people.
        labels: The class that is asked about, for each picture, shape [n].
        cache: The cache folder.

    Yields:
        The maps of each picture, in their order.

    Raises:
        DataError: If a picture can't be read.
        ConfigError: If the run has no activations with height and width, or its head no gradient.
    """
    _check(classifier)
    keys = keys_of_all(source, locations, cache)
    plans = [open_plan(config, cache) for config in _configs(classifier, cache)]
    passes = [complete_all(plan, keys, locations, source) for plan in plans]
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        activations = [_activations(done, keys[block]) for done in passes]
        gradients = _gradients(classifier, activations, labels[block], passes)
        maps = [np.einsum("nhwc,nc->nhw", *pair) for pair in zip(activations, gradients, strict=True)]
        yield from zip(*maps, strict=True)


def _check(classifier: Classifier) -> None:
    """Refuse a run whose features have no places.

    Raises:
        ConfigError: If it is one.
    """
    for spec in classifier.run.specs:
        if isinstance(classifier.run, FinetuneRun) or spec.pooling in POOLINGS:
            continue
        raise ConfigError(
            f"The features of {classifier.run.id} are pooled by {spec.pooling!r}, which has no places to show; "
            "extract with --pooling avg, and train a head on that"
        )


def _configs(classifier: Classifier, cache: Path) -> list[ExtractConfig]:
    """What is extracted to have the activations of each endpoint, in the order of the features."""
    run = classifier.run
    if isinstance(run, FinetuneRun):
        (config,) = classifier.configs
        # A network that began with random weights may give activations too small for half precision.
        return [replace(config, endpoint=run.top, pooling="none", dtype="float32")]
    found = []
    for config, plan in zip(classifier.configs, classifier.plans(cache), strict=True):
        found += [
            replace(config, endpoint=endpoint, pooling="none", views=0, augment=None)
            for endpoint in plan.spec.endpoint.split("+")
        ]
    return found


def _activations(done: Done, keys: NDArray[np.bytes_]) -> NDArray[np.float32]:
    """Activations [n, h, w, c] of some pictures.

    Raises:
        ConfigError: If they have no height and width.
    """
    found = done.features(keys).astype(np.float32)
    if found.ndim != 4:
        raise ConfigError(
            f"{done.plan.spec.endpoint} of {done.plan.spec.backbone} gives tokens, which have no places to show; "
            "explain is for networks with feature maps"
        )
    return found


def _gradients(
    classifier: Classifier,
    activations: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    passes: Sequence[Done],
) -> list[NDArray[np.floating]]:
    """Gradients [n, c] by each channel of each endpoint, of which a map is the weighted sum."""
    if classifier.trained is None:
        return [_gradients_of_model(passes[0], activations[0], labels)]
    kinds = [spec.pooling for spec in classifier.run.specs for _ in spec.endpoint.split("+")]
    pooled = [
        part.mean(axis=(1, 2)) if kind == "avg" else part.max(axis=(1, 2))
        for part, kind in zip(activations, kinds, strict=True)
    ]
    joined = classifier.trained.head.gradients(np.concatenate(pooled, axis=1), labels)
    ends = np.cumsum([part.shape[1] for part in pooled])
    return np.split(joined, ends[:-1], axis=1)


def _gradients_of_model(
    done: Done, activations: NDArray[np.floating], labels: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Those of a fine-tuned model, means over its places times their number, by automatic differentiation."""
    tf, network = runtime.tensorflow(), done.plan.pretrained.network()
    if not isinstance(network, Network):
        raise ConfigError("An ONNX file has no gradients, so it can't be told where it sees a class")
    whole = network.features(PROBABILITIES, "none")
    above = runtime.keras().Model(tensor_of(whole, done.plan.spec.endpoint), whole.outputs[0])
    tensor = tf.constant(activations)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        logarithms = tf.math.log(tf.maximum(above(tensor, training=False), 1e-30))
        score = tf.gather(logarithms, labels, axis=1, batch_dims=1) - tf.reduce_mean(logarithms, axis=1)
    found: NDArray[np.floating] = tape.gradient(score, tensor).numpy().sum(axis=(1, 2))
    return found
