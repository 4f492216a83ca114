"""The whole of a run as one model, from images to probabilities, and what a program must know to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.backbones import OnnxGraph
from pipeline.evaluation.calibration import LEAST
from pipeline.extraction.plan import Plan
from pipeline.heads import probability_layer
from pipeline.runs.classifier import Classifier
from pipeline.runs.formats import Joined
from pipeline.store.records import now
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras


def serving(classifier: Classifier, plan: Plan) -> keras.Model | Joined:
    """The whole of a run as one model."""
    network = plan.pretrained.network()
    features = network.features(plan.spec.endpoint, plan.spec.pooling)
    if classifier.trained is None:
        return features  # of a fine-tuned model, the probabilities
    trained = classifier.trained
    *below, logits = trained.head.layers(final=True)
    n_classes, keras = len(classifier.class_names), runtime.keras()

    def classify(tensor: Any, temperature: float) -> Any:
        for layer in below:
            tensor = layer(tensor)
        return probability_layer(logits, n_classes, tensor, temperature)

    if isinstance(features, OnnxGraph):
        start = keras.Input((trained.head.n_features,), name="features")
        return Joined(features, keras.Model(start, classify(start, trained.temperature), name="classifier"))
    if not is_mirrored(plan):
        return keras.Model(features.inputs[0], classify(features.outputs[0], trained.temperature), name="classifier")
    # The mean over an image and its mirror image, as `tlpipe predict` takes it, at the temperature of the mean.
    single = keras.Model(features.inputs[0], classify(features.outputs[0], 1.0), name="single")
    image = keras.Input(features.inputs[0].shape[1:], dtype="uint8", name="image")
    both = keras.layers.Average(name="mean")([single(image), single(keras.ops.flip(image, axis=2))])
    if trained.temperature != 1:
        logarithm = keras.ops.log(keras.ops.maximum(both, LEAST))
        both = keras.ops.softmax(logarithm / trained.temperature)
    return keras.Model(image, both, name="classifier")


def is_mirrored(plan: Plan) -> bool:
    """Whether probabilities are means over the image and its mirror image alone."""
    return plan.views == 1 and str(plan.augment) == "flip"


def metadata_of(classifier: Classifier, plan: Plan) -> dict[str, Any]:
    """What a program needs to use the file, and where it comes from."""
    run, spec = classifier.run, plan.spec
    height, width = spec.image_size
    accuracies = {split: found["accuracy"] for split, found in run.metrics.items() if found["n"]}
    return {
        "class_names": list(classifier.class_names),
        "input": f"uint8 RGB [n, {height}, {width}, 3]; normalisation is inside",
        "output": f"probabilities, float32 [n, {len(classifier.class_names)}], in the order of class_names",
        "image_size": [height, width],
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "resized_by": "pillow, after JPEGs at least twice as large as needed were shrunk by the decoder (Image.draft)",
        "run": run.id,
        "stage": run.stage,
        "head": run.head,
        "backbone": run.specs[0].backbone,
        "weights_digest": run.specs[0].weights_digest,
        "dataset": run.dataset,
        "accuracy": accuracies,
        "trained": run.created,
        "exported": now(),
        "versions": runtime.versions(),
    }
