"""Fine-tuning DenseNet121's conv5 at 224 px from cached activations, against plain Keras from the images to the end.

Prints the ratio of an epoch's seconds, the same where every epoch sees new versions of the images, what the activations
cost beside pooled features on the same engine, and how far the losses of the first 20 steps are apart.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from common import finish, small_images, small_set, verdict

from pipeline import commands
from pipeline.backbones import BACKBONES, tensor_of
from pipeline.backbones.build import build_network
from pipeline.config import ExtractConfig, FinetuneConfig, ImageConfig
from pipeline.data import ArraySource, Dataset, array_key
from pipeline.data.augment import Augment
from pipeline.extraction.engines import choose, open_engine
from pipeline.finetuning import assemble, fit
from pipeline.finetuning.examples import DecodedImages
from pipeline.finetuning.fit import _Training
from pipeline.store.rows import Part
from pipeline.training.batches import batches

N, BATCH, STEPS, N_EXTRACTED = 320, 32, 20, 1000


def examples(inputs: np.ndarray, labels: np.ndarray) -> dict[str, Part]:
    return {"train": Part(inputs, labels, np.zeros(len(labels), "S32"), np.zeros(len(labels), np.int64))}


def network() -> tuple[keras.Model, keras.Model, list[keras.Layer]]:
    """Features, and a head of one layer."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(10, name="logits")
    dense.build((None, 1024))
    built = build_network(BACKBONES["densenet121"], (224, 224))
    return built, built.features("conv5", "avg"), [dense]


class Seconds(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.last = time.perf_counter() - self.start


def seconds_of_epochs(images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """An epoch from the cut, and the same of plain Keras with the lower layers frozen; the second of two each."""
    built, features, head = network()
    unfrozen = built.unfreeze(features, "conv5")
    models = assemble(features, unfrozen, head, 10)
    lower = keras.Model(features.inputs[0], tensor_of(features, unfrozen.cut))
    maps = lower.predict(images, batch_size=BATCH, verbose=0).astype(np.float16)
    config = FinetuneConfig("conv5", epochs=2, batch_size=BATCH)
    ours = fit(models, examples(maps, labels), config).history[-1]["epoch_seconds"]
    models.whole.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    clock = Seconds()
    # Given arrays, Keras would read through tf.data, whose tuning may end long after a short epoch.
    with batches(examples(images, labels)["train"], labels, BATCH, np.random.default_rng(0)) as (data, _):
        models.whole.fit(data, epochs=2, verbose=0, callbacks=[clock])
    return ours, clock.last


def seconds_of_new_versions(images: np.ndarray, labels: np.ndarray, folder: Path) -> tuple[float, float]:
    """An epoch of --augment flip,crop by the engine to the cut, and with Keras running the frozen layers in each step."""
    keys = np.array([array_key(image) for image in images], "S32")
    names = ("",) * len(images)
    dataset = Dataset("drawn", keys, labels, np.array(["train"] * len(images)), names, tuple("0123456789"))
    source, config = (
        ArraySource([(images, 1.0)]),
        FinetuneConfig("conv5", epochs=2, batch_size=BATCH, augment="flip,crop"),
    )
    read = DecodedImages(dataset, source, ImageConfig((224, 224)), np.arange(len(images)), Augment.parse("flip,crop"))
    part = {"train": Part(read, labels, keys, np.zeros(len(labels), np.int64))}
    found = []
    for whole in (False, True):
        built, features, head = network()
        unfrozen = built.unfreeze(features, "conv5")
        engine = None
        if not whole:
            engine = open_engine(choose("auto", "auto"), lambda _, built=built: built, unfrozen.cut, "none", folder)
        models = assemble(features, unfrozen, head, 10, from_images=whole)
        found.append(fit(models, part, config, engine=engine).history[-1]["epoch_seconds"])
    return found[0], found[1]


def first_losses(images: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    """Losses of the first steps, on the same batches: "images", or activations in "float32" or "float16"."""
    built, features, head = network()
    unfrozen = built.unfreeze(features, "conv5")
    models = assemble(features, unfrozen, head, 10, from_images=kind == "images")
    inputs = images
    if kind != "images":
        lower = keras.Model(features.inputs[0], tensor_of(features, unfrozen.cut))
        inputs = lower.predict(images, batch_size=BATCH, verbose=0).astype(kind).astype(np.float32)
    training = _Training(models, examples(inputs, labels), FinetuneConfig("conv5", epochs=2, batch_size=BATCH), None)
    losses = []
    for step in range(STEPS):
        rows = np.arange(BATCH * step, BATCH * (step + 1)) % len(labels)
        losses.append(float(training.stepped.train_on_batch(inputs[rows], labels[rows])[0]))
        training.stepped.reset_metrics()
    return np.array(losses)


def main() -> None:
    images = np.repeat(np.repeat(small_images(N), 7, axis=1), 7, axis=2)
    labels = np.arange(N) % 10
    ours, plain = seconds_of_epochs(images, labels)
    text = f"epoch of {N} images: {ours:.2f} s from the cut, {plain:.2f} s end to end, {plain / ours:.1f} times"
    verdict(f"{text} (at least 6)", plain / ours >= 6)

    with tempfile.TemporaryDirectory() as folder:
        ours, plain = seconds_of_new_versions(images, labels, Path(folder) / "graph")
        text = f"epoch of new versions: {ours:.2f} s by the engine, {plain:.2f} s by Keras, {plain / ours:.1f} times"
        verdict(f"{text} (at least 2)", plain / ours >= 2)

        data = small_set(Path(folder) / "small.npz", N_EXTRACTED)
        config = ExtractConfig(str(data), weights="random")
        pooled = commands.extract(config, Path(folder) / "cache").seconds
        cut = ExtractConfig(str(data), weights="random", endpoint="pool4_pool", pooling="none")
        maps = commands.extract(cut, Path(folder) / "cache").seconds
        ratio = (maps["read"] + maps["compute"]) / (pooled["read"] + pooled["compute"])
        verdict(
            f"activations at the cut: {ratio:.2f} of the time of pooled features (at most 1.1), and "
            f"{maps['write']:.1f} s to write {N_EXTRACTED} of them",
            ratio <= 1.1,
        )

    expected = first_losses(images, labels, "images")
    for kind, limit in (("float32", 1e-4), ("float16", 1e-2)):
        difference = float(np.max(np.abs(first_losses(images, labels, kind) / expected - 1)))
        verdict(
            f"losses of {STEPS} steps from activations in {kind}: at most {difference:.1e} apart, relative "
            f"(at most {limit:g})",
            difference <= limit,
        )
    finish()


if __name__ == "__main__":
    main()
