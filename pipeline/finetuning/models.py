"""One set of layers, seen as models: a head on a backbone, with the layers above the cut open for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import Unfrozen, apply, cuts, nodes, tensor_of
from pipeline.errors import RunError
from pipeline.heads import n_logits, probability_layer
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class FinetuneModels:
    """One set of layers, seen as two models.

    Attributes:
        trained: From what is read to logits: from activations at the cut, or from uint8 images.
        whole: From uint8 images [n, height, width, 3] to logits.
        below_logits: The tensor that the last layer of `whole` reads.
        n_classes: Number of classes.
        depths: Of each layer of the backbone that is trained, the number of blocks above its own.
    """

    trained: keras.Model
    whole: keras.Model
    below_logits: Any
    n_classes: int
    depths: dict[str, int]

    def serving(self) -> keras.Model:
        """The model from uint8 images to probabilities [n, classes], with the weights as they are now."""
        outputs = probability_layer(self.whole.layers[-1], self.n_classes, self.below_logits)
        return runtime.keras().Model(self.whole.inputs[0], outputs, name="classifier")

    def trainable_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(math.prod(weight.shape) for weight in self.trained.trainable_weights)


def assemble(
    features: keras.Model,
    unfrozen: Unfrozen,
    head: Sequence[keras.Layer],
    n_classes: int,
    *,
    train_bn: bool = False,
    from_images: bool = False,
) -> FinetuneModels:
    """Put a head on a backbone, and open the layers above the cut.

    BatchNormalization stays in inference mode, its scale and shift included, unless it is trained: statistics of small
    batches would drift from what the layers above were trained with.

    Args:
        features: From uint8 images to features.
        unfrozen: The cut, and the layers that may be trained.
        head: Built layers, from features to logits.
        n_classes: Number of classes.
        train_bn: Whether BatchNormalization above the cut is trained, the head's included.
        from_images: Whether the trained model starts at the images; else at the cut.

    Raises:
        RunError: If the head is one of other classes.
    """
    keras = runtime.keras()
    logits = features.outputs[0]
    for layer in head:
        below, logits = logits, layer(logits)
    if logits.shape[-1] != n_logits(n_classes):
        raise RunError(f"The head gives {logits.shape[-1]} logits, {n_classes} classes need {n_logits(n_classes)}")
    for layer in features.layers:
        layer.trainable = layer.name in unfrozen.depths
    for layer in head:
        layer.trainable = True
    if not train_bn:
        for layer in [*features.layers, *head]:
            for inner in layer._flatten_layers():  # some blocks are layers that hold others
                if isinstance(inner, keras.layers.BatchNormalization):
                    inner.trainable = False
    whole = keras.Model(features.inputs[0], logits)
    trained = whole if from_images else keras.Model(tensor_of(features, unfrozen.cut), logits)
    return FinetuneModels(trained, whole, below, n_classes, unfrozen.depths)


def drawn_anew(head: Sequence[keras.Layer], seed: int, *, prepared: bool) -> list[keras.Layer]:
    """A head whose weights are drawn as Keras draws them.

    Args:
        head: Built layers, from features to logits.
        seed: Of the weights.
        prepared: Whether what the head does to its features first is kept; it was fitted on features of the backbone as
            it was, and fits no backbone that starts from random weights.
    """
    keras = runtime.keras()
    drawn = (keras.layers.Dense, keras.layers.Dropout, keras.layers.BatchNormalization)
    kept = [layer for layer in head if prepared or isinstance(layer, drawn)]
    for number, layer in enumerate(kept):
        if isinstance(layer, keras.layers.BatchNormalization) and not prepared:
            one, zero = np.ones(layer.gamma.shape, np.float32), np.zeros(layer.gamma.shape, np.float32)
            layer.set_weights([one, zero, zero, one])
        if isinstance(layer, keras.layers.Dense):
            draw = keras.initializers.GlorotUniform(seed + number)
            layer.set_weights([np.asarray(draw(layer.kernel.shape)), np.zeros(layer.bias.shape, np.float32)])
    return kept


def with_remat(model: keras.Model) -> keras.Model:
    """The same layers in segments, whose inner activations are computed again in the backward pass instead of held.

    Between two cuts a network holds nothing but one tensor. Of n layers, segments of the root of n hold least (Chen et
    al. 2016, arXiv:1604.06174). A segment that draws random numbers would draw others the second time, and is left as
    it is.
    """
    layers = runtime.keras().layers

    class Segment(layers.Layer):  # type: ignore[misc, name-defined]
        """Keras can't rematerialise a call with keywords, which it makes itself of a model."""

        def __init__(self, inner: keras.Model) -> None:
            super().__init__()
            self.inner = inner

        def call(self, inputs: Any) -> Any:
            # Nothing inside depends on the mode: BatchNormalization is frozen, and nothing is drawn.
            return self.inner(inputs, training=False)

    order = nodes(model)
    length = math.isqrt(len(order))
    positions = {node.name: position for position, node in enumerate(order)}
    bounds, last = [model.inputs[0]], 0
    for name in cuts(model):
        if positions[name] >= last + length:
            bounds.append(tensor_of(model, name))
            last = positions[name]
    tensor = start = runtime.keras().Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype)
    for below, above in zip(bounds, [*bounds[1:], model.outputs[0]], strict=True):
        inner = runtime.keras().Model(below, above)
        if any(getattr(layer, "seed_generator", None) for layer in inner._flatten_layers()):
            tensor = apply(inner, tensor)
            continue
        with runtime.keras().RematScope(mode="full"):
            segment = Segment(inner)
        tensor = segment(tensor)
    return runtime.keras().Model(start, tensor)
