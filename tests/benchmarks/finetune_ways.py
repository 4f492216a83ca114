"""What could make a step of fine-tuning faster: precisions, libraries and backends against Keras on TensorFlow in float32.

DenseNet121 at 224 px in plain Keras, BatchNormalization frozen: conv4 and conv5 from the cut, and the whole network.
Each way runs in a process of its own, in turn, and is compared with the float32 of its round. Backends that are not
installed are left out. Usage: finetune_ways.py [ROUNDS [WAY ...]]   (default: 2, which take about 20 minutes, of all ways)
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

from pipeline.util.machine import freed_memory_kept

WAYS: dict[str, dict[str, str]] = {
    "TensorFlow, float32": {},
    "freed memory kept": {"KEEP": "1"},
    "mixed bfloat16": {"POLICY": "mixed_bfloat16"},
    "oneDNN's products in bfloat16": {"TF_SET_ONEDNN_FPMATH_MODE": "BF16"},
    "mixed bfloat16, and oneDNN's products": {"POLICY": "mixed_bfloat16", "TF_SET_ONEDNN_FPMATH_MODE": "BF16"},
    "without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "XLA": {"JIT": "1"},
    "XLA with oneDNN": {"JIT": "1", "XLA_FLAGS": "--xla_cpu_use_onednn=true"},
    "JAX, float32": {"KERAS_BACKEND": "jax"},
    "JAX, mixed bfloat16": {"KERAS_BACKEND": "jax", "POLICY": "mixed_bfloat16"},
    "PyTorch, float32": {"KERAS_BACKEND": "torch"},
    "PyTorch, mixed bfloat16": {"KERAS_BACKEND": "torch", "POLICY": "mixed_bfloat16"},
}
PARTS = {"conv4,conv5": ("pool3_pool", 32), "all": ("input", 16)}  # the cut, and images in a step
STEPS, TIMES = 4, 3


def measure() -> dict[str, float]:
    """Images per second of each part, the best of some turns, in this process."""
    import keras
    import numpy as np

    policy = os.environ.get("POLICY", "float32")
    jit = "auto" if keras.backend.backend() == "jax" else bool(os.environ.get("JIT"))
    found = {}
    for name, (cut, size) in PARTS.items():
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        network = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(224, 224, 3))
        for layer in network.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        start = network.inputs[0] if cut == "input" else network.get_layer(cut).output
        pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(network.outputs[0])
        model = keras.Model(start, keras.layers.Dense(10, dtype="float32")(pooled))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(1e-4), loss, jit_compile=jit)
        inputs = np.random.default_rng(0).random((size, *start.shape[1:]), np.float32)
        labels = np.arange(size) % 10
        rates = []
        with freed_memory_kept() if os.environ.get("KEEP") else nullcontext():
            for _ in range(TIMES + 1):
                begun = time.perf_counter()
                for _ in range(STEPS):
                    model.train_on_batch(inputs, labels)
                rates.append(STEPS * size / (time.perf_counter() - begun))
        found[name] = max(rates[1:])
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    ways = {
        name: more
        for name, more in WAYS.items()
        if (name in sys.argv[2:] or not sys.argv[2:])
        and importlib.util.find_spec(more.get("KERAS_BACKEND", "tensorflow")) is not None
    }
    ratios: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        plain: dict[str, float] = {}
        for name, more in ways.items():
            environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", **more}
            command = [sys.executable, __file__, "measure"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1][:200]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            plain = plain or found
            rates[name].append(found)
            ratios[name].append({part: found[part] / plain[part] for part in PARTS})
    print(f"| way | {' | '.join(f'{part}, images/s | ratio' for part in PARTS)} |")
    print(f"| --- |{' --- | --- |' * len(PARTS)}")
    for name in ways:
        if ratios[name]:
            cells = [
                f"{statistics.median(one[part] for one in rates[name]):.1f} | "
                f"{statistics.median(one[part] for one in ratios[name]):.2f}"
                for part in PARTS
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
    else:
        main()
