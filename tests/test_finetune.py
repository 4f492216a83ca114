"""Fine-tuning from the cut is fine-tuning, never ends below its start, and can be left and resumed."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import part_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backbones import BACKBONES, Unfrozen, tensor_of
from pipeline.backbones.build import build_network
from pipeline.backbones.network import Network
from pipeline.config import FinetuneConfig, HeadConfig, ImageConfig
from pipeline.data import ArraySource, Dataset, array_key
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError, DataError, RunError, StoppedError, StoreError
from pipeline.extraction.engines.tensorflow import TensorflowEngine
from pipeline.finetuning import Checkpoint, FinetuneModels, State, assemble, drawn_anew, fit
from pipeline.finetuning.examples import DecodedImages, of_epoch
from pipeline.finetuning.fit import _Training
from pipeline.finetuning.models import with_remat
from pipeline.finetuning.steps import preparation, targets_of
from pipeline.heads import Head, make_head, probabilities_of
from pipeline.store.rows import Part, StoredFeatures
from pipeline.training.batches import Batches, batches, predict_logits
from pipeline.util import disk
from pipeline.util.stopping import Stopping

N = 48


@dataclass
class Setting:
    """A small network with random weights, a head fitted on its features, and activations at the cut."""

    network: Network
    features: keras.Model
    unfrozen: Unfrozen
    head: Head
    images: np.ndarray
    labels: np.ndarray
    pooled: np.ndarray
    maps: np.ndarray
    n_classes: int

    def models(self, **more: Any) -> FinetuneModels:
        return assemble(self.features, self.unfrozen, self.head.layers(), self.n_classes, **more)

    def examples(self, inputs: np.ndarray | None = None) -> dict[str, Part]:
        inputs = self.maps if inputs is None else inputs
        return {"train": of(inputs[:32], self.labels[:32]), "val": of(inputs[32:], self.labels[32:])}


@dataclass
class Read:
    """Inputs that a function reads, as images are."""

    n: int
    read: Callable[[np.ndarray], np.ndarray]
    workers: int = 1


def of(inputs: np.ndarray, labels: np.ndarray) -> Part:
    keys = np.array([f"{number:032x}" for number in range(len(labels))], "S32")
    return part_of(inputs, labels, keys)


def setting(
    name: str, blocks: str, n_classes: int = 3, head_name: str = "logreg", size: int = 64, endpoint: str | None = None
) -> Setting:
    keras.utils.set_random_seed(0)
    row = BACKBONES[name]
    network = build_network(row, (size, size))
    features = network.features(endpoint or row.default_endpoint, "avg")
    unfrozen = network.unfreeze(features, blocks)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (N, size, size, 3), np.uint8)
    labels = np.arange(N) % n_classes
    images[labels == 0, : size // 2] //= 4
    head, _ = make_head(HeadConfig(head_name, epochs=2 if head_name.startswith("mlp") else None))
    pooled = np.asarray(features(images))
    keys = np.array([f"{number:032x}" for number in range(N)], "S32")
    part = Part(pooled, labels, keys, np.zeros(N, np.int64))
    head.fit(part, part, n_classes)
    lower = keras.Model(features.inputs[0], tensor_of(features, unfrozen.cut))
    return Setting(network, features, unfrozen, head, images, labels, pooled, np.asarray(lower(images)), n_classes)


@pytest.mark.parametrize(
    ("name", "blocks", "head_name", "n_classes"),
    [
        ("mobilenet025", "block13", "logreg", 2),
        ("mobilenet025", "block13", "mlp8", 3),
        ("densenet121", "conv4,conv5", "logreg", 3),
        ("resnet50", "conv5", "mlp8", 2),
        ("vgg16", "none", "logreg", 2),
    ],
)
def test_the_start_is_the_frozen_network_with_its_head(name: str, blocks: str, head_name: str, n_classes: int) -> None:
    given = setting(name, blocks, n_classes, head_name)
    models = given.models()
    expected = given.head.predict_proba(given.pooled)
    from_cut = probabilities_of(np.asarray(models.trained(given.maps, training=False)))
    np.testing.assert_allclose(from_cut, expected, atol=1e-4)
    served = np.asarray(models.serving()(given.images))
    assert served.shape == (N, n_classes)
    np.testing.assert_allclose(served, expected, atol=1e-4)


class TestWhatIsTrained:
    @pytest.mark.parametrize(
        ("blocks", "cut", "changed"),
        [
            ("block13", "conv_pw_12_relu", {"conv_dw_13", "conv_pw_13"}),
            ("block12,block13", "conv_pw_11_relu", {"conv_dw_12", "conv_pw_12", "conv_dw_13", "conv_pw_13"}),
            ("conv_pw_13", "conv_dw_13_relu", {"conv_pw_13"}),
            ("none", "pooled_0", set()),
        ],
    )
    def test_only_the_blocks_and_the_head_change(self, blocks: str, cut: str, changed: set[str]) -> None:
        given = setting("mobilenet025", blocks)
        assert given.unfrozen.cut == cut
        models = given.models()
        before = {weight.path: weight.numpy() for weight in models.whole.weights}
        # Without validation images the last epoch is kept.
        train = {"train": given.examples()["train"]}
        fit(models, train, FinetuneConfig(blocks, epochs=1, batch_size=8, learning_rate=1e-4))
        differing = {
            weight.path.split("/")[0]
            for weight in models.whole.weights
            if (weight.numpy() != before[weight.path]).any()
        }
        assert differing - {"logits"} == changed, "BatchNormalization stays as it is"

    def test_all_starts_at_the_images(self) -> None:
        given = setting("mobilenet025", "all")
        assert (given.unfrozen.cut, given.unfrozen.from_pixels) == ("pixels", True)
        models = given.models(from_images=True)
        assert models.trained is models.whole
        kinds = {type(layer).__name__ for layer in models.whole.layers if layer.trainable_weights}
        assert kinds == {"Conv2D", "DepthwiseConv2D", "Dense"}
        opened = given.models(from_images=True, train_bn=True)
        kinds = {type(layer).__name__ for layer in opened.whole.layers if layer.trainable_weights}
        assert "BatchNormalization" in kinds

    def test_padding_alone_below_the_blocks_is_not_cached(self) -> None:
        assert setting("densenet121", "conv1", size=32).unfrozen.from_pixels

    def test_a_backbone_cut_short(self) -> None:
        given = setting("vgg16", "block3", size=32, endpoint="block3")
        assert given.network.top_block(given.features) == "block3"
        assert given.unfrozen.cut == "block2_pool"
        models = given.models()
        assert models.whole.get_layer("pooled_0").output.shape == (None, 256)
        assert not any(layer.name.startswith("block4") for layer in models.whole.layers)

    def test_blocks_with_a_gap_are_refused(self) -> None:
        network = build_network(BACKBONES["densenet121"], (32, 32))
        features = network.features("conv5", "avg")
        with pytest.raises(ConfigError, match="leaves out conv4; .* --blocks conv3 trains it and all above"):
            network.unfreeze(features, "conv3,conv5")
        with pytest.raises(ConfigError, match="joins pool3_conv, which is no block"):
            network.unfreeze(features, "pool3_conv,conv4,conv5")
        assert network.unfreeze(features, "conv5,conv4") == network.unfreeze(features, "conv4")

    @pytest.mark.slow
    def test_each_layer_has_a_rate_of_its_own(self) -> None:
        """With plain gradient steps an update is the rate times the gradient; Adam's first is the rate itself."""
        given = setting("densenet121", "conv4", size=32)
        models = given.models()
        config = FinetuneConfig(
            "conv4", epochs=1, batch_size=32, learning_rate=1e-3, backbone_lr_scale=0.5, layer_decay=0.1,
            warm_up=0, schedule="none", weight_decay=0,
        )  # fmt: skip
        before = {weight.path: weight.numpy() for weight in models.whole.weights}
        fit(models, {"train": given.examples()["train"]}, config)
        moved = {
            weight.path.split("/")[0]: float(np.abs(weight.numpy() - before[weight.path]).max())
            for weight in models.whole.weights
            if weight.path.endswith("/kernel")
        }
        assert moved["logits"] == pytest.approx(1e-3, rel=0.1)
        assert moved["conv5_block1_1_conv"] == pytest.approx(0.5e-3, rel=0.1)
        assert moved["conv4_block1_1_conv"] == pytest.approx(0.05e-3, rel=0.1)
        assert moved["conv3_block1_1_conv"] == 0

    def test_weight_decay_is_decoupled_and_of_kernels(self) -> None:
        given = setting("mobilenet025", "none")
        sizes = []
        for decay in (0.0, 5.0):
            models = given.models()
            config = FinetuneConfig("none", epochs=1, batch_size=32, learning_rate=1e-2, warm_up=0, weight_decay=decay)
            fit(models, {"train": given.examples()["train"]}, config)
            sizes.append(models.trained.layers[-1].get_weights())
        start = given.head.layers()[-1].get_weights()[0]
        np.testing.assert_allclose(sizes[1][0] - sizes[0][0], -5.0 * 1e-2 * start, atol=1e-6)
        np.testing.assert_array_equal(sizes[1][1], sizes[0][1])

    def test_cold_head(self) -> None:
        given = setting("mobilenet025", "block13", head_name="mlp8")
        layers = given.head.layers()
        before = {layer.name: layer.get_weights() for layer in layers}
        anew = {layer.name: layer.get_weights() for layer in drawn_anew(layers, 3, prepared=True)}
        assert list(anew) == list(before)
        assert (anew["hidden_1"][0] != before["hidden_1"][0]).all()
        bare = drawn_anew(layers, 3, prepared=False)
        assert [layer.name for layer in bare] == ["hidden_1", "dropout_1", "logits"]
        again = drawn_anew(layers, 3, prepared=True)
        np.testing.assert_array_equal(again[-1].get_weights()[0], anew["logits"][0])


FAMILIES = [
    pytest.param("densenet121", "conv5", marks=pytest.mark.slow),
    pytest.param("resnet50", "conv5", marks=pytest.mark.slow),
    pytest.param("vgg16", "block5", marks=pytest.mark.slow),
    ("mobilenet", "block12"),
]


@pytest.mark.parametrize(("name", "blocks"), FAMILIES)
def test_losses_from_the_cut_are_those_end_to_end(name: str, blocks: str) -> None:
    """The same batches, no dropout: the first 20 steps agree, as nothing below the cut changes.

    The head is not one that fits random features to the last, as float32 has few digits of a loss near 0.
    """
    losses = []
    for whole in (False, True):
        given = setting(name, blocks, head_name="mlp8", size=32)
        models = given.models(from_images=whole)
        inputs = given.images if whole else given.maps
        training = _Training(models, given.examples(inputs), FinetuneConfig(blocks, epochs=9), None)
        found = []
        for step in range(20):
            rows = np.arange(8 * step, 8 * step + 8) % N
            found.append(float(training.stepped.train_on_batch(inputs[rows], given.labels[rows])[0]))
            training.stepped.reset_metrics()
        losses.append(found)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0][0] != losses[0][-1]


class TestEpochs:
    def test_the_best_epoch_is_kept_and_a_bad_rate_changes_nothing(self) -> None:
        given = setting("mobilenet025", "block13")
        examples = given.examples()
        config = FinetuneConfig("block13", epochs=3, batch_size=4, learning_rate=3e-3)
        tuned = fit(given.models(), examples, config)
        scores = [(row["val_accuracy"], -row["val_loss"]) for row in tuned.history]
        assert tuned.best_epoch == int(max(range(len(scores)), key=lambda epoch: scores[epoch]))
        accuracy = (tuned.probabilities["val"].argmax(axis=1) == examples["val"].labels).mean()
        assert accuracy == pytest.approx(max(score[0] for score in scores))

    def test_fine_tuning_learns(self) -> None:
        """A task that random features make hard, and one trained block makes easy."""
        given = setting("densenet121", "conv5", 2)
        part = of(given.maps, given.labels)
        config = FinetuneConfig("conv5", epochs=6, batch_size=8, learning_rate=1e-3, patience=6)
        tuned = fit(given.models(), {"train": part, "val": part}, config)
        assert tuned.best_epoch > 0
        assert tuned.history[tuned.best_epoch]["val_loss"] < 0.7 * tuned.history[0]["val_loss"]

    def test_the_history_has_rates_and_seconds(self) -> None:
        given = setting("mobilenet025", "none")
        config = FinetuneConfig("none", epochs=4, batch_size=8, learning_rate=1e-3, warm_up=0.25, patience=9)
        history = fit(given.models(), given.examples(), config).history
        assert list(history[0]) == list(history[4])
        rates = [row["learning_rate"] for row in history[1:]]
        assert rates[0] == pytest.approx(0.5e-3), "the middle of warm-up, which takes the first epoch"
        assert 1e-3 > rates[1] > rates[2] > rates[3] > 0
        assert all(later["seconds"] > row["seconds"] for row, later in pairwise(history))

    def test_accumulated_gradients_are_those_of_one_larger_step(self) -> None:
        weights = []
        for batch_size, accumulate in ((32, 1), (8, 4)):
            given = setting("mobilenet025", "none")
            models = given.models()
            config = FinetuneConfig(
                "none", epochs=3, batch_size=batch_size, accumulate=accumulate, patience=9, schedule="none", warm_up=0
            )
            tuned = fit(models, {"train": given.examples()["train"]}, config)
            assert len(tuned.history) == 4
            weights.append(models.trained.get_weights())
        for one, other in zip(*weights, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)

    def test_plateau_cuts_the_rate_and_patience_ends_it(self) -> None:
        given = setting("mobilenet025", "none")
        examples = given.examples()
        shuffled = replace(examples["val"], labels=np.roll(examples["val"].labels, 1))
        config = FinetuneConfig(
            "none", epochs=20, batch_size=8, learning_rate=0.05, schedule="plateau", patience=4, warm_up=0
        )
        tuned = fit(given.models(), {"train": examples["train"], "val": shuffled}, config)
        rates = [row["learning_rate"] for row in tuned.history[1:]]
        assert len(tuned.history) < 20
        assert min(rates) == pytest.approx(0.3 * max(rates), rel=1e-5)

    def test_loss_that_is_not_finite(self) -> None:
        given = setting("mobilenet025", "block13")
        broken = of(np.full_like(given.maps, np.nan), given.labels)
        with pytest.raises(RunError, match=r"diverged in epoch 1 \(nan; guessing gives 1.10\)"):
            fit(given.models(), {"train": broken}, FinetuneConfig("block13", epochs=1))

    def test_a_rate_that_diverges(self) -> None:
        given = setting("mobilenet025", "none")
        train = {"train": given.examples()["train"]}
        with pytest.raises(RunError, match="diverged in epoch 1 .*; lower --learning-rate 0.9"):
            fit(given.models(), train, FinetuneConfig("none", epochs=4, batch_size=2, learning_rate=0.9, warm_up=0))

    def test_loss_that_stops_being_finite_keeps_the_best(self) -> None:
        given = setting("mobilenet025", "block13")
        examples = given.examples()
        reads = iter(range(1000))

        def read(rows: np.ndarray) -> np.ndarray:
            return given.maps[rows] * (np.nan if next(reads) >= 6 else 1)

        train = replace(examples["train"], features=Read(32, read))
        config = FinetuneConfig("block13", epochs=5, batch_size=8, learning_rate=1e-3)
        tuned = fit(given.models(), {"train": train, "val": examples["val"]}, config)
        assert any("diverged in epoch 2 (nan" in note for note in tuned.notes)
        assert math.isnan(tuned.history[2]["val_accuracy"])
        assert len(tuned.history) == 3
        assert np.isfinite(tuned.probabilities["val"]).all()

    def test_what_goes_wrong_while_reading_is_not_hidden(self) -> None:
        """TensorFlow makes an error of its own of whatever a reader raises after the first batches."""
        given = setting("mobilenet025", "none")
        reads = iter(range(1000))

        def read(rows: np.ndarray) -> np.ndarray:
            if next(reads) > 7:
                raise DataError("3.png is gone")
            return given.maps[rows]

        config = FinetuneConfig("none", epochs=4, batch_size=4)
        with pytest.raises(DataError, match=r"3\.png is gone"):
            fit(given.models(), {"train": replace(given.examples()["train"], features=Read(32, read))}, config)

    def test_more_accumulated_than_there_is(self) -> None:
        given = setting("mobilenet025", "none")
        with pytest.raises(ConfigError, match="--accumulate 9 is more than the 8 steps"):
            fit(given.models(), given.examples(), FinetuneConfig("none", epochs=2, batch_size=8, accumulate=9))

    def test_warm_up_to_the_end(self) -> None:
        given = setting("mobilenet025", "none")
        config = FinetuneConfig("none", epochs=1, batch_size=32, warm_up=0.99)
        assert len(fit(given.models(), given.examples(), config).history) == 2

    def test_batch_normalisation_of_a_head_stays_as_it_is(self) -> None:
        given = setting("mobilenet025", "none", head_name="bn-mlp8")
        for train_bn in (False, True):
            models = given.models(train_bn=train_bn)
            before = {weight.path: weight.numpy() for weight in models.whole.weights}
            config = FinetuneConfig("none", epochs=1, batch_size=8, train_bn=train_bn)
            fit(models, {"train": given.examples()["train"]}, config)
            moved = any(
                (weight.numpy() != before[weight.path]).any()
                for weight in models.whole.weights
                if "batch_normalization/" in weight.path
            )
            assert moved is train_bn
        bare = drawn_anew(given.head.layers(), 0, prepared=False)
        assert [layer.name for layer in bare] == ["batch_normalization", "hidden_1", "dropout_1", "logits"]
        assert [float(weight.mean()) for weight in bare[0].get_weights()] == [1, 0, 0, 1]

    def test_out_of_memory_is_said(self) -> None:
        given = setting("mobilenet025", "none")

        def read(rows: np.ndarray) -> np.ndarray:
            raise MemoryError

        broken = {"train": replace(given.examples()["train"], features=Read(32, read))}
        with pytest.raises(RunError, match=r"--batch-size 16 --accumulate 2 .*, --remat, or fewer --blocks"):
            fit(given.models(), broken, FinetuneConfig("none", epochs=1))


class TestEndToEnd:
    @staticmethod
    def pictures(n: int, augment: str | None = "flip") -> tuple[DecodedImages, np.ndarray]:
        """Images held in memory, no two alike, as a data set of one class gives them."""
        images = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)
        keys = np.array([array_key(image) for image in images], "S32")
        dataset = Dataset("drawn", keys, np.zeros(n, np.int64), np.array(["train"] * n), ("",) * n, ("a",))
        of_augment = Augment.parse(augment) if augment else None
        source = ArraySource([(images, 1.0)])
        return DecodedImages(dataset, source, ImageConfig((64, 64)), np.arange(n), of_augment), images

    def test_every_epoch_sees_another_version(self) -> None:
        """Half of the images are mirrored in each epoch, and each of them in every second one."""
        decoded, images = self.pictures(40)
        part = part_of(np.zeros((40, 1)), np.zeros(40, np.int64))
        part = replace(part, features=decoded)
        np.testing.assert_array_equal(part.load(np.arange(40)), images)
        mirrored = []
        for epoch in (1, 2, 3):
            seen = of_epoch(part, epoch).load(np.arange(40))
            straight, turned = ((seen == other).all(axis=(1, 2, 3)) for other in (images, images[:, :, ::-1]))
            assert (straight ^ turned).all()
            mirrored.append(turned)
        assert 10 <= mirrored[0].sum() <= 30
        np.testing.assert_array_equal(mirrored[0], ~mirrored[1])
        np.testing.assert_array_equal(mirrored[0], mirrored[2])
        cropped = replace(decoded, augment=Augment.parse("crop"))
        first, again, second = (replace(cropped, epoch=epoch).read(np.arange(40)) for epoch in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != second).any(axis=(1, 2, 3)).sum() > 35  # of small pictures two crops may be the same

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_mixup_mixes_labels_as_it_mixes_images(self, n_classes: int) -> None:
        """Images of one brightness a class: how bright a mixed one is says which share of its label it has."""
        config = FinetuneConfig("all", mixup=1.0)
        labels = np.arange(60) % n_classes
        images = np.broadcast_to((100 * labels)[:, None, None, None], (60, 4, 4, 3)).astype(np.uint8)
        prepare = preparation(config, None, 1)
        assert prepare is not None
        joint, shares = prepare(0, images, targets_of(config, labels, n_classes))
        assert joint.dtype == np.uint8
        brightness = joint.mean(axis=(1, 2, 3))
        expected = shares[:, 0] if n_classes == 2 else shares @ np.arange(n_classes)
        np.testing.assert_allclose(brightness, 100 * expected, atol=0.6)
        assert ((expected > 0.1) & (expected < 0.9)).any()
        same, other = prepare(0, images, targets_of(config, labels, n_classes)), preparation(config, None, 2)
        np.testing.assert_array_equal(same[0], joint)
        assert other is not None and (other(0, images, shares)[0] != joint).any()

    def test_nothing_is_prepared_without_need(self) -> None:
        assert preparation(FinetuneConfig("all"), None, 1) is None

    @pytest.mark.parametrize("n_classes", [pytest.param(2, marks=pytest.mark.slow), 3])
    def test_the_engine_changes_no_loss(self, n_classes: int) -> None:
        """New versions in each epoch, mixed, by the engine to the cut, against the same from end to end."""
        config = FinetuneConfig(
            "block12", epochs=2, batch_size=8, augment="flip,crop", mixup=0.2, label_smoothing=0.1, learning_rate=1e-3
        )
        losses = []
        for whole in (False, True):
            given = setting("mobilenet025", "block12", n_classes)
            models = given.models(from_images=whole)
            part = replace(given.examples()["train"], features=self.pictures(32, "flip,crop")[0])
            lower = keras.Model(given.features.inputs[0], tensor_of(given.features, given.unfrozen.cut))
            engine = None if whole else TensorflowEngine(lower, 8)
            tuned = fit(models, {"train": part}, config, engine=engine)
            assert "accuracy" not in tuned.history[1]
            losses.append([row["loss"] for row in tuned.history[1:]])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-4)

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("mobilenet025", 32),
            *(pytest.param(name, 64, marks=pytest.mark.slow) for name in ("densenet121", "efficientnetb0")),
        ],
    )
    def test_rematerialised_gradients_are_the_same(self, name: str, size: int) -> None:
        given = setting(name, "all", size=size)
        models = given.models(from_images=True)
        segmented = with_remat(models.trained)
        assert len(segmented.layers) > 10
        assert {id(weight) for weight in segmented.trainable_weights} == {
            id(weight) for weight in models.trained.trainable_weights
        }
        import tensorflow as tf

        def gradients(model: keras.Model, training: bool) -> list[np.ndarray]:
            @tf.function
            def run() -> Any:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(given.images[:4], training=training)))
                return tape.gradient(loss, models.trained.trainable_weights)

            return [np.asarray(gradient) for gradient in run()]

        random = name.startswith("efficient")  # drops whole blocks in training; not in inference
        for one, other in zip(gradients(models.trained, not random), gradients(segmented, not random), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(one).max())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_the_weights_is_kept_and_training_goes_on_without_it(accumulate: int) -> None:
    config = FinetuneConfig("block13", epochs=2, batch_size=8, learning_rate=1e-3, accumulate=accumulate)
    after: dict[float, list[list[np.ndarray]]] = {}
    kept = []
    for ema in (0.0, 0.8):
        given = setting("mobilenet025", "block13")
        examples = {"train": given.examples()["train"]}  # without val any epoch is better than the one before
        training = _Training(given.models(), examples, replace(config, ema=ema), None)
        training.start()
        steps = after[ema] = []
        for _ in range(2):
            training.epoch(Stopping(), lambda _: steps.append(training.model.get_weights()))  # noqa: B023
        kept.append(training.best)
    for one, other in zip(after[0.0], after[0.8], strict=True):
        for weights, same in zip(one, other, strict=True):
            np.testing.assert_allclose(weights, same, atol=1e-6)
    first = accumulate - 1  # until the first update there is nothing to average
    expected = after[0.0][first]
    for weights in after[0.0][first + 1 :]:
        expected = [0.8 * average + 0.2 * weight for average, weight in zip(expected, weights, strict=True)]
    for average, same in zip(kept[1], expected, strict=True):
        np.testing.assert_allclose(average, same, atol=1e-6)
    assert any(np.abs(average - last).max() > 1e-4 for average, last in zip(kept[1], kept[0], strict=True))


def keep_in(checkpoint: Checkpoint, after: Callable[[int], None] = lambda _: None) -> Any:
    """What `fit` calls after each epoch; `after` then gets the number of rows of the history."""

    def keeping(arrays: Any, history: Any) -> None:
        checkpoint.save(State(arrays, list(history), "head"))
        after(len(history))

    return keeping


class TestResume:
    CONFIG = FinetuneConfig("block13", epochs=4, batch_size=8, learning_rate=1e-3, patience=9)

    @pytest.mark.parametrize(
        ("schedule", "ema"),
        [*(pytest.param(name, 0.0, marks=pytest.mark.slow) for name in ("cosine", "plateau")), ("cosine", 0.9)],
    )
    def test_the_same_weights_as_undisturbed(self, schedule: str, ema: float, tmp_path: Path) -> None:
        config = replace(self.CONFIG, schedule=schedule, ema=ema)
        given = setting("mobilenet025", "block13", head_name="mlp8")
        models = given.models()
        history = fit(models, given.examples(), config).history
        expected = models.trained.get_weights()
        checkpoint = Checkpoint.of(tmp_path, {"what": schedule})
        assert checkpoint.load() is None

        def killed(n_rows: int) -> None:
            if n_rows == 3:
                raise KeyboardInterrupt

        given = setting("mobilenet025", "block13", head_name="mlp8")
        with pytest.raises(KeyboardInterrupt):
            fit(given.models(), given.examples(), config, keep_in(checkpoint, killed))

        keras.utils.set_random_seed(77)
        again = setting("mobilenet025", "block13", head_name="mlp8")
        models = again.models()
        state = checkpoint.load()
        assert state is not None and state.head_run == "head"
        tuned = fit(models, again.examples(), config, keep_in(checkpoint), state)
        assert tuned.resumed == 2
        for one, other in zip(models.trained.get_weights(), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        for row, other in zip(tuned.history, history, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5, nan_ok=True)
            assert row["learning_rate"] == pytest.approx(other["learning_rate"], nan_ok=True)
        checkpoint.remove()
        assert not any(tmp_path.iterdir())

    @pytest.mark.slow
    def test_versions_of_images_go_on(self, tmp_path: Path) -> None:
        """An epoch's versions and mixtures depend on its number alone."""
        config = FinetuneConfig("block12", epochs=2, batch_size=8, augment="flip,crop", mixup=0.4, patience=9)
        losses = []
        for resumed in (False, True):
            given = setting("mobilenet025", "block12")
            features = TestEndToEnd.pictures(32, "flip,crop")[0]
            checkpoint = Checkpoint(tmp_path / str(resumed))
            if resumed:
                models, examples = given.models(from_images=True), given.examples(given.images)
                examples["train"] = replace(examples["train"], features=features)
                first = _Training(models, examples, config, keep_in(checkpoint))
                first.start()
                first.epoch(Stopping(), lambda _: None)
                first.save()
                given = setting("mobilenet025", "block12")
            models, examples = given.models(from_images=True), given.examples(given.images)
            examples["train"] = replace(examples["train"], features=features)
            tuned = fit(models, examples, config, None, checkpoint.load())
            losses.append([row["loss"] for row in tuned.history[1:]])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    @pytest.mark.parametrize("kept", [True, False])
    def test_ctrl_c_says_what_is_kept(self, kept: bool, tmp_path: Path) -> None:
        given = setting("mobilenet025", "block13")
        examples = given.examples()
        reads = iter(range(1000))

        def read(rows: np.ndarray) -> np.ndarray:
            if next(reads) == 14:
                signal.raise_signal(signal.SIGINT)
            return given.maps[rows]

        checkpoint = Checkpoint(tmp_path / "one")
        parts = {"train": replace(examples["train"], features=Read(32, read)), "val": examples["val"]}
        message = "of 50 epochs are kept. The same command with --resume" if kept else "0 of 50 .* begins again"
        with pytest.raises(StoppedError, match=message):
            fit(given.models(), parts, replace(self.CONFIG, epochs=50), keep_in(checkpoint) if kept else None)
        state = checkpoint.load()
        assert state is not None and 2 <= len(state.history) < 50 if kept else state is None

    def test_a_full_disk_ends_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        def full(*_: Any) -> None:
            raise StoreError("No space is left")

        given = setting("mobilenet025", "none")
        with caplog.at_level("WARNING", logger="tlpipe"):
            tuned = fit(given.models(), given.examples(), replace(self.CONFIG, blocks="none"), full)
        assert len(tuned.history) == 5
        assert [record.message for record in caplog.records] == ["No more checkpoints are written: No space is left"]

    @pytest.mark.parametrize("what", ["make", "write"])
    def test_a_disk_that_is_full_from_the_start(
        self, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(change: str, path: Path) -> None:
            if change == what:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(disk, "announce", full)
        with pytest.raises(StoreError, match="No space is left"), Checkpoint(tmp_path / "one").claimed():
            pass

    @pytest.mark.parametrize("how", ["torn", "other", "empty", "text", "path"])
    def test_damaged_checkpoints_are_refused(self, how: str, tmp_path: Path) -> None:
        given = setting("mobilenet025", "none")
        config = replace(self.CONFIG, blocks="none", epochs=1)
        checkpoint = Checkpoint(tmp_path / "one")
        fit(given.models(), given.examples(), config, keep_in(checkpoint))
        state = checkpoint.load()
        assert state is not None
        file = checkpoint.folder / "state.npz"
        if how == "torn":
            file.write_bytes(file.read_bytes()[:-200])
        elif how == "empty":
            checkpoint.save(replace(state, history=[]))
        elif how == "text":
            checkpoint.save(replace(state, history=[{"epoch": "0"}]))
        elif how == "path":
            checkpoint.save(replace(state, head_run="../elsewhere"))
        other = setting("mobilenet025", "none", n_classes=2) if how == "other" else given
        with pytest.raises(RunError, match="leave --resume out"):
            fit(other.models(), other.examples(), config, None, checkpoint.load())


class TestBatches:
    def test_keras_reads_them_in_threads_of_its_own(self) -> None:
        """With one thread it would read through tf.data, whose tuning may take as long to end as the pass took."""
        part = part_of(np.arange(12, dtype=np.float32)[:, None], np.zeros(12, np.int64))
        with batches(part, part.labels, 5, None) as (data, order):
            assert data.workers >= 2
            assert order.tolist() == list(range(12))
            model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(2.0)])
            np.testing.assert_array_equal(model.predict(data, verbose=0)[:, 0], 2 * np.arange(12))

    @staticmethod
    def examples(n: int, sizes: list[int] | None, reads: list[int] | None = None) -> Part:
        values = np.arange(n, dtype=np.float16)[:, None]

        class OnDisk(StoredFeatures):
            def read(self, rows: np.ndarray) -> np.ndarray:
                if reads is not None:
                    reads.append(len(rows))
                return values[rows]

            def blocks(self, generator: np.random.Generator | None) -> list[np.ndarray]:
                order = generator.permutation(n) if generator else np.arange(n)[::-1]
                return np.split(order, np.cumsum(sizes)[:-1])

        return part_of(values if sizes is None else OnDisk((), (), 0), np.arange(n))

    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), batch_size=st.integers(1, 12), seed=st.integers(0, 3)
    )
    @settings(max_examples=60, deadline=None)
    def test_all_rows_once_with_their_labels(self, sizes: list[int], batch_size: int, seed: int) -> None:
        n = sum(sizes)
        for blocks in (sizes, None):
            found = Batches(self.examples(n, blocks), np.arange(n), batch_size, np.random.default_rng(seed))
            parts = [found[number] for number in range(len(found))]
            inputs, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
            assert inputs.dtype == np.float32
            np.testing.assert_array_equal(inputs[:, 0], labels)
            np.testing.assert_array_equal(labels, found.order)
            assert sorted(labels.tolist()) == list(range(n))
            assert {len(part[1]) for part in parts[:-1]} <= {batch_size}

    def test_full_batches_repeat_some_rows(self) -> None:
        found = Batches(self.examples(20, [7, 7, 6]), np.arange(20), 8, np.random.default_rng(0), full=True)
        parts = [found[number] for number in range(len(found))]
        assert [len(part[1]) for part in parts] == [8, 8, 8]
        assert set(np.concatenate([part[1] for part in parts]).tolist()) == set(range(20))
        for inputs, labels in parts:
            np.testing.assert_array_equal(inputs[:, 0], labels)

    def test_a_block_is_read_once(self) -> None:
        reads: list[int] = []
        found = Batches(self.examples(20, [7, 7, 6], reads), np.arange(20), 3, np.random.default_rng(0))
        for number in range(len(found)):
            found[number]
        assert reads == [7, 7, 6]

    def test_predictions_stand_in_the_order_of_the_rows(self) -> None:
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
        found = predict_logits(model, self.examples(20, [7, 7, 6]), 4)
        np.testing.assert_array_equal(found[:, 0], 2 * np.arange(20))


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "--epochs is 0; give 1 to 100,000"),
            ({"epochs": 10**20}, "give 1 to 100,000"),
            ({"layer_decay": 0}, "--layer-decay is 0"),
            ({"backbone_lr_scale": 2}, "--backbone-lr-scale is 2"),
            ({"warm_up": 1}, "--warm-up is 1"),
            ({"schedule": "cosin"}, "Did you mean cosine"),
            ({"mixup": -1}, "--mixup is -1"),
            ({"accumulate": 0}, "--accumulate is 0"),
            ({"augment": "flop"}, "Did you mean flip"),
            ({"augment": "flip", "views": 2}, "repeat the mirror image"),
            ({"weights": "imagenet", "blocks": "all"}, "it can be random"),
            ({"weights": "random"}, "needs --blocks all"),
            ({"remat": True, "train_bn": True}, "--remat with --train-bn"),
        ],
    )
    def test_illegal_values(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            FinetuneConfig(**options)


def test_served_model_is_a_plain_keras_file(tmp_path: Path) -> None:
    given = setting("resnet50", "conv5", 2, size=32)
    served = given.models().serving()
    served.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.inputs[0].dtype == "uint8"
    np.testing.assert_allclose(loaded(given.images), served(given.images), atol=1e-6)


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    yield
    keras.backend.clear_session()
