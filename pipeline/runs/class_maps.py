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
from pipeline.config import ExtractConfig, FeatureSpec
from pipeline.data import ImageSource
from pipeline.errors import ConfigError
from pipeline.extraction.plan import Done, complete_all, keys_of_all, open_plan
from pipeline.heads import PROBABILITIES
from pipeline.runs.classifier import Classifier
from pipeline.runs.run import FinetuneRun
from pipeline.runs.trained_head import TrainedHead
from pipeline.store.shards import FeatureStore
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
        if classifier.trained is None:
            gradients = [_gradients_of_model(passes[0], activations[0], labels[block])]
        else:
            gradients = _gradients(classifier.trained, activations, labels[block])
        yield from _maps(activations, gradients)


def cached_class_maps(
    trained: TrainedHead, keys: NDArray[np.bytes_], labels: NDArray[np.int64], cache: Path
) -> dict[bytes, Maps]:
    """As `class_maps`, of those pictures whose activations are in the cache; nothing is computed for the others.

    Args:
        trained: The head.
        keys: Image keys, shape [n].
        labels: The class that is asked about, for each picture, shape [n].
        cache: The cache folder.

    Raises:
        ConfigError: If the head has no gradient.
    """
    if any(spec.pooling not in POOLINGS for spec in trained.specs):
        return {}
    stores = [FeatureStore(cache, spec) for spec in _activation_specs(trained.specs)]
    for store in stores:
        store.open()
    there = np.flatnonzero(np.logical_and.reduce([store.has(keys) for store in stores]))
    if not len(there):
        return {}
    activations = [store.read(keys[there]).astype(np.float32) for store in stores]
    if any(part.ndim != 4 for part in activations):
        return {}
    maps = _maps(activations, _gradients(trained, activations, labels[there]))
    return dict(zip(keys[there].tolist(), maps, strict=True))


def cached_shards(specs: Sequence[FeatureSpec], cache: Path) -> list[str]:
    """Names of the shards in which activations of pooled features are cached; none where an endpoint has none."""
    found = [FeatureStore(cache, spec).shard_paths() for spec in _activation_specs(specs)]
    return [path.name for paths in found for path in paths] if all(found) else []


def _activation_specs(specs: Sequence[FeatureSpec]) -> list[FeatureSpec]:
    """What activations of pooled features are, for each endpoint, as extract stores them by default."""
    return [
        replace(spec, endpoint=endpoint, pooling="none", dtype="float16" if spec.weights_seed is None else "float32")
        for spec in specs
        for endpoint in spec.endpoint.split("+")
    ]


def _maps(activations: Sequence[NDArray[np.floating]], gradients: Sequence[NDArray[np.floating]]) -> Iterator[Maps]:
    """The weighted sums of the channels, for each picture one of each endpoint."""
    yield from zip(
        *(np.einsum("nhwc,nc->nhw", *pair) for pair in zip(activations, gradients, strict=True)), strict=True
    )


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
    trained: TrainedHead, activations: Sequence[NDArray[np.floating]], labels: NDArray[np.int64]
) -> list[NDArray[np.floating]]:
    """Gradients [n, c] by each channel of each endpoint."""
    kinds = [spec.pooling for spec in trained.specs for _ in spec.endpoint.split("+")]
    pooled = [
        part.mean(axis=(1, 2)) if kind == "avg" else part.max(axis=(1, 2))
        for part, kind in zip(activations, kinds, strict=True)
    ]
    joined = trained.head.gradients(np.concatenate(pooled, axis=1), labels)
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
