"""Estimators for scikit-learn: features of images, heads on features, and runs as classifiers."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine, blobs
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import ConfigError, DataError, FeatureExtractor, HeadClassifier, extract, load_model, train_head
from pipeline.config import HeadConfig
from pipeline.extraction import plan
from pipeline.heads import make_head
from pipeline.store.rows import nothing


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as it is kept for OpenVINO, converted once for all tests."""
    cache = tmp_path_factory.mktemp("cache")
    make_extractor(cache).fit(np.zeros((1, 8, 8), np.uint8))
    (cache / "graphs").mkdir(exist_ok=True)  # another engine keeps none
    return cache / "graphs"


def make_extractor(cache: Path) -> FeatureExtractor:
    return FeatureExtractor("mobilenet025", weights="random", image_size=(32, 32), cache=cache)


@pytest.fixture
def extractor(graphs: Path, tmp_path: Path) -> FeatureExtractor:
    shutil.copytree(graphs, tmp_path / "cache" / "graphs")
    return make_extractor(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled, one entry for each time."""
    found: list[Any] = []
    open_engine = plan.open_engine

    def counting(*args: Any) -> Any:
        found.append(args)
        return open_engine(*args)

    monkeypatch.setattr(plan, "open_engine", counting)
    return found


def drawn(random: np.random.Generator, n: int) -> np.ndarray:
    return random.integers(0, 256, (n, 20, 20, 3), np.uint8)


@pytest.mark.parametrize("cached", [True, False])
def test_stays_compiled_between_calls(
    extractor: FeatureExtractor, compiled: list[Any], random: np.random.Generator, cached: bool
) -> None:
    if not cached:
        extractor.set_params(cache=None)
    images = drawn(random, 6)
    first = extractor.fit(images[:2]).transform(images[:2])
    all_of_them = extractor.transform(images)
    extractor.fit(images[3:])
    assert len(compiled) == 1
    np.testing.assert_array_equal(all_of_them[:2], first)
    assert len(np.unique(all_of_them, axis=0)) == 6


def test_copies_and_pickles_begin_without_the_network(
    extractor: FeatureExtractor, compiled: list[Any], random: np.random.Generator
) -> None:
    images = drawn(random, 2)
    expected = extractor.fit_transform(images)
    data = pickle.dumps(extractor)
    assert len(data) < 2000
    loaded = pickle.loads(data)
    np.testing.assert_array_equal(loaded.transform(images), expected)  # cached: nothing is compiled
    assert len(compiled) == 1
    clone(extractor).fit(drawn(random, 1))
    assert len(compiled) == 2


def test_other_options_open_another_network(
    extractor: FeatureExtractor, compiled: list[Any], random: np.random.Generator
) -> None:
    images = drawn(random, 2)
    assert extractor.fit_transform(images).shape == (2, 256)
    assert extractor.set_params(endpoint="block5").fit_transform(images).shape == (2, 64)
    assert len(compiled) == 2


def test_paths_arrays_and_pictures_together(extractor: FeatureExtractor, red_and_blue: Path, tmp_path: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))[::9]
    expected = extractor.fit(paths).transform(paths)
    pictures = [Image.open(path) for path in paths]
    mixed = [paths[0], np.asarray(pictures[1]), pictures[2], str(paths[3]), pictures[4]]
    np.testing.assert_array_equal(extractor.transform(mixed), expected)
    np.testing.assert_array_equal(extractor.transform(tuple(pictures)), expected)
    np.testing.assert_array_equal(extractor.transform([pictures[0].convert("RGBA"), *mixed[1:]]), expected)


def test_pictures_are_turned_upright(extractor: FeatureExtractor, random: np.random.Generator, tmp_path: Path) -> None:
    image = Image.fromarray(drawn(random, 1)[0][:12])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    found = extractor.fit([path]).transform([path, Image.open(path), image])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_transformer_of_arrays_and_paths(extractor: FeatureExtractor, red_and_blue: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))[:6]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    from_paths = extractor.fit(paths).transform(paths)
    assert from_paths.shape == (6, 256)
    assert extractor.n_features_out_ == 256
    assert list(extractor.get_feature_names_out()[:2]) == ["featureextractor0", "featureextractor1"]
    np.testing.assert_array_equal(extractor.transform([str(path) for path in paths]), from_paths)
    np.testing.assert_array_equal(extractor.transform(str(paths[0])), from_paths[:1])
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
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 8))], "float64 of shape .8, 8. as Image 1"),
        ([np.zeros((8, 8, 5), np.uint8)], "uint8 of shape .8, 8, 5. as Image 0"),
    ],
)
def test_wrong_input(extractor: FeatureExtractor, images: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        extractor.fit(images)


def test_not_fitted(extractor: FeatureExtractor) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        extractor.transform(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_torn_picture_is_named(extractor: FeatureExtractor, red_and_blue: Path, tmp_path: Path) -> None:
    path = sorted(red_and_blue.rglob("*.png"))[0]
    torn = tmp_path / "torn.png"
    torn.write_bytes(path.read_bytes()[:400])
    with Image.open(torn) as picture, pytest.raises(DataError, match=r"Image 1 \(.*torn.png\) can't be read"):
        extractor.fit([path, picture])


def test_unreadable_images_are_an_error(extractor: FeatureExtractor, red_and_blue: Path, tmp_path: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))[:3]
    extractor.fit(paths)
    with pytest.raises(DataError, match="Image 1 .*gone.png. can't be read: No such file"):
        extractor.transform([paths[0], tmp_path / "gone.png"])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="Image 1 .*bad.png. can't be read: not an image"):
        extractor.transform([paths[0], tmp_path / "bad.png"])


def test_of_unreadable_images_the_path_is_named_once(extractor: FeatureExtractor, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        extractor.fit([tmp_path / "gone.png"])
    assert str(caught.value) == f"Image 0 ({tmp_path}/gone.png) can't be read: No such file or directory"


# Of the closed-form heads; those of gradient steps are the same class, and slow.
@parametrize_with_checks(
    [HeadClassifier(head) for head in ("logreg", "ridge", "centroid", "knn5")],
    expected_failed_checks=lambda _: {
        "check_class_weight_classifiers": "weights of single classes are no option of a head, only 'balanced' is"
    },
)
def test_head_classifier_passes_the_checks_of_scikit_learn(estimator: HeadClassifier, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn5", "linear", "mlp8"])
def test_head_classifier_is_the_head(head: str) -> None:
    train, test = blobs(90, 3, 0), blobs(30, 3, 1)
    names = np.array(["alien", "bee", "cat"])
    options = {"epochs": 2} if head in ("linear", "mlp8") else {}
    classifier = HeadClassifier(head, **options).fit(train.features, names[train.labels])
    own, _ = make_head(HeadConfig(head, **options))
    own.fit(train, nothing(train), 3)
    np.testing.assert_allclose(
        classifier.predict_proba(test.features), own.predict_proba(test.features), rtol=0, atol=1e-6
    )
    assert classifier.classes_.tolist() == ["alien", "bee", "cat"]
    assert classifier.n_features_in_ == 13
    expected = names[own.predict_proba(test.features).argmax(axis=1)]
    assert classifier.predict(test.features).tolist() == expected.tolist()
    assert classifier.score(test.features, names[test.labels]) == np.mean(expected == names[test.labels])
    loaded = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(loaded.predict_proba(test.features), classifier.predict_proba(test.features))


@pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn5"])
def test_order_and_precision_of_rows_change_nothing(head: str) -> None:
    train, test = blobs(90, 2, 0), blobs(30, 2, 1)
    classifier = HeadClassifier(head).fit(train.features, train.labels)
    found = classifier.predict_proba(test.features)
    order = np.random.default_rng(0).permutation(90)
    again = HeadClassifier(head).fit(train.features[order].astype(np.float64), train.labels[order])
    np.testing.assert_allclose(again.predict_proba(test.features), found, rtol=0, atol=2e-4)
    np.testing.assert_allclose(classifier.predict_proba(test.features[::-1])[::-1], found, rtol=0, atol=1e-6)


def test_heads_and_options_in_a_search() -> None:
    train = blobs(90, 3, 0)
    model = make_pipeline(StandardScaler(), HeadClassifier())
    grid = [
        {"headclassifier__head": ["ridge"], "headclassifier__l2": np.array([1e-3, 0.1])},
        {"headclassifier__head": ["knn1", "knn5"], "headclassifier__standardize": [False]},
    ]
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(train.features, train.labels)
    assert len(search.cv_results_["mean_test_score"]) == 4
    assert search.best_score_ > 0.8
    assert search.predict_proba(train.features).shape == (90, 3)


def test_a_seed_may_be_a_generator() -> None:
    train = blobs(60, 2, 0)
    twice = [
        HeadClassifier("linear", epochs=1, random_state=np.random.RandomState(seed)).fit(train.features, train.labels)
        for seed in (3, 3)
    ]
    first, second = (one.predict_proba(train.features) for one in twice)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"head": "svm"}, ConfigError, "Unknown head 'svm'. Legal are logreg"),
        ({"head": "ridge", "epochs": 3}, ConfigError, "--epochs means nothing to ridge; its options are"),
        ({"head": "linear", "epochs": "many"}, TypeError, "epochs is 'many', of the type str; give int or None"),
        ({"head": "linear", "optimizer": "adan"}, ConfigError, "--optimizer is 'adan'; it can be adam, adamw, sgd"),
    ],
)
def test_wrong_options_of_a_head(options: dict[str, Any], kind: type[Exception], word: str) -> None:
    train = blobs(20, 2, 0)
    with pytest.raises(kind, match=word):
        HeadClassifier(**options).fit(train.features, train.labels)


def test_features_and_head_in_one_pipeline(extractor: FeatureExtractor, red_and_blue: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    assert cross_val_score(make_pipeline(extractor, HeadClassifier("ridge")), paths, labels, cv=2).mean() > 0.9


def test_a_run_as_a_classifier(red_and_blue: Path, tmp_path: Path, fake_engine: FakeEngine) -> None:
    features = extract(red_and_blue, cache=tmp_path / "cache", val_fraction=0.2)
    model = load_model(train_head(features, "ridge", reports=tmp_path / "reports"))
    assert model.cache == tmp_path / "cache"
    assert model.classes_.tolist() == ["blue", "red"]
    paths = sorted(red_and_blue.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    probabilities = model.predict_proba(paths)
    assert model.predict(paths).tolist() == labels
    assert model.score(paths, labels) == 1.0
    assert model.score(paths[:4], ["red", "red", "blue", "blue"]) == 0.5
    mixed = [Image.open(paths[0]), np.asarray(Image.open(paths[1])), paths[39]]
    np.testing.assert_allclose(model.predict_proba(mixed), probabilities[[0, 1, 39]], rtol=0, atol=1e-6)
