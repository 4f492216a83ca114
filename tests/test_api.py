"""tlpipe from Python, and as a scikit-learn transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import pipeline
from pipeline import FeatureExtractor, extract, load_features
from pipeline.errors import DataError


@pytest.fixture
def extractor(tmp_path: Path) -> FeatureExtractor:
    return FeatureExtractor("mobilenet025", weights="random", image_size=(32, 32), cache=tmp_path / "cache")


def test_extract_and_load(red_and_blue: Path, tmp_path: Path, fake_engine: FakeEngine) -> None:
    cache = tmp_path / "cache"
    result = extract(red_and_blue, cache=cache, views=1, augment="flip", val_fraction=0.3)
    features = load_features(result.record.id, cache=cache)
    n_train = int(((features.split == "train") & (features.view == 0)).sum())
    assert features.X.shape == (40 + n_train, 12)
    assert features.class_names == ("blue", "red")
    for path, label in zip(features.paths, features.y, strict=True):
        assert path.split("/")[0] == features.class_names[label]
    plain = load_features(cache=cache, views=0)
    assert len(plain.X) == len(plain.paths) == 40
    assert set(plain.split.tolist()) == {"train", "val", "test"}


def test_transformer_of_arrays_and_paths(extractor: FeatureExtractor, red_and_blue: Path) -> None:
    from PIL import Image

    paths = sorted(red_and_blue.rglob("*.png"))[:6]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    from_paths = extractor.fit(paths).transform(paths)
    assert from_paths.shape == (6, 256)
    assert extractor.n_features_out_ == 256
    assert list(extractor.get_feature_names_out()[:2]) == ["featureextractor0", "featureextractor1"]
    np.testing.assert_array_equal(extractor.transform([str(path) for path in paths]), from_paths)
    np.testing.assert_array_equal(extractor.transform(arrays), from_paths)
    np.testing.assert_array_equal(extractor.transform(paths[::-1] + paths[:1]), from_paths[[5, 4, 3, 2, 1, 0, 0]])


def test_transformer_without_cache(extractor: FeatureExtractor, random: np.random.Generator, tmp_path: Path) -> None:
    images = random.integers(0, 256, (3, 20, 20), np.uint8)
    expected = extractor.fit(images).transform(images)
    without = clone(extractor).set_params(cache=None)
    np.testing.assert_array_equal(without.fit_transform(images), expected)


def test_size_as_one_number(extractor: FeatureExtractor, random: np.random.Generator) -> None:
    images = random.integers(0, 256, (2, 20, 20), np.uint8)
    expected = extractor.fit(images).transform(images)
    np.testing.assert_array_equal(clone(extractor).set_params(image_size=32).fit(images).transform(images), expected)


def test_in_a_pipeline(extractor: FeatureExtractor, red_and_blue: Path) -> None:
    paths = np.array([str(path) for path in sorted(red_and_blue.rglob("*.png"))])
    labels = np.array([Path(path).parent.name for path in paths])
    model = make_pipeline(extractor, StandardScaler(), LogisticRegression())
    assert model.fit(paths[::2], labels[::2]).score(paths[1::2], labels[1::2]) > 0.9


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_mixin_order,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_scikit_learn_that_apply(check: Any) -> None:
    """Those that need no table of numbers; a transformer of images takes none."""
    check("FeatureExtractor", FeatureExtractor())


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (np.zeros((3, 8)), "Reshape your data"),
        (np.zeros((3, 8, 8, 3)), "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "0 sample"),
        ([], "0 sample"),
        ([1, 2], "Expected paths"),
    ],
)
def test_wrong_input(extractor: FeatureExtractor, images: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        extractor.fit(images)


def test_not_fitted(extractor: FeatureExtractor) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        extractor.transform(np.zeros((1, 8, 8, 3), np.uint8))


def test_unreadable_images_are_an_error(extractor: FeatureExtractor, red_and_blue: Path, tmp_path: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))[:3]
    extractor.fit(paths)
    with pytest.raises(DataError, match="Image 1 .*gone.png. can't be read: No such file"):
        extractor.transform([paths[0], tmp_path / "gone.png"])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="Image 1 .*bad.png. can't be read: not an image"):
        extractor.transform([paths[0], tmp_path / "bad.png"])


def test_all_is_complete_and_sorted() -> None:
    assert pipeline.__all__ == sorted(pipeline.__all__)
    assert all(hasattr(pipeline, name) for name in pipeline.__all__)
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.nothing
