"""What a person would be asked for in a bug report: versions, devices, engines, weights, folders."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.backbones import BACKBONES, Pretrained, find_imagenet, keras_file, open_keras
from pipeline.config import BACKBONE, ENGINES
from pipeline.data.packed import there
from pipeline.errors import EngineError
from pipeline.extraction.engines import choose, judge
from pipeline.util import machine, runtime
from pipeline.util.addresses import is_remote
from pipeline.util.text import first_line

CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


SMALL = "mobilenet025"  # what engines are tried with


def examine(cache: Path, reports: Path) -> dict[str, Any]:
    """Look at this machine.

    Returns:
        `versions`, `system`, `processor`, `gpus`, `engines`, `verdicts`, `weights` and `folders`.
    """
    return {
        "versions": runtime.versions(),
        "system": {"platform": platform.platform(), "python": platform.python_implementation()},
        "processor": _processor(),
        "engines": _engines(),  # before anything settles what Keras runs on
        "gpus": _gpus(),
        "verdicts": _verdicts(),
        "weights": _weights(),
        "folders": {"cache": _folder(cache), "reports": _folder(reports)},
    }


def _processor() -> dict[str, Any]:
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "name": machine.processor(),
        "usable": machine.cpu_count(),
        "memory_bytes": memory,
        "features": [feature for feature in CPU_FEATURES if feature in machine.processor_flags()],
    }


def _gpus() -> list[dict[str, Any]]:
    """GPUs that Keras's backend can use, with the memory that the driver tells."""
    if runtime.keras_backend() == "jax" or not runtime.installed("tensorflow"):
        return [
            {
                "name": device.device_kind,
                "compute_capability": [int(part) for part in device.compute_capability.split(".")],
                "memory": _gpu_memory(number),
            }
            for number, device in enumerate(runtime.jax().devices())
            if device.platform == "gpu"
        ]
    tf = runtime.tensorflow()
    found = []
    for number, gpu in enumerate(tf.config.list_physical_devices("GPU")):
        details = tf.config.experimental.get_device_details(gpu)
        found.append(
            {
                "name": details.get("device_name", gpu.name),
                "compute_capability": list(details.get("compute_capability", ())),
                "memory": _gpu_memory(number),
            }
        )
    return found


def _gpu_memory(number: int) -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", f"--id={number}", "--query-gpu=memory.total,memory.free", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() or None


def _engines() -> dict[str, Any]:
    engines: dict[str, Any] = {}
    for name in ENGINES:
        try:
            choice = choose(name, "auto", onnx=name == "onnxruntime")
            undecided = choice.precision == "auto"
            engines[name] = f"{choice.engine} in {'int8 or float32, by network' if undecided else choice.precision}"
        except EngineError as error:
            engines[name] = str(error)
    return engines


def _verdicts() -> list[dict[str, Any]]:
    """How near each engine that there is comes to Keras in float32 on the processor, in a small network."""
    trained = find_imagenet(BACKBONES[SMALL]) is not None

    @functools.cache
    def small() -> Pretrained:
        return open_keras(SMALL, "imagenet" if trained else "random", 0, (96, 96))

    # Random weights make features that half precision can't hold.
    precisions = ("float32", "bfloat16", *(("float16",) if trained else ()))
    found = []
    for engine, precision in product(ENGINES[1:], precisions):
        try:
            choice = choose(engine, precision)
        except EngineError:  # there is none, or not in this precision
            continue
        row: dict[str, Any] = {"engine": engine, "precision": precision, "difference": None, "most": None}
        try:
            with tempfile.TemporaryDirectory() as folder:
                one = judge(choice, small().network, small().default_endpoint(), "avg", Path(folder) / "graph")
            row |= {**asdict(one), "most": one.most, "holds": one.holds, "error": ""}
        except Exception as error:  # whatever a broken driver or file raises is what should be told
            row |= {"holds": False, "error": first_line(error)}
        found.append(row)
    if runtime.installed("jax") and runtime.keras_backend() != "jax":
        found += _verdicts_of_jax()
    return found


def _verdicts_of_jax() -> list[dict[str, Any]]:
    """What the doctor says where Keras runs on JAX, in a process of its own: in this one it runs on something else."""
    command = [sys.executable, "-m", "pipeline", "doctor", "--json", "--quiet"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        lines = done.stderr.strip().splitlines()
        if done.returncode == 0:
            verdicts: list[dict[str, Any]] = json.loads(done.stdout)["verdicts"]
            return verdicts
        error = lines[-1] if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        error = "no answer within 5 minutes"
    row = {"engine": "jax", "precision": "float32", "difference": None, "most": None, "holds": False}
    return [{**row, "error": error}]


def _weights() -> dict[str, Any]:
    default = BACKBONES[BACKBONE]
    found = {name: str(path) for name, row in BACKBONES.items() if (path := find_imagenet(row))}
    return {
        "TLPIPE_WEIGHTS": os.environ.get("TLPIPE_WEIGHTS"),
        "found": found,
        "missing_would_come_from": None if BACKBONE in found else default.weights_address,
        "and_go_to": str(keras_file(default).parent),
    }


def _folder(path: Path) -> dict[str, Any]:
    """Whether a folder can be written to, or made; and the room there. Of an address, whether there is something."""
    if is_remote(path):
        return {"path": str(path), "there": there(path), "writable": None, "free_bytes": None}
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            writable = True
    except OSError:
        writable = False
    return {
        "path": str(path.absolute()),
        "there": path.exists(),
        "writable": writable,
        "free_bytes": shutil.disk_usage(existing).free,
    }
