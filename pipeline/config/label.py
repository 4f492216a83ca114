"""How pictures are labelled, and what is made of the answers."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.util.options import Bounds, check, option

PORTS = Bounds(0, 65535, "a port from 1 to 65535, or 0 for any that is free")
JOURNAL_SUFFIX = ".jsonl"
LABELS = f"labels{JOURNAL_SUFFIX}"

NOT_OF_LABEL = (
    "pooling",
    "views",
    "augment",
    "dtype",
    "val_fraction",
    "test_fraction",
    "test_from",
    "group_duplicates",
    "labels",
)
"""Options of extract that mean nothing where pictures are only shown."""


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What a labelling is about, where its page is served, and what is made of its answers."""

    classes: str | None = option(None, "Names of classes, separated by commas, in addition to those of the data.")
    labels: str = option(LABELS, "File to which answers are appended; labelling resumes from it.")
    port: int = option(0, "Port of the page; 0 for any that is free.", bounds=PORTS)
    host: str = option(
        "127.0.0.1",
        "IPv4 address or name of this machine at which the page is served. With any but the default, other machines "
        "can reach the page. It is plain HTTP: whoever reads the network's traffic sees the token and the pictures.",
    )
    no_open: bool = option(False, "Don't open the page in a browser.")
    export: str | None = option(None, "Write the labels to this .csv table, and serve nothing.")
    to_folders: str | None = option(
        None, "Copy the labelled pictures into this folder, one below it for each class, and serve nothing."
    )
    link: bool = option(False, "With --to-folders, make links in place of copies.")

    def __post_init__(self) -> None:
        check(self)
        if not self.host or ":" in self.host:
            raise ConfigError(
                f"--host is {self.host!r}; give an IPv4 address or a name of this machine, without a port"
            )
        if self.export is not None and self.to_folders is not None:
            raise ConfigError("--export and --to-folders can't be combined; give one")
        if self.export is None and self.to_folders is None and not self.labels.endswith(JOURNAL_SUFFIX):
            raise ConfigError(
                f"--labels is {self.labels}; give a file that ends in {JOURNAL_SUFFIX}, to append answers to"
            )
        if self.link and self.to_folders is None:
            raise ConfigError("--link goes with --to-folders; leave it out")

    @property
    def class_names(self) -> list[str]:
        """The classes that were named."""
        return [] if self.classes is None else [name.strip() for name in self.classes.split(",")]
