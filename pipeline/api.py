"""tlpipe from Python: extract, load what was extracted and trained, and a scikit-learn transformer."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline import commands
from pipeline.commands import ExtractResult, TrainedHead
from pipeline.config import ExtractConfig, FeatureSpec, SplitConfig
from pipeline.data import ArraySource, FileSource, ImageSource
from pipeline.errors import DataError
from pipeline.store.records import find_records
from pipeline.store.table import load_table


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a dataset as arrays; row i of each belongs to the same image.

    Attributes:
        X: Features, shape [n, d], or [n, h, w, c] without pooling.
        y: Index into `class_names`, shape [n]; -1 of an image without a label.
        split: "train", "val" or "test", shape [n].
        view: 0 for the image itself, else the number of its augmented view, shape [n].
        class_names: Sorted.
        paths: Where each image lies, length n.
        specs: What the features are, for `load_head(...).predict_proba`.
    """

    X: NDArray[np.floating]
    y: NDArray[np.int64]
    split: NDArray[np.str_]
    view: NDArray[np.int64]
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    specs: tuple[FeatureSpec, ...]


def extract(
    data: str | Path = "digits",
    *,
    cache: str | Path = "cache",
    val_fraction: float = SplitConfig.val_fraction,
    test_fraction: float = SplitConfig.test_fraction,
    test_from: str = SplitConfig.test_from,
    batch_size: int | None = None,
    workers: int | None = None,
    rehash: bool = False,
    strict: bool = False,
    seed: int = 0,
    **options: Any,
) -> ExtractResult:
    """Compute the features of a dataset that are not in the cache yet, as `tlpipe extract` does.

    Args:
        data: A folder, a manifest, an array file, or a built-in name.
        cache: The cache folder.
        val_fraction: Share for val, if the data has none.
        test_fraction: Share for test, if the data has none.
        test_from: Split that test is taken from, "train" or "val".
        batch_size: Images in a batch.
        workers: Decoding threads.
        rehash: Read all files again, even if they look unchanged.
        strict: Raise if images can't be read, after all others were stored.
        seed: Of random weights and of the splits.
        **options: Further fields of `ExtractConfig`: backbone, weights, image_size, endpoint, pooling, ...

    Returns:
        Counts, seconds, and `record.id`, the features id.

    Raises:
        TlpipeError: As `tlpipe extract` does, with what to do about it.
    """
    splits = SplitConfig(val_fraction, test_fraction, test_from, seed)
    options["image_size"] = _size(options.get("image_size"))
    config = ExtractConfig(data=str(data), splits=splits, seed=seed, **options)
    return commands.extract(config, Path(cache), batch_size=batch_size, workers=workers, rehash=rehash, strict=strict)


def load_features(features_id: str | None = None, *, cache: str | Path = "cache", views: int | None = None) -> Features:
    """Load features as arrays.

    Args:
        features_id: As `extract` gave it, or the start of one; several joined by commas; None for the newest.
        cache: The cache folder.
        views: Number of augmented views of the training images; None for all there are.

    Raises:
        StoreError: If there are no such features.
    """
    table = load_table(Path(cache), find_records(Path(cache), features_id), views, labelled=False)
    return Features(
        table.array(), table.labels, table.splits, table.views, table.class_names, table.locations, table.specs
    )


def load_head(run: str | None = None, *, reports: str | Path = "reports") -> TrainedHead:
    """Load the head of a run of `tlpipe train-head` or `tlpipe sweep`.

    Args:
        run: Its id, the start of one, or the path of its folder; None for the newest.
        reports: The reports folder.

    Returns:
        A head whose `predict_proba(features.X, features.specs)` gives probabilities [n, classes] in the order of its
        `class_names`, and refuses features of another spec.

    Raises:
        RunError: If there is no such run, or its files are damaged.
    """
    return commands.open_head(Path(reports), run)[0]


@dataclass(frozen=True)
class Model:
    """A trained run that takes images, as scikit-learn's classifiers take features.

    Attributes:
        run: Id of the run.
        class_names: In the order of the probabilities.
        cache: Folder where features are looked up and kept.
    """

    run: str
    class_names: tuple[str, ...]
    cache: Path
    _classifier: commands.Classifier = field(repr=False)

    def predict_proba(self, X: Sequence[str | Path] | NDArray[Any]) -> NDArray[np.floating]:
        """Probabilities of images.

        Args:
            X: Paths, an array [n, height, width] or [n, height, width, channels], or a list of arrays of any sizes;
                uint8.

        Returns:
            Shape [n, classes], in the order of `class_names`.

        Raises:
            DataError: If an image can't be read: a row can't be left out here. `tlpipe predict` lists such images.
            ValueError: If X is neither.
        """
        source = _source(X)
        locations = [f"Image {number}" for number in range(len(source))]
        predicted = self._classifier.predict(source, locations, self.cache)
        for number, cause in predicted.unreadable.items():
            raise DataError(f"Image {number} can't be read: {cause}")
        return predicted.probabilities

    def predict(self, X: Sequence[str | Path] | NDArray[Any]) -> NDArray[np.str_]:
        """Class names [n] of images; arguments and errors as in `predict_proba`."""
        labels: NDArray[np.str_] = np.array(self.class_names)[self.predict_proba(X).argmax(axis=1)]
        return labels


def load_model(run: str | None = None, *, reports: str | Path = "reports", cache: str | Path | None = "cache") -> Model:
    """Load a run of `tlpipe train-head`, `sweep` or `finetune` that takes images.

    Args:
        run: Its id, the start of one, or the path of its folder; None for the newest.
        reports: The reports folder.
        cache: Where features are looked up and kept; None for a folder that goes with the model.

    Raises:
        RunError: If there is no such run, or its files are missing or damaged.
    """
    classifier = commands.open_classifier(Path(reports), run)
    folder = tempfile.mkdtemp(prefix="tlpipe-") if cache is None else cache
    model = Model(classifier.run.id, classifier.class_names, Path(folder), classifier)
    if cache is None:
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


@contextmanager
def _folder(cache: str | Path | None) -> Iterator[Path]:
    """The cache folder; one that is gone afterwards if none is to be kept."""
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from images to features of a frozen backbone, cached by content.

    Args:
        backbone: A name from `tlpipe backbones`, or a `.keras` file.
        weights: "imagenet", "random", or a file.
        image_size: Pixels, or (height, width); None for the backbone's own.
        endpoint: Block or layer, several joined by "+"; None for the last feature map.
        pooling: "avg" or "max" over height and width.
        resize: "stretch", "pad" or "crop".
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".
        engine: "auto", "tensorflow" or "openvino".
        precision: "auto", "float32", "bfloat16" or "float16".
        cache: Folder where features are kept; None to keep none.
        random_state: Seed of random weights.

    Attributes:
        n_features_out_: Features per image.
    """

    def __init__(
        self,
        backbone: str = ExtractConfig.backbone,
        *,
        weights: str = ExtractConfig.weights,
        image_size: int | tuple[int, int] | None = None,
        endpoint: str | None = None,
        pooling: str = ExtractConfig.pooling,
        resize: str = ExtractConfig.resize,
        interpolation: str = ExtractConfig.interpolation,
        engine: str = "auto",
        precision: str = "auto",
        cache: str | Path | None = "cache",
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.endpoint = endpoint
        self.pooling = pooling
        self.resize = resize
        self.interpolation = interpolation
        self.engine = engine
        self.precision = precision
        self.cache = cache
        self.random_state = random_state

    def fit(self, X: Sequence[str | Path] | NDArray[Any], y: object = None) -> FeatureExtractor:
        """Find the backbone and learn its number of features; the images decide nothing.

        Args:
            X: Paths, or an array [n, height, width] or [n, height, width, channels], uint8.
            y: Not used.
        """
        self._n_features_out = self.n_features_out_ = self._compute(_source(X).take([0])).shape[1]
        return self

    def transform(self, X: Sequence[str | Path] | NDArray[Any]) -> NDArray[np.float32]:
        """Features of images.

        Args:
            X: Paths, or an array [n, height, width] or [n, height, width, channels], uint8.

        Returns:
            Shape [n, n_features_out_].

        Raises:
            DataError: If an image can't be read: a row can't be left out here.
        """
        check_is_fitted(self)
        return self._compute(_source(X))

    def _compute(self, source: ImageSource) -> NDArray[np.float32]:
        config = ExtractConfig(
            backbone=str(self.backbone),
            weights=str(self.weights),
            image_size=_size(self.image_size),
            endpoint=self.endpoint,
            pooling=self.pooling,
            resize=self.resize,
            interpolation=self.interpolation,
            engine=self.engine,
            precision=self.precision,
            seed=self.random_state,
        )
        with _folder(self.cache) as cache:
            return commands.features_of(source, config, cache)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _is_picture(image: Any) -> bool:
    """Whether something is an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], uint8."""
    right = isinstance(image, np.ndarray) and image.dtype == np.uint8
    return right and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4)))


def _source(images: Sequence[str | Path] | NDArray[Any]) -> ImageSource:
    """Images of a transformer's input.

    Raises:
        ValueError: If it is neither paths nor an array of images; scikit-learn's convention for bad input.
    """
    if isinstance(images, (list, tuple)) and images and all(_is_picture(image) for image in images):
        return ArraySource([(image[None], 1.0) for image in images])  # of any sizes
    array = np.asarray(images)
    if array.shape[:1] == (0,):
        raise ValueError("Found array with 0 sample(s), a minimum of 1 is required: there are no images")
    if array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4))):
        return ArraySource([(array, 1.0)])
    if array.ndim == 1 and array.dtype.kind in "UO" and all(isinstance(path, (str, Path)) for path in array.tolist()):
        return FileSource([Path(path) for path in array.tolist()])
    raise ValueError(
        "Expected paths, or a uint8 array [n, height, width] or [n, height, width, 1, 3 or 4], or a list of "
        "images. "
        f"Received: {array.dtype} of shape {list(array.shape)}. Reshape your data"
    )
