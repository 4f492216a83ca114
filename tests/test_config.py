"""Options: what is legal, and that a spec's digest changes with every field."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ExtractConfig, FeatureSpec, ImageConfig, SplitConfig
from pipeline.errors import ConfigError
from pipeline.util.options import parse_image_size
from pipeline.util.sealed import decoded

OTHER: dict[str, Any] = {
    "backbone": "vgg16",
    "weights_digest": "1" * 32,
    "weights_seed": 3,
    "endpoint": "conv4",
    "pooling": "max",
    "image_size": (32, 48),
    "resize": "pad",
    "interpolation": "bilinear",
    "precision": "openvino-bfloat16",
    "dtype": "float16",
}

text = st.text(min_size=1, max_size=8)
sizes = st.tuples(st.integers(1), st.integers(1))
specs = st.builds(FeatureSpec, text, text, st.none() | st.integers(0), text, text, sizes, text, text, text, text)


@pytest.mark.parametrize("field", [field.name for field in fields(FeatureSpec)])
def test_digest_changes_with_every_field(spec: FeatureSpec, field: str) -> None:
    other = replace(spec, **{field: OTHER[field]})
    assert other.digest() != spec.digest()
    assert spec.differences(other) == {field: (getattr(spec, field), OTHER[field])}


def test_digest_is_the_same_in_every_version(spec: FeatureSpec) -> None:
    """It names folders that users keep: a change of it must be meant."""
    assert spec.digest() == "cfc26f67116e8decff8dc16616a9b56e"


@given(specs, specs)
def test_equal_digests_mean_equal_specs(one: FeatureSpec, other: FeatureSpec) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(specs)
def test_spec_round_trip(spec: FeatureSpec) -> None:
    assert decoded(FeatureSpec, spec.to_json()) == spec


@pytest.mark.parametrize("change", [{"pooling": 3}, {"image_size": ["a", 1]}, {"image_size": None}])
def test_tampered_spec_is_refused(spec: FeatureSpec, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        decoded(FeatureSpec, {**spec.to_json(), **change})


def test_extract_config_round_trip() -> None:
    config = ExtractConfig("here", image_size=(3, 4), views=2, augment="crop", splits=SplitConfig(0.1, 0.2, "val", 3))
    assert decoded(ExtractConfig, asdict(config)) == config


def test_image_size() -> None:
    assert parse_image_size("224") == (224, 224)
    assert parse_image_size("192x256") == (192, 256)


@pytest.mark.parametrize("size", ["", "x", "0", "-3", "1x2x3", "12.5", "5000", "²"])
def test_illegal_image_size(size: str) -> None:
    with pytest.raises(ConfigError, match="--image-size"):
        parse_image_size(size)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ImageConfig((1, 1), resize="squeeze"), "stretch, pad, crop"),
        (lambda: ImageConfig((1, 1), interpolation="bicubik"), "Did you mean bicubic"),
        (lambda: ImageConfig((1, 1), pixel_limit=0), "--pixel-limit"),
        (lambda: SplitConfig(val_fraction=1.0), "--val-fraction"),
        (lambda: SplitConfig(val_fraction=0.6, test_fraction=0.6), "nothing to"),
        (lambda: SplitConfig(test_from="test"), "train, val"),
        (lambda: ExtractConfig(views=-1), "--views"),
        (lambda: ExtractConfig(augment="flip"), "needs --views"),
        (lambda: ExtractConfig(views=1), "needs --augment"),
        (lambda: ExtractConfig(pooling="mean"), "avg, max, none"),
    ],
)
def test_illegal_options_name_what_is_legal(make: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make()
