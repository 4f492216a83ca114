"""The command of the third stage: fine-tune."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import Answer, Common, command

# The defaults are those of `pipeline.finetuning.FinetuneConfig`.
TRAINING_OPTIONS: dict[str, Any] = {
    "blocks": Annotated[
        str | None,
        typer.Option(
            help="Block or layer to train with all above it (the top block); blocks joined by commas; all; none."
        ),
    ],
    "epochs": Annotated[int | None, typer.Option(help="Most passes over the training images (5).")],
    "batch_size": Annotated[int | None, typer.Option(help="Images in a step (32).")],
    "accumulate": Annotated[int | None, typer.Option(help="Steps whose gradients make one update (1).")],
    "learning_rate": Annotated[float | None, typer.Option(help="At its highest (0.0001).")],
    "backbone_lr_scale": Annotated[float | None, typer.Option(help="Factor of it below the head (1).")],
    "layer_decay": Annotated[float | None, typer.Option(help="Further factor for each block further down (1).")],
    "warm_up": Annotated[float | None, typer.Option(help="Share of the steps in which the rate rises (0.1).")],
    "schedule": Annotated[str | None, typer.Option(help="What the rate does then: cosine, plateau or none (cosine).")],
    "weight_decay": Annotated[float | None, typer.Option(help="Of kernels, as AdamW does it (0.004).")],
    "label_smoothing": Annotated[
        float | None, typer.Option(help="Share of a label that is spread over all classes (0).")
    ],
    "mixup": Annotated[
        float | None, typer.Option(help="Mix pairs of images, by shares from a beta distribution of this alpha (0).")
    ],
    "views": Annotated[
        int | None, typer.Option(help="Augmented versions of each image, cached at the cut beside it (0).")
    ],
    "augment": Annotated[
        str | None,
        typer.Option(
            help="flip, crop, rotate, zoom, brightness, contrast, joined by commas: how --views are made (flip,crop); "
            "without --views done anew in each step, from the images to the end: many times slower."
        ),
    ],
    "train_bn": Annotated[
        bool | None,
        typer.Option(
            "--train-bn",
            help="Train BatchNormalization, too. Its statistics then follow batches that are small and few, which "
            "mostly costs accuracy.",
        ),
    ],
    "remat": Annotated[
        bool | None,
        typer.Option("--remat", help="Compute activations twice instead of holding them: less memory, more time."),
    ],
    "cold_head": Annotated[
        bool | None,
        typer.Option("--cold-head", help="Draw the head's weights anew. Its first gradients spoil what lies below."),
    ],
    "weights": Annotated[
        str | None,
        typer.Option(help="random: train the whole network from scratch, for comparison (with --blocks all)."),
    ],
    "patience": Annotated[int | None, typer.Option(help="Epochs without a lower validation loss until the end (3).")],
}


def add_commands(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "finetune", TRAINING_OPTIONS)
    def finetune(
        common: Common,
        training: dict[str, Any],
        head_run: Annotated[
            str | None, typer.Option(help="Run of train-head or sweep to start from. [default: the newest]")
        ] = None,
        head: Annotated[
            str | None, typer.Option(help="Train this head first, on the frozen features, and start from it.")
        ] = None,
        features: Annotated[
            str | None, typer.Option(help="Features that --head is trained on. [default: the newest pooled]")
        ] = None,
        memory: Annotated[
            str | None,
            typer.Option(
                help="Activations that may be held, such as 1GB; what is more stays on disk. [default: half of the "
                "machine's memory]"
            ),
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on after the last whole epoch of the same command.")
        ] = False,
        tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard, too.")] = False,
    ) -> Answer:
        """Fine-tune the top blocks below a trained head, from activations cached below them, or a whole network."""
        from pipeline import commands
        from pipeline.cli.render import run_json, run_text
        from pipeline.config import parse_bytes
        from pipeline.finetuning import FinetuneConfig

        given = {name: value for name, value in training.items() if value is not None}
        options = commands.FinetuneOptions(
            head_run,
            head,
            features,
            parse_bytes("--memory", memory) if memory is not None else None,
            resume,
            tensorboard,
        )
        run = commands.finetune(FinetuneConfig(**given, seed=common.seed), common.cache, common.reports, options)
        return Answer(run_json(run), run_text(run, str(common.reports / run.id)))
