"""The commands of the second stage: train a head, sweep many, and the learning curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import Answer, Common, command

if TYPE_CHECKING:
    from pipeline.commands import TableOptions
    from pipeline.heads import HeadConfig

HEADS = (
    "logreg, ridge, centroid, knn20 (any number of neighbours), linear, mlp512-128 (any hidden widths), or bn-mlp50 "
    "(the same over BatchNormalization)."
)

FeaturesArgument = Annotated[
    str | None,
    typer.Argument(
        help="Features id, or its start; several, joined by commas, are put side by side. [default: the newest pooled]",
        show_default=False,
    ),
]

# The defaults are those of `pipeline.heads.KINDS`; a sweep varies some of them unless they are given.
HEAD_OPTIONS: dict[str, Any] = {
    "epochs": Annotated[int | None, typer.Option(help="Passes over the images; linear (30), mlp (20).")],
    "batch_size": Annotated[
        int | None, typer.Option(help="Images in a step, about; linear, mlp (16 to 256, by the number of images).")
    ],
    "learning_rate": Annotated[float | None, typer.Option(help="At its highest; linear, mlp (0.001).")],
    "optimizer": Annotated[str | None, typer.Option(help="adam, adamw or sgd; linear, mlp (adamw).")],
    "schedule": Annotated[
        str | None, typer.Option(help="Of the learning rate: plateau, cosine or none; linear, mlp (cosine).")
    ],
    "patience": Annotated[
        int | None,
        typer.Option(help="Epochs without a lower loss until the end (8); a cosine is run out all the same."),
    ],
    "dropout": Annotated[float | None, typer.Option(help="After each hidden layer; mlp (0.5).")],
    "label_smoothing": Annotated[
        float | None, typer.Option(help="Share of a label that is spread over all classes; linear, mlp (0).")
    ],
    "l2": Annotated[
        float | None,
        typer.Option(
            help="Weight of half the squared weights beside the mean loss; with adamw the weight decay; linear, mlp (1 "
            "with adamw, else 0.0001), logreg, ridge (chosen on val; without val, as in learning curves, 0.03, 0.5)."
        ),
    ],
    "class_weight": Annotated[str | None, typer.Option(help="balanced: all classes count the same; or none (none).")],
    "standardize": Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Bring features to mean 0 and deviation 1 (yes, but for bn-mlp).",
        ),
    ],
    "l2_normalize": Annotated[
        bool | None,
        typer.Option(
            "--l2-normalize/--no-l2-normalize",
            help="Then bring the features of each image to the same length (no; knn and centroid always do).",
        ),
    ],
    "views": Annotated[int | None, typer.Option(help="Cached views to train on beside the images (all).")],
}

TABLE_OPTIONS: dict[str, Any] = {
    # The argument FEATURES has the name that the option has.
    "same_features": Annotated[
        str | None, typer.Option("--features", help="The same as FEATURES.", metavar="A,B", show_default=False)
    ],
    "test_views": Annotated[
        int | None,
        typer.Option(help="Cached views over which the probabilities of an image are averaged (0; a sweep tries all)."),
    ],
    "memory": Annotated[
        str | None,
        typer.Option(
            help="Features that may be held, such as 1GB; what is more stays on disk (half of the machine's memory)."
        ),
    ],
}

CHOICE_OPTIONS: dict[str, Any] = {
    "calibrate": Annotated[
        bool | None, typer.Option("--calibrate", help="Scale the logits by a temperature fitted on val.")
    ],
    "cv": Annotated[
        int | None,
        typer.Option(help="Folds of a cross-validation over the training images, and over val if it was carved."),
    ],
    "seeds": Annotated[int | None, typer.Option(help="Number of seeds: mean and deviation over them (1).")],
}


def _head_config(head: str, seed: int, options: dict[str, Any]) -> HeadConfig:
    from pipeline.heads import HeadConfig

    return HeadConfig(head, **{name: options[name] for name in HEAD_OPTIONS}, seed=seed)


def _table_options(argument: str | None, options: dict[str, Any]) -> TableOptions:
    from pipeline.commands import TableOptions
    from pipeline.config import parse_bytes
    from pipeline.errors import ConfigError

    if argument is not None and options["same_features"] is not None:
        raise ConfigError(f"Features are given twice: {argument}, and --features {options['same_features']}; give one")
    return TableOptions(
        features=options["same_features"] if argument is None else argument,
        test_views=options["test_views"],
        memory=parse_bytes("--memory", options["memory"]) if options["memory"] is not None else None,
        calibrate=bool(options.get("calibrate")),
        cv=options.get("cv"),
        seeds=1 if options.get("seeds") is None else options["seeds"],
    )


def _numbers(text: str | None) -> list[int] | None:
    from pipeline.errors import ConfigError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--per-class is {text!r}; give numbers joined by commas: 1,2,5,10")
    return [int(part) for part in parts]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the program."""

    @command(app, "train-head", {**HEAD_OPTIONS, **TABLE_OPTIONS, **CHOICE_OPTIONS})
    def train_head(
        common: Common,
        options: dict[str, Any],
        features: FeaturesArgument = None,
        head: Annotated[str, typer.Option(help=HEADS)] = "logreg",
    ) -> Answer:
        """Train a head on cached features. Defaults stand in brackets; options that a head doesn't have are refused."""
        from pipeline import commands
        from pipeline.cli.render import run_json, run_text

        config = _head_config(head, common.seed, options)
        run = commands.train_head(config, common.cache, common.reports, _table_options(features, options))
        return Answer(run_json(run), run_text(run, str(common.reports / run.id)))

    @command(app, "sweep", {**HEAD_OPTIONS, **TABLE_OPTIONS, **CHOICE_OPTIONS})
    def sweep(
        common: Common,
        options: dict[str, Any],
        features: FeaturesArgument = None,
        head: Annotated[
            str,
            typer.Option(help="Heads joined by commas; a name without figures (mlp, knn) for those that the grid has."),
        ] = "logreg,ridge,centroid,knn,linear,mlp",
        grid: Annotated[str, typer.Option(help="small or full: how many settings of each head.")] = "small",
        budget: Annotated[float | None, typer.Option(help="Seconds after which nothing new is tried.")] = None,
    ) -> Answer:
        """Try many heads and settings, choose on val, and train the best. Given options hold for all; others vary."""
        from pipeline import commands
        from pipeline.cli.render import run_json, sweep_text

        run = commands.sweep(
            [name.strip() for name in head.split(",")],
            grid,
            _head_config("", common.seed, options),
            common.cache,
            common.reports,
            _table_options(features, options),
            float("inf") if budget is None else budget,
        )
        return Answer(run_json(run), sweep_text(run, str(common.reports / run.id)))

    @command(app, "learning-curve", {**HEAD_OPTIONS, **TABLE_OPTIONS})
    def learning_curve(
        common: Common,
        options: dict[str, Any],
        features: FeaturesArgument = None,
        head: Annotated[str, typer.Option(help=HEADS)] = "ridge",
        per_class: Annotated[
            str | None, typer.Option(help="Images of each class, joined by commas. [default: 1,2,5,10,... up to all]")
        ] = None,
        draws: Annotated[int, typer.Option(help="Random choices of images at each number.")] = 5,
    ) -> Answer:
        """Measure accuracy against the number of labelled images, and say what more would buy."""
        from pipeline import commands
        from pipeline.cli.render import curve_text

        result = commands.learning_curve(
            _head_config(head, common.seed, options),
            common.cache,
            _table_options(features, options),
            _numbers(per_class),
            draws,
        )
        return Answer(result.to_json(), curve_text(result))
