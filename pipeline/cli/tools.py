"""`tlpipe backbones`, `doctor`, `bench` and `demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli import render
from pipeline.cli.common import Answer, command, seed_option, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import BACKBONE, Folders
from pipeline.util.options import parse_image_size
from pipeline.util.text import percent, readable_size, sides


@command("backbones")
@takes("folders", Folders)
def backbones(folders: Folders) -> Answer:
    """List the backbones, with their sizes, widths and blocks.

    Also says which weights are on this machine, and how fast the last extract ran.
    """
    from pipeline import commands
    from pipeline.commands.backbones import hub_presets

    rows, presets = commands.backbones(folders.cache), hub_presets(folders.cache)
    cells: list[list[Any]] = []
    for row in rows:
        names = row["blocks"]
        short = names if len(names) <= 8 else [*names[:2], "...", *names[-2:]]
        here = "here" if row["weights"] else ""
        rate = _rate_text(row["rate"])
        sizes = [row["native_size"], row["least_size"], row["width"]]
        cells.append([row["name"], *sizes, here, rate, " ".join(short)])
    columns = ["name", "native px", "least px", "features", "weights", "images/s here", "blocks"]
    text = render.aligned(columns, cells)
    hub = [
        [
            row["name"],
            f"{row['parameters']:,}",
            _rate_text(row["rate"]),
            f"{row['endpoints']}0, {row['endpoints']}1, ...",
            ", ".join(row["engines"]),
        ]
        for row in presets
    ]
    of_hub = ["preset of KerasHub", "parameters", "images/s here", "blocks", "engines"]
    lines = [
        text,
        "",
        *([render.aligned(of_hub, hub)] if hub else [NO_HUB]),
        "",
        "--backbone also takes hub:hf://ORG/NAME, hub:kaggle://... and hub:FOLDER, where save_to_preset wrote FOLDER,",
        "a .keras file of your own, and an ONNX file (pip install 'tlpipe[onnx]').",
    ]
    return Answer({"backbones": rows, "presets": presets}, "\n".join(lines))


def _rate_text(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return ""
    figure = (
        f"{rate['images_per_second']:,.0f}" if rate["images_per_second"] >= 100 else f"{rate['images_per_second']:.1f}"
    )
    return f"{figure}, {sides(rate['image_size'])} px, {rate['engine']} {rate['precision']}"


NO_HUB = "Presets of KerasHub (ViT, DINOv2, SigLIP, ...) need keras-hub: pip install 'tlpipe[hub]'"


@command("doctor")
@takes("folders", Folders)
def doctor(folders: Folders) -> Answer:
    """Check versions, devices, engines, weights and folders.

    The output belongs in every bug report.
    """
    from pipeline.commands.doctor import examine

    value = examine(folders.cache, folders.reports)
    processor, weights = value["processor"], value["weights"]
    memory = readable_size(processor["memory_bytes"]) if processor["memory_bytes"] else "unknown memory"
    lines = [f"{name:<14}{version}" for name, version in value["versions"].items()]
    lines += [
        "",
        f"system        {value['system']['platform']}",
        f"processor     {processor['name']}, {processor['usable']} usable, {memory}",
        f"              {' '.join(processor['features']) or 'no vector extensions that are known here'}",
    ]
    for gpu in value["gpus"]:
        lines.append(f"GPU           {gpu['name']}, {gpu['memory'] or 'unknown memory'}")
    lines += ["GPU           none that Keras can use"] if not value["gpus"] else []
    lines += [f"engine        {name}: {text}" for name, text in value["engines"].items()]
    for one in value["verdicts"]:
        text = f"FAILS: {one['error']}"
        if not one["error"]:
            text = (
                f"features differ by {one['difference']:.2g} of their length from those of Keras in float32 on the "
                "processor"
            )
            text += "" if one["holds"] else f", MORE THAN THE {one['most']:g} ALLOWED"
        lines.append(f"checked       {one['engine']} in {one['precision']}: {text}")
    named = weights["TLPIPE_WEIGHTS"]
    lines += ["", f"weights       TLPIPE_WEIGHTS is {named or 'not set'}"]
    if named and not Path(named).is_dir():
        lines.append("              THERE IS NO SUCH FOLDER")
    lines += [f"              {name}: {path}" for name, path in weights["found"].items()]
    if weights["missing_would_come_from"]:
        lines.append(f"              would be fetched from {weights['missing_would_come_from']}")
        lines.append(f"              and kept in {weights['and_go_to']}")
    lines.append("")
    for name, folder in value["folders"].items():
        if folder["writable"] is None:
            lines.append(
                f"{name:<14}{folder['path']}: {'is there' if folder['there'] else 'is empty, or not there yet'}"
            )
            continue
        can = "can be written" if folder["writable"] else "CAN'T BE WRITTEN"
        lines.append(f"{name:<14}{folder['path']}: {can}, {readable_size(folder['free_bytes'])} free")
    return Answer(value, "\n".join(lines))


@command("bench")
@click.option(
    "--backbone",
    default=BACKBONE,
    help="Backbone to measure: a name from `tlpipe backbones`.",
    shell_complete=COMPLETED["backbone"],
)
@click.option(
    "--image-size", help="Size of the images in pixels: 224, or 192x256 (height x width). [default: the backbone's own]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=3.0,
    help="Minimum time of a turn, in seconds; each engine has three turns.",
)
@takes("folders", Folders)
def bench(backbone: str, image_size: str | None, seconds: float, folders: Folders) -> Answer:
    """Measure how fast each engine runs on this machine.

    They run in turns with Keras's own predict, all with random weights.
    """
    from pipeline.commands import bench as module

    result = module.bench(backbone, parse_image_size(image_size) if image_size else None, seconds)
    cells = [
        [
            way.name,
            way.precision,
            way.batch_size,
            f"{way.images_per_second:.1f}",
            f"{way.times_predict:.2f}",
            "-" if way.share_of_matrix_rate is None else percent(way.share_of_matrix_rate),
            "" if way.mean_cosine is None else f"{way.mean_cosine:.4f}",
        ]
        for way in result.measured
    ]
    side = sides(result.image_size)
    lines = [f"{result.backbone}, {side} px, {result.multiply_adds / 1e9:.2f} G multiply-adds an image"]
    lines += [
        f"One large matrix product in {name}: {rate / 1e9:,.0f} G operations/s"
        for name, rate in result.matrix_rate.items()
    ]
    columns = ["engine", "precision", "batch", "images/s", "times predict", "of matrix rate", "cosine"]
    return Answer(asdict(result), "\n".join([*lines, "", render.aligned(columns, cells)]))


@command("demo")
@seed_option
@takes("folders", Folders)
def demo(seed: int, folders: Folders) -> Answer:
    """Run all three stages on small images, in about a minute.

    The images are the built-in digits; a report is written at the end.
    """
    from pipeline.commands.demo import BLOCKS, IMAGE_SIZE
    from pipeline.commands.demo import demo as run_demo

    result = run_demo(folders.cache, folders.reports, seed)
    cells = [["extract", "", "", f"{result.extracted.seconds['total']:.1f}"]]
    for stage, run in (("train-head logreg", result.head), (f"finetune {BLOCKS}", result.tuned)):
        scores = [percent(run.metrics[split]["accuracy"]) for split in ("val", "test")]
        cells.append([stage, *scores, f"{run.seconds['total']:.1f}"])
    side = sides(IMAGE_SIZE)
    text = "\n".join(
        [
            "",
            f"{result.extracted.n_images:,} scans of digits, densenet121 with {result.weights} weights, {side} px",
            "",
            render.aligned(["stage", "val accuracy", "test accuracy", "seconds"], cells),
            "",
            render.gain_text(result.gain),
            "",
            f"Features   {folders.cache / 'features' / result.extracted.record.spec.digest()}",
            f"Head       {folders.reports / result.head.id}",
            f"Model      {folders.reports / result.tuned.id / 'model.keras'}",
            f"Report     {result.report.index}",
        ]
    )
    value = {
        "weights": result.weights,
        "extract": result.extracted.to_json(),
        "head": {"run": result.head.id, "metrics": result.head.metrics, "seconds": result.head.seconds},
        "report": result.report.to_json(),
        "gain": asdict(result.gain),
        "finetune": {"run": result.tuned.id, "metrics": result.tuned.metrics, "seconds": result.tuned.seconds},
    }
    return Answer(value, text)
