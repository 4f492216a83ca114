"""Fine-tuning from the cut is fine-tuning, and never ends below its start."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import part_of

from pipeline.backbones import BACKBONES, tensor_of
from pipeline.backbones.network import build_network
from pipeline.errors import RunError
from pipeline.finetune import FinetuneConfig, assemble, fit
from pipeline.heads import HeadConfig, make_head, probabilities_of


def setting(name: str, blocks: str, n_classes: int, head_name: str = "logreg", size: int = 64):  # type: ignore[no-untyped-def]
    """A small network with random weights, a head fitted on its features, and activations at the cut."""
    keras.utils.set_random_seed(0)
    row = BACKBONES[name]
    network = build_network(row, (size, size))
    features = network.features(row.default_endpoint, "avg")
    unfrozen = network.unfreeze(features, blocks)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (48, size, size, 3), np.uint8)
    labels = np.arange(48) % n_classes
    images[labels == 0, : size // 2] //= 4
    head, _ = make_head(HeadConfig(head_name, epochs=2 if head_name.startswith("mlp") else None))
    pooled = part_of(np.asarray(features(images)), labels)
    head.fit(pooled, pooled, n_classes)
    lower = keras.Model(features.inputs[0], tensor_of(features, unfrozen.cut))
    maps = part_of(np.asarray(lower(images)), labels)
    return features, unfrozen, head, images, pooled, maps


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("head_name", ["logreg", "mlp8"])
@pytest.mark.parametrize(
    ("name", "blocks"),
    [("mobilenet025", "block13"), ("densenet121", "conv5"), ("resnet50", "conv5"), ("vgg16", "block5")],
)
def test_the_start_is_the_frozen_network_with_its_head(name: str, blocks: str, head_name: str, n_classes: int) -> None:
    features, unfrozen, head, images, pooled, maps = setting(name, blocks, n_classes, head_name)
    models = assemble(features, unfrozen, head, n_classes)
    expected = head.predict_proba(pooled.features)
    from_cut = probabilities_of(np.asarray(models.upper(maps.features, training=False)))
    np.testing.assert_allclose(from_cut, expected, atol=1e-4)
    served = np.asarray(models.serving()(images))
    assert served.shape == (48, n_classes)
    np.testing.assert_allclose(served, expected, atol=1e-4)


def test_losses_from_the_cut_are_those_end_to_end() -> None:
    """The same batches, no dropout: the first steps agree, as nothing below the cut changes."""
    losses = []
    for whole in (False, True):
        features, unfrozen, head, images, _, maps = setting("mobilenet025", "block12", 3)
        models = assemble(features, unfrozen, head, 3)
        model = models.whole if whole else models.upper
        inputs = images if whole else maps.features
        model.compile(keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses.append(
            [float(model.train_on_batch(inputs[at : at + 8], maps.labels[at : at + 8])) for at in range(0, 48, 8)]
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0][0] != losses[0][-1]


def test_only_the_blocks_and_the_head_change() -> None:
    features, unfrozen, head, _, _, maps = setting("mobilenet025", "block13", 3)
    models = assemble(features, unfrozen, head, 3)
    before = {weight.path: weight.numpy() for weight in features.weights}
    train = part_of(maps.features[:32], maps.labels[:32])
    fit(models, {"train": train}, FinetuneConfig("block13", epochs=1, batch_size=8, learning_rate=1e-3))
    changed = {
        weight.path.split("/")[0] for weight in features.weights if (weight.numpy() != before[weight.path]).any()
    }
    assert changed == {"conv_dw_13", "conv_pw_13"}, "BatchNormalization stays as it is"


def test_the_best_epoch_is_kept_and_a_bad_rate_changes_nothing() -> None:
    features, unfrozen, head, _, _, maps = setting("mobilenet025", "block13", 3)
    models = assemble(features, unfrozen, head, 3)
    train, val = (part_of(maps.features[a:b], maps.labels[a:b]) for a, b in ((0, 32), (32, 48)))
    tuned = fit(
        models, {"train": train, "val": val}, FinetuneConfig("block13", epochs=3, batch_size=4, learning_rate=0.9)
    )
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in tuned.history]
    assert tuned.best_epoch == int(max(range(len(scores)), key=lambda epoch: scores[epoch]))
    accuracy = (tuned.end["val"].argmax(axis=1) == val.labels).mean()
    assert accuracy == pytest.approx(max(score[0] for score in scores))
    if tuned.best_epoch == 0:
        np.testing.assert_allclose(tuned.end["val"], tuned.start["val"], atol=1e-6)


def test_fine_tuning_learns() -> None:
    """A task that random features make hard, and one trained block makes easy."""
    features, unfrozen, head, _, _, maps = setting("densenet121", "conv5", 2)
    models = assemble(features, unfrozen, head, 2)
    part = part_of(maps.features, maps.labels)
    config = FinetuneConfig("conv5", epochs=6, batch_size=8, learning_rate=1e-3, patience=6)
    tuned = fit(models, {"train": part, "val": part}, config)
    assert tuned.best_epoch > 0
    assert tuned.history[tuned.best_epoch]["val_loss"] < 0.7 * tuned.history[0]["val_loss"]


def test_served_model_is_a_plain_keras_file(tmp_path: Path) -> None:
    features, unfrozen, head, images, _, _ = setting("resnet50", "conv5", 2)
    models = assemble(features, unfrozen, head, 2)
    served = models.serving()
    served.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.inputs[0].dtype == "uint8"
    np.testing.assert_allclose(loaded(images), served(images), atol=1e-6)


def test_loss_that_is_not_finite() -> None:
    features, unfrozen, head, _, _, maps = setting("mobilenet025", "block13", 3)
    models = assemble(features, unfrozen, head, 3)
    broken = part_of(np.full_like(maps.features, np.nan), maps.labels)
    with pytest.raises(RunError, match="diverged"):
        fit(models, {"train": broken}, FinetuneConfig("block13", epochs=1))
