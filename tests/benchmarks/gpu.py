"""The JAX engine on a GPU against a bare jitted loop, decoding included, and its share of the GPU's matrix rate.

Usage: KERAS_BACKEND=jax gpu.py [BACKBONE [SIDE]]   (default: densenet121 224). It runs on a processor as well, where
the figures mean little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, verdict, write_jpegs

from pipeline import commands
from pipeline.backbones import open_backbone
from pipeline.commands.bench import multiply_adds
from pipeline.config import ExtractConfig
from pipeline.extraction.engines import EngineChoice, call, choose, open_engine
from pipeline.extraction.engines.base import POLICIES
from pipeline.util import machine, runtime

ROUNDS = 3
SECONDS = 5.0
SIDE = 8192  # of the matrices, on a GPU


def rate(work: Callable[[], Any], amount: float) -> float:
    """Amount of work a second, over some seconds."""
    work()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        work()
        n += 1
    return amount * n / (time.perf_counter() - start)


def bare_loop(model: Any, images: np.ndarray, batch_size: int) -> Callable[[], Any]:
    """What anyone would write: the network under `jax.jit` on one device, batch after batch."""
    jax = runtime.jax()
    weights = [[one.value for one in part] for part in (model.trainable_variables, model.non_trainable_variables)]
    forward = jax.jit(lambda weights, batch: model.stateless_call(*weights, batch, training=False)[0])
    batches = np.split(images, len(images) // batch_size)
    return lambda: [np.asarray(features) for features in [forward(weights, batch) for batch in batches]]


def matrix_rate(precision: str, side: int) -> float:
    """Operations a second of a large matrix product."""
    jax = runtime.jax()
    left = jax.numpy.ones((side, side), precision)
    product = jax.jit(lambda left: left @ left)
    with jax.default_matmul_precision("highest" if precision == "float32" else None):
        return rate(lambda: product(left).block_until_ready(), 2.0 * side**3)


def main() -> None:
    backbone = sys.argv[1] if len(sys.argv) > 1 else "densenet121"
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 224
    pretrained = open_backbone(backbone, "random", 0, (side, side))
    endpoint = pretrained.default_endpoint()
    on_cpu = choose("auto", "auto").precision == "float32"
    device = machine.processor() if on_cpu else runtime.jax().devices()[0].device_kind
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = write_jpegs(folder / "jpegs", 400 if on_cpu else 8000)
        for precision in ("float32",) if on_cpu else ("float32", "bfloat16"):
            engine = open_engine(EngineChoice("jax", precision), pretrained.network, endpoint, "avg", folder / "graph")
            model = pretrained.network(POLICIES[precision]).features(endpoint, "avg")
            images = np.random.default_rng(0).integers(0, 256, (8 * engine.batch_size, side, side, 3), np.uint8)
            ways = partial(call, engine, images), bare_loop(model, images, engine.batch_size)
            with runtime.jax().default_matmul_precision("highest" if precision == "float32" else None):
                found = [tuple(rate(way, len(images)) for way in ways) for _ in range(ROUNDS)]
            own, others = np.median(found, axis=0)
            ratio = float(np.median([mine / other for mine, other in found]))
            config = ExtractConfig(
                str(jpegs), backbone=backbone, weights="random", image_size=(side, side), precision=precision
            )
            decoded = commands.extract(config, folder / f"cache-{precision}").images_per_second
            share = 2 * multiply_adds(model) * own / matrix_rate(precision, 1024 if on_cpu else SIDE)
            rows.append(
                f"| {precision} | {engine.batch_size} | {others:.0f} | {own:.0f} | {decoded:.0f} | {share:.0%} |"
            )
            verdict(f"{precision}: {ratio:.2f} of a bare jitted loop (median of {ROUNDS}; at least 0.9)", ratio >= 0.9)
            with_jpegs = decoded / own
            verdict(f"{precision}: {with_jpegs:.2f} of its own rate from JPEGs (at least 0.75)", with_jpegs >= 0.75)
    print(f"\n{device}, {machine.cpu_count()} processors, {backbone}, {side} px, JAX {runtime.version('jax')}\n")
    print("| precision | batch | bare loop, images/s | engine | extract of JPEGs | share of the matrix rate |")
    print("| --- | --- | --- | --- | --- | --- |", *rows, sep="\n")
    finish()


if __name__ == "__main__":
    main()
