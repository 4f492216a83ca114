"""Where results lie, and in which files."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from pipeline.util.machine import cache_folder
from pipeline.util.options import option, words_of
from pipeline.util.remote import shared


def user_cache() -> Path:
    """The cache of the Python interface: $TLPIPE_CACHE, else the folder that the platform keeps for caches.

    A notebook is started from anywhere, so that ./cache would be another folder each time.
    """
    named = os.environ.get("TLPIPE_CACHE")
    return shared(named) if named else cache_folder()


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders that commands read from and write to."""

    cache: Path = option(
        os.environ.get("TLPIPE_CACHE") or "cache",
        "Cache folder, or an address such as s3://bucket/cache; if left out, $TLPIPE_CACHE, else ./cache.",
        parse=shared,
    )
    reports: Path = option(
        Path("reports"), "Folder of runs and their reports, or an address such as s3://bucket/reports.", parse=shared
    )

    def words(self) -> list[str]:
        """What names them on the command line, where they are not those of a command that names none."""
        mine, usual = ({"cache": one.cache, "reports": one.reports} for one in (self, Folders()))
        return words_of(mine, usual)

    def command(self, words: str) -> str:
        """A command line, with what names these folders."""
        return " ".join([words, *map(shlex.quote, self.words())])

    def __post_init__(self) -> None:
        """Take text for the place that it means."""
        for name in ("cache", "reports"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, shared(value))


@dataclass(frozen=True, slots=True)
class File:
    """A file, or several of a kind, that tlpipe writes.

    Attributes:
        folder: "cache" or "reports".
        path: Where it lies below that folder; what stands between < and > differs from file to file.
        what: What it holds.
    """

    folder: str
    path: str
    what: str


FILES = (
    File("cache", ".tlpipe", "Marks the folder as one that tlpipe wrote, so that it is never read as data."),
    File(
        "cache",
        "features/<spec digest>/spec.json",
        "What defines these features: backbone, digest of the weights, endpoint, pooling, size, resizing, precision.",
    ),
    File(
        "cache",
        "features/<spec digest>/shards/<digest>.h5",
        "Features, immutable: `/key` [n], `/features` [n, ...], with their checksums and what computed them.",
    ),
    File("cache", "features/<spec digest>/quarantine.jsonl", "Images that can't be read, each with the reason."),
    File(
        "cache",
        "datasets/<dataset id>-<digest>.h5",
        "Rows of a dataset (image key, label, split, group, location, further columns) and its class names; no pixels.",
    ),
    File(
        "cache",
        "tables/<features id>.json",
        "The record of an extract: which dataset, under which spec, with which options.",
    ),
    File("cache", "uses/<digest>.json", "Names a reports folder whose runs need features of this cache."),
    File(
        "cache",
        "graphs/<digest>/<any>",
        "A network converted for an engine, its checksums, and how closely each engine agrees with Keras; made again "
        "if it is removed.",
    ),
    File(
        "cache",
        "memo.sqlite",
        "Digests of unchanged files, and which shards are undamaged; if it is removed, both are checked again.",
    ),
    File("reports", ".tlpipe", "Marks the folder, as in the cache."),
    File("reports", "index.html", "The leaderboard of all runs."),
    File("reports", "inspect-<data>.html", "What `tlpipe inspect` found in a dataset."),
    File("reports", "search-<image>.html", "What `tlpipe search` found to be like a picture."),
    File("reports", "<run id>/run.json", "What was done, and the results: see below."),
    File("reports", "<run id>/history.csv", "Losses, accuracies, learning rates and seconds of each epoch or trial."),
    File(
        "reports",
        "<run id>/predictions.h5",
        "For each split, the probabilities [n, classes] with image keys and labels.",
    ),
    File("reports", "<run id>/seen.npz", "Keys of all images that the run was trained with, 16 bytes each."),
    File("reports", "<run id>/head.npz", "The head as arrays, for logreg, ridge, centroid, knn and linear."),
    File("reports", "<run id>/head.keras", "The head as a Keras model, for mlp and bn-mlp."),
    File("reports", "<run id>/model.keras", "The fine-tuned model: uint8 RGB images in, probabilities out."),
    File("reports", "<run id>/report.html", "The page of the run."),
    File("reports", "<run id>/<figure>.png", "The figures of the page: learning curves, confusion matrix."),
    File("reports", "<run id>/<figure>.svg", "The same, as SVG."),
    File(
        "reports",
        "<run id>/export/<format>/<any>",
        "What `tlpipe export` wrote, with an example, `usage.py`.",
    ),
    File("reports", "<run id>/explained/<image>-<key>-<class>.png", "What `tlpipe explain` drew."),
    File("reports", "<run id>/tensorboard/<any>", "Logs for TensorBoard, with `--tensorboard`."),
    File(
        "reports",
        ".unfinished/<digest>/<any>",
        "A checkpoint of fine-tuning that was interrupted; `tlpipe cache gc` lists old ones.",
    ),
)
"""All files that tlpipe writes into its two folders; a test holds a used cache and its reports against it."""
