"""Search: the pictures that are most like another, found by cached features, block by block."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine

from pipeline import commands
from pipeline.config import ExtractConfig
from pipeline.errors import CacheMismatchError, ConfigError, DataError, StoreError
from pipeline.store.records import load_dataset
from pipeline.store.shards import FeatureStore

SIZE = (32, 32)


@pytest.fixture
def extracted(red_and_blue: Path, fake_engine: FakeEngine, cache: Path) -> Any:
    return commands.extract(ExtractConfig(str(red_and_blue), image_size=SIZE), cache)


@pytest.mark.parametrize("block", [3, 1000])
def test_the_nearest_are_those_of_the_largest_cosine(
    block: int, extracted: Any, red_and_blue: Path, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("pipeline.commands.search"), "BLOCK", block)
    image = red_and_blue / "red" / "7.png"
    found = commands.search(str(image), str(red_and_blue), cache, reports, top=5)
    dataset = load_dataset(cache, extracted.record.dataset)
    store = FeatureStore(cache, extracted.record.spec)
    store.open()
    features = store.read(dataset.keys)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[list(dataset.locations).index("red/7.png")]
    order = np.argsort(-cosines)[:5]
    assert [one.path for one in found.nearest] == [dataset.locations[row] for row in order]
    np.testing.assert_allclose([one.similarity for one in found.nearest], cosines[order], atol=1e-6)
    assert found.nearest[0].path == "red/7.png"
    assert {one.label for one in found.nearest} == {"red"}
    assert (found.n, found.features) == (40, extracted.record.id)


def test_a_picture_from_elsewhere_is_computed_and_the_page_shows_it(
    extracted: Any, draw: Callable[..., Path], tmp_path: Path, cache: Path, reports: Path
) -> None:
    image = draw(tmp_path / "other" / "blue sky.png", colour=(50, 50, 210))
    found = commands.search(str(image), None, cache, reports)
    assert len(found.nearest) == 12
    assert {one.label for one in found.nearest} == {"blue"}
    assert found.page is not None
    text = found.page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/webp') == 13
    assert "The nearest of 40 pictures of colours" in text


def test_a_picture_that_was_replaced_is_not_shown_for_the_one_that_was_compared(
    extracted: Any, red_and_blue: Path, draw: Callable[..., Path], tmp_path: Path, cache: Path, reports: Path
) -> None:
    image = shutil.copy(red_and_blue / "red/7.png", tmp_path / "mine.png")
    near = [one.path for one in commands.search(str(image), None, cache, reports, top=3).nearest]
    draw(red_and_blue / near[1], colour=(0, 255, 0))
    (red_and_blue / near[2]).rename(red_and_blue / "red" / "moved.png")
    found = commands.search(str(image), None, cache, reports, top=3)
    assert [one.path for one in found.nearest] == near
    assert found.page is not None
    text = found.page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/webp') == 3
    assert near[1] not in text and near[2] in text
    assert "1 of the nearest can&#39;t be shown any more" in text


def test_without_the_pictures_there_is_an_answer_and_no_page(
    extracted: Any, red_and_blue: Path, tmp_path: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = shutil.copy(red_and_blue / "red/0.png", tmp_path / "mine.png")
    shutil.rmtree(red_and_blue)
    found = commands.search(str(image), str(red_and_blue), cache, reports)
    assert found.nearest[0].similarity == pytest.approx(1.0)
    assert found.page is None
    assert "There is no page" in caplog.text
    assert found.to_json()["page"] is None


def test_what_can_not_be_searched(
    red_and_blue: Path, fake_engine: FakeEngine, cache: Path, reports: Path, tmp_path: Path
) -> None:
    image = str(red_and_blue / "red/0.png")
    with pytest.raises(StoreError, match=r"has no features in .* yet; make some with: tlpipe extract"):
        commands.search(image, str(red_and_blue), cache, reports)
    commands.extract(ExtractConfig(str(red_and_blue), image_size=SIZE), cache)
    with pytest.raises(ConfigError, match="--top is 0"):
        commands.search(image, None, cache, reports, top=0)
    with pytest.raises(DataError, match="holds 20 pictures; name one"):
        commands.search(str(red_and_blue / "red"), None, cache, reports)
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(DataError, match="can't be read"):
        commands.search(str(bad), None, cache, reports)


def test_features_of_another_backbone_are_refused(
    extracted: Any, red_and_blue: Path, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conftest.FakePretrained.digest", lambda _: "1" * 32)
    with pytest.raises(CacheMismatchError, match="is not that which gave the features"):
        commands.search(str(red_and_blue / "red/0.png"), None, cache, reports)


def test_only_pictures_with_features_are_counted(
    red_and_blue: Path, fake_engine: FakeEngine, draw: Callable[..., Path], tmp_path: Path, cache: Path, reports: Path
) -> None:
    (red_and_blue / "red" / "bad.png").write_bytes(b"no image")
    commands.extract(ExtractConfig(str(red_and_blue), image_size=SIZE), cache)
    image = str(draw(tmp_path / "mine.png", colour=(50, 50, 210)))
    assert commands.search(image, None, cache, reports).n == 40
    for shard in (cache / "features").rglob("*.h5"):
        shard.unlink()
    with pytest.raises(StoreError, match="has no features any more; make them again with: tlpipe extract"):
        commands.search(image, None, cache, reports)
