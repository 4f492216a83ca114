"""How much of DenseNet121 to train: a frozen head, conv5, conv4 and conv5, and all, on cifar10-30k with real weights.

Usage: blocks.py DATA   (a folder with cifar10/cifar10-30k.npz; the ImageNet weights are found as always). Over an hour
on two cores. Ends with the agreement of the saved model, run by plain Keras on uint8 images, with tlpipe's predictions.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import h5py
import keras
import numpy as np
from common import finish, measured, verdict
from PIL import Image

from pipeline.data import array_key

SETTINGS = (("conv5", 3), ("conv4,conv5", 2), ("all", 1))
IMAGES = 500


def line(name: str, run: dict[str, object], peak: int) -> None:
    scores = run["metrics"]["test"]  # type: ignore[index]
    low, high = scores["accuracy_95"]
    seconds = run["seconds"]  # type: ignore[index]
    print(
        f"{name:14} test {100 * scores['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}), "
        f"{seconds.get('epoch', 0):.0f} s an epoch, {seconds['total']:.0f} s, {peak / 1e9:.1f} GB",
        flush=True,
    )


def agreement(data: Path, run: Path) -> tuple[float, float]:
    """Share of images of one prediction, and the largest difference of a probability."""
    with h5py.File(run / "predictions.h5") as file:
        known = dict(zip(file["test/key"][:].tolist(), file["test/probability"][:], strict=True))
    with np.load(data) as file:
        images = file["x_test"][:IMAGES]
    sized = np.stack(
        [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    )
    found = keras.models.load_model(run / "model.keras", compile=False).predict(sized, verbose=0)
    expected = np.stack([known[array_key(image)] for image in images])
    return float((found.argmax(1) == expected.argmax(1)).mean()), float(np.abs(found - expected).max())


def main() -> None:
    data = Path(sys.argv[1]).resolve() / "cifar10/cifar10-30k.npz"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        measured("extract", data, cwd=work)
        head, peak = measured("train-head", "--head", "mlp512-128", cwd=work)
        line("frozen", head, peak)
        for blocks, epochs in SETTINGS:
            run, peak = measured(
                "finetune", "--blocks", blocks, "--epochs", epochs, "--head-run", head["run"], cwd=work
            )
            line(blocks, run, peak)
            before, after = (part["test"]["accuracy"] for part in (run["baseline"], run["metrics"]))
            verdict(f"{blocks}: {after:.4f}, frozen {before:.4f}", after > before)
            alike, apart = agreement(data, work / "reports" / run["run"])
            verdict(f"{blocks}: the saved model agrees on {100 * alike:.1f} %, {apart:.3f} apart", alike >= 0.995)
    finish()


if __name__ == "__main__":
    main()
