"""Fine-tuning conv5 on 50,000 drawn activations [7, 7, 512] in float16, 2.5 GB: peak memory under --memory 1GB."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import finish, measured, small_set, tlpipe, verdict

from pipeline.backbones import BACKBONES
from pipeline.backbones.build import build_network
from pipeline.config import ExtractConfig, FeatureSpec
from pipeline.data import open_dataset
from pipeline.extraction.pass_ import SHARD_BYTES
from pipeline.store.shards import FeatureStore, stores
from pipeline.util.memo import Memo

N, SHAPE, LIMIT = 50_000, (7, 7, 512), 2.5e9
CUT = "pool4_pool"


def fill(cache: Path, spec: FeatureSpec, keys: np.ndarray, shape: tuple[int, ...]) -> None:
    """Write drawn features of all images, as if they had been computed."""
    draw = np.random.default_rng(0)
    store = FeatureStore(cache, spec)
    rows = SHARD_BYTES // (int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
    for start in range(0, len(keys), rows):
        part = keys[start : start + rows]
        store.append(part.tolist(), draw.random((len(part), *shape), np.float32).astype(spec.dtype))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # Weights of a file, as activations of random ones are not kept in half precision.
        weights = work / "drawn.weights.h5"
        build_network(BACKBONES["densenet121"], (224, 224)).model.save_weights(weights)
        options = ("--weights", weights, "--precision", "float32")
        # What a small extract writes says how the features of the large one are called.
        small, large = small_set(work / "small.npz", 40), small_set(work / "large.npz", N)
        for more in ((), ("--endpoint", CUT, "--pooling", "none")):
            tlpipe("extract", small, *options, *more, cwd=work)
        keys = np.unique(open_dataset(str(large), ExtractConfig().splits, memo=Memo(work / "cache")).dataset.keys)
        for store in stores(work / "cache"):
            store.open()
            if store.spec.pooling == "none" and (store.row_shape(), store.spec.dtype) != (SHAPE, "float16"):
                sys.exit(f"The cut gives {store.row_shape()} in {store.spec.dtype}, not {SHAPE} in float16")
            known = store.has(keys)
            fill(work / "cache", store.spec, keys[~known], store.row_shape())
        tlpipe("extract", large, *options, cwd=work)
        tlpipe("train-head", "--head", "linear", "--epochs", "1", cwd=work)
        run, peak = measured("finetune", "--blocks", "conv5", "--epochs", "1", "--memory", "1GB", cwd=work)
        n = run["n_train"] + run["n_val"] + run["n_test"]
        verdict(
            f"{n:,} activations with --memory 1GB: peak {peak / 1e9:.2f} GB (under {LIMIT / 1e9:g}), "
            f"{run['seconds']['epoch']:.0f} s an epoch",
            peak < LIMIT,
        )
    finish()


if __name__ == "__main__":
    main()
