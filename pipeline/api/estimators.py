"""Estimators for scikit-learn: features of images, and heads on features."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.api.images import Images, source_of
from pipeline.api.loading import USUAL
from pipeline.api.options import checked
from pipeline.config import ExtractConfig, HeadConfig, user_cache
from pipeline.data import KEY_DTYPE, ImageSource
from pipeline.extraction.plan import Plan, features_of, open_plan
from pipeline.heads import load_head, make_head
from pipeline.store.rows import Part, nothing
from pipeline.store.shards import FeatureStore
from pipeline.util.remote import shared


@dataclass(frozen=True)
class _Opened:
    """A plan whose engine stays compiled, and what it was opened for."""

    config: ExtractConfig
    cache: str | Path | None
    plan: Plan

    def features(self, source: ImageSource, locations: list[str]) -> NDArray[np.floating]:
        """Features of images, which are kept only if there is a cache."""
        if self.cache is not None:
            return features_of(self.plan, source, locations)
        with tempfile.TemporaryDirectory(prefix="tlpipe-") as folder:
            # The engine and its graph stay; features go.
            store = FeatureStore(Path(folder), self.plan.spec)
            return features_of(replace(self.plan, store=store), source, locations)


@dataclass(eq=False, repr=False)  # whose __init__ only stores, as scikit-learn wants it
class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from images to features of a frozen backbone, cached by content.

    The network is compiled once, when it is first needed, and then kept; a copy or a pickle compiles its own.

    Args:
        backbone: Network that computes the features: a name from `tlpipe backbones`, or a `.keras` or `.onnx` file.
        weights: Weights of the backbone: "imagenet", "random", or a file.
        image_size: Size to which images are resized, in pixels, or (height, width); None for the backbone's own.
        endpoint: Block or layer whose output becomes the features, several joined by "+"; None for the last feature
            map.
        pooling: How each feature map (or the tokens of a transformer) is pooled: "avg", "max", "cls" (the class token
            alone) or "cls+avg".
        resize: How pictures are fitted to the image size: "stretch", "pad" or "crop"; None for the backbone's own,
            usually "stretch".
        interpolation: How pixels are interpolated: "bicubic", "bilinear", "nearest" or "lanczos"; None for the
            backbone's own, usually "bicubic".
        mean: Mean of red, green and blue (0 to 1) that an ONNX file expects to be subtracted.
        std: Standard deviation of red, green and blue (0 to 1) by which an ONNX file expects them to be divided.
        engine: Library that computes the features: "auto", "tensorflow", "openvino", "jax" or "onnxruntime".
        precision: Numeric precision of the computation: "auto", "float32", "bfloat16", "float16" or "int8".
        cache: Folder where features are kept; "auto" for the one that commands use; None to keep none.
        random_state: Seed for random weights.

    Attributes:
        n_features_out_: Number of features per image.
    """

    backbone: str = ExtractConfig.backbone
    _: KW_ONLY
    weights: str = ExtractConfig.weights
    image_size: int | tuple[int, int] | None = None
    endpoint: str | None = None
    pooling: str = ExtractConfig.pooling
    resize: str | None = ExtractConfig.resize
    interpolation: str | None = ExtractConfig.interpolation
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    engine: str = ExtractConfig.engine
    precision: str = ExtractConfig.precision
    cache: str | Path | None = USUAL
    random_state: int = 0

    def fit(self, X: Images, y: object = None) -> FeatureExtractor:
        """Find the backbone and learn its number of features; the images decide nothing.

        Args:
            X: As for `transform`.
            y: Not used.
        """
        source, locations = source_of(X)
        self._n_features_out = self.n_features_out_ = self._compute(source.take([0]), locations[:1]).shape[1]
        return self

    def transform(self, X: Images) -> NDArray[np.float32]:
        """Features of images.

        Args:
            X: Paths, uint8 arrays of any size and Pillow images, in any mixture; or one uint8 array
                [n, height, width] or [n, height, width, channels].

        Returns:
            Shape [n, n_features_out_].

        Raises:
            DataError: If an image can't be read, as no row may be missing here.
            ValueError: If X is none of these.
        """
        check_is_fitted(self)
        return self._compute(*source_of(X))

    def _compute(self, source: ImageSource, locations: list[str]) -> NDArray[Any]:
        options = self.get_params(deep=False)
        del options["cache"]
        options |= {"backbone": str(self.backbone), "weights": str(self.weights), "seed": options.pop("random_state")}
        config = ExtractConfig(**checked(options, ExtractConfig))
        opened: _Opened | None = getattr(self, "_opened", None)
        if opened is None or (opened.config, opened.cache) != (config, self.cache):
            opened = self._opened = self._open(config)
        return opened.features(source, locations)

    def _open(self, config: ExtractConfig) -> _Opened:
        if self.cache is not None:
            folder = user_cache() if self.cache == USUAL else shared(str(self.cache))
            return _Opened(config, self.cache, open_plan(config, folder))
        folder = Path(tempfile.mkdtemp(prefix="tlpipe-"))
        opened = _Opened(config, None, open_plan(config, folder))
        weakref.finalize(opened, shutil.rmtree, folder, ignore_errors=True)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_opened"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


@dataclass(eq=False, repr=False)
class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Any head as a scikit-learn classifier of features [n, d].

    It is fitted on all rows it is given. What `train_head` would choose on val keeps a fixed value here, so leave such
    choices to scikit-learn's own search. None stands for the default of the kind of head; an option that the kind of
    head doesn't have is refused by `fit`.

    Args:
        head: "logreg", "ridge", "centroid", "knn20", "linear", "mlp512-128" or "bn-mlp50"; other numbers will do.
        epochs: Maximum number of passes over the rows.
        batch_size: Approximate number of rows per training step.
        learning_rate: Learning rate at the start, from which the schedule may lower it.
        optimizer: Optimizer that trains the head: "adam", "adamw" or "sgd".
        schedule: How the learning rate changes during training: "plateau", "cosine" or "none".
        patience: Epochs without a lower loss after which training stops; with "cosine" it never stops early.
        dropout: Dropout rate after each hidden layer.
        label_smoothing: Share of each label that is spread evenly over all classes.
        l2: L2 penalty: half the sum of squared weights, times this, is added to the mean loss; with "adamw", the
            weight decay.
        class_weight: What counts the same in the loss: every class ("balanced"), or every row ("none").
        standardize: Whether to scale each feature to mean 0 and standard deviation 1.
        l2_normalize: Whether to scale the features of each row to the same length.
        random_state: Seed for initial weights, dropout and the order of rows.

    Attributes:
        classes_: The labels, sorted.
        n_features_in_: Number of features per row.
        config_: The head's settings, with defaults filled in.
    """

    head: str = "logreg"
    _: KW_ONLY
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    patience: int | None = None
    dropout: float | None = None
    label_smoothing: float | None = None
    l2: float | None = None
    class_weight: str | None = None
    standardize: bool | None = None
    l2_normalize: bool | None = None
    random_state: int | np.random.RandomState | None = 0

    def fit(self, X: Any, y: Any) -> HeadClassifier:
        """Fit the head.

        Args:
            X: Features, shape [n, d].
            y: Labels of any kind, shape [n].

        Raises:
            ConfigError: For an unknown head, an option it doesn't have, or an illegal value.
            TypeError: For a value of another type.
            ValueError: If X and y are not features and labels of two classes or more.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes[0]!r}; a classifier needs two or more classes")
        head, self.config_ = make_head(self._config())
        keys = np.array([str(row) for row in range(len(X))], KEY_DTYPE)
        part = Part(X, labels.astype(np.int64), keys, np.zeros(len(X), np.int64))
        head.fit(part, nothing(part), len(classes))
        self._head, self.classes_ = head, classes
        return self

    def _config(self) -> HeadConfig:
        options = self.get_params(deep=False)
        given = options.pop("random_state")
        seed = given if isinstance(given, (int, np.integer)) else check_random_state(given).randint(2**31 - 1)
        head = options.pop("head")
        if not isinstance(head, str):
            raise TypeError(f"head is of the type {type(head).__name__}; give a name, such as mlp512-128")
        return HeadConfig(head, **checked({**options, "seed": seed}, HeadConfig))

    def predict_proba(self, X: Any) -> NDArray[np.floating]:
        """Probabilities [n, classes] of features [n, d], in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        return self._head.predict_proba(X)

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels [n] of features [n, d]."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def __getstate__(self) -> dict[str, Any]:
        """The state, with the head as the files that it saves, which all kinds have."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "_head" in state:
            with tempfile.TemporaryDirectory(prefix="tlpipe-") as folder:
                state.pop("_head").save(Path(folder))
                state["_files"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            with tempfile.TemporaryDirectory(prefix="tlpipe-") as folder:
                for name, data in files.items():
                    (Path(folder) / name).write_bytes(data)
                self._head = load_head(Path(folder), self.config_)
