"""The program: its first stage, and the commands of the other modules."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import cache, heads, tools, tuning, use
from pipeline.cli.common import Answer, Common, command

app = typer.Typer(
    name="tlpipe",
    help="Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DataArgument = Annotated[
    str,
    typer.Argument(
        help="A folder class/*.jpg, {train,val,test}/class/*.jpg, or *.jpg without labels; a .csv, .tsv or .parquet "
        "with the columns path and perhaps label, split and group; an .npz; a folder of train_images.npy, "
        "train_labels.npy, ...; digits, cifar10 or cifar100."
    ),
]


@command(app, "extract")
def extract(
    common: Common,
    data: DataArgument = "digits",
    backbone: Annotated[
        str, typer.Option(help="A name from `tlpipe backbones`, a .keras file, or a fine-tuned run: reports/RUN.")
    ] = "densenet121",
    weights: Annotated[str, typer.Option(help="imagenet, random, or a .h5 or .keras file.")] = "imagenet",
    image_size: Annotated[
        str | None, typer.Option(help="Pixels: 224, or 192x256 (height x width). [default: the backbone's own]")
    ] = None,
    resize: Annotated[str, typer.Option(help="stretch, pad (white) or crop (centre).")] = "stretch",
    interpolation: Annotated[str, typer.Option(help="bicubic, bilinear, nearest or lanczos.")] = "bicubic",
    endpoint: Annotated[
        str | None,
        typer.Option(help="Block or layer to take; several joined by +: conv4+conv5. [default: the last feature map]"),
    ] = None,
    pooling: Annotated[str, typer.Option(help="avg, max or none, over height and width.")] = "avg",
    views: Annotated[int, typer.Option(min=0, help="Augmented versions of each image to cache beside it.")] = 0,
    augment: Annotated[
        str | None,
        typer.Option(help="How versions are made: flip, crop, rotate, zoom, brightness, contrast, joined by commas."),
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, tensorflow or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in a batch. [default: what did best]"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding threads. [default: one a processor]")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share for val, if the data has none.")] = 0.15,
    test_fraction: Annotated[float, typer.Option(help="Share for test, if the data has none.")] = 0.15,
    test_from: Annotated[str, typer.Option(help="Split that test is taken from: train or val.")] = "train",
    path_column: Annotated[str | None, typer.Option(help="Column of a manifest that holds the paths.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column that holds the labels.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that holds the splits.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Column of what must stay on one side of a split: patient, camera, scene.")
    ] = None,
    group_duplicates: Annotated[
        bool, typer.Option("--group-duplicates", help="Keep near duplicates on one side of a split, too.")
    ] = False,
    pixel_limit: Annotated[int, typer.Option(help="Refuse images of more pixels.")] = 200_000_000,
    again: Annotated[
        bool, typer.Option("--again", help="Take all options from the newest extract of the same data.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read all files again, even if they look unchanged.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if images can't be read.")] = False,
) -> Answer:
    """Run a frozen backbone once over the images and cache its features."""
    from pipeline import commands
    from pipeline.cli.render import extract_text
    from pipeline.config import ExtractConfig, SplitConfig, parse_image_size

    config = ExtractConfig(
        data=data,
        backbone=backbone,
        weights=weights,
        image_size=parse_image_size(image_size) if image_size else None,
        endpoint=endpoint,
        pooling=pooling,
        resize=resize,
        interpolation=interpolation,
        pixel_limit=pixel_limit,
        views=views,
        augment=augment,
        engine=engine,
        precision=precision,
        splits=SplitConfig(val_fraction, test_fraction, test_from, common.seed),
        seed=common.seed,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        group_column=group_column,
        group_duplicates=group_duplicates,
    )
    result = commands.extract(
        config, common.cache, batch_size=batch_size, workers=workers, rehash=rehash, strict=strict, again=again
    )
    return Answer(result.to_json(), extract_text(result))


heads.add_commands(app)
tuning.add_commands(app)
use.add_commands(app)
tools.add_commands(app)
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Entry point of the command `tlpipe`."""
    app()
