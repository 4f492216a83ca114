"""Presets of KerasHub: small networks with random weights, saved to folders, must give what KerasHub itself gives."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
from conftest import draw_shades

from pipeline import commands
from pipeline.backbones import cuts, open_backbone, tensor_of
from pipeline.backbones.hub import _check_class, is_preset, presets
from pipeline.backbones.parts import NETWORKS
from pipeline.backbones.pretrained import HubPreset
from pipeline.commands import TrainingOptions
from pipeline.commands.backbones import LEAST_TIMED, Rate, hub_presets, remember_rate
from pipeline.config import ExtractConfig, FinetuneConfig, FinetuneOptions, HeadConfig
from pipeline.errors import ConfigError, EndpointError, EngineError, UnknownBackboneError, WeightsError
from pipeline.extraction.engines import EngineChoice, choose, in_place_of_openvino, judge
from pipeline.extraction.plan import open_plan
from pipeline.finetuning import assemble
from pipeline.util import machine, runtime
from pipeline.util.memo import Memo

pytest.importorskip("keras_hub")
import keras_hub

models, layers = keras_hub.models, keras_hub.layers

SCALE, OFFSET = [1 / (255 * share) for share in (0.2, 0.25, 0.3)], [-2.0, -1.9, -1.8]
WORDS = {"vocabulary_size": 20, "embedding_dim": 16, "hidden_dim": 16, "num_layers": 1, "num_heads": 2}
TRANSFORMER = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16}
TOWER = {**TRANSFORMER, "intermediate_dim": 32, "image_shape": (32, 32, 3)}


def _siglip() -> Any:
    from keras_hub.src.models.siglip.siglip_text_encoder import SigLIPTextEncoder
    from keras_hub.src.models.siglip.siglip_vision_encoder import SigLIPVisionEncoder

    text = SigLIPTextEncoder(**WORDS, intermediate_dim=32, max_sequence_length=4)
    return models.SigLIPBackbone(SigLIPVisionEncoder(**TOWER), text)


def _clip() -> Any:
    from keras_hub.src.models.clip.clip_text_encoder import CLIPTextEncoder
    from keras_hub.src.models.clip.clip_vision_encoder import CLIPVisionEncoder

    text = CLIPTextEncoder(**WORDS, intermediate_dim=32, max_sequence_length=4)
    return models.CLIPBackbone(CLIPVisionEncoder(**TOWER), text, projection_dim=8)


def _metaclip2() -> Any:
    from keras_hub.src.models.metaclip_2.metaclip_2_text_encoder import MetaCLIP2TextEncoder
    from keras_hub.src.models.metaclip_2.metaclip_2_vision_encoder import MetaCLIP2VisionEncoder

    text = MetaCLIP2TextEncoder(**WORDS, intermediate_dim=32, max_sequence_length=4)
    return models.MetaCLIP2Backbone(MetaCLIP2VisionEncoder(**TOWER), text, projection_dim=8)


def _mit() -> Any:
    return models.MiTBackbone(
        layerwise_depths=[1, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(32, 32, 3),
        hidden_dims=[8, 16],
    )


def _cspnet() -> Any:
    return models.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 1, 2],
        stackwise_strides=[2, 2, 2],
        stackwise_num_filters=[8, 16, 16],
        block_ratio=[1.0, 0.5, 0.5],
        expand_ratio=[2.0, 1.0, 1.0],
        block_type="dark_block",
        stage_type="csp",
    )


def _efficientnet() -> Any:
    blocks = {"kernel_sizes": [3, 3], "num_repeats": [1, 2], "input_filters": [8, 8], "output_filters": [8, 16]}
    blocks |= {"expansion_ratios": [1, 2], "squeeze_and_excite_ratios": [0.25, 0.25], "strides": [1, 2]}
    return models.EfficientNetBackbone(
        **{f"stackwise_{name}": value for name, value in blocks.items()},
        stackwise_width_coefficients=[1.0] * 2,
        stackwise_depth_coefficients=[1.0] * 2,
        stackwise_block_types=["v1", "v1"],
        image_shape=(None, None, 3),
    )


def _mobilenet() -> Any:
    blocks = {"expansion": [[8, 8], [8]], "num_filters": [[8, 8], [16]], "kernel_size": [[3, 3], [3]]}
    blocks |= {"num_strides": [[2, 1], [2]], "se_ratio": [[0.25, None], [0.25]], "padding": [[1, 1], [1]]}
    return models.MobileNetBackbone(
        **{f"stackwise_{name}": value for name, value in blocks.items()},
        stackwise_num_blocks=[2, 1],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        output_num_filters=16,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=16,
    )


def _hgnet() -> Any:
    return models.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[8, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[[8, 8, 8, 1, 2, 3], [8, 8, 16, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=(None, None, 3),
    )


@dataclass(frozen=True)
class Kind:
    """A kind of network, and what is expected of it."""

    make: Callable[[], Any]
    converter: Any
    blocks: tuple[str, ...]
    prefix: int | None = None  # tokens before those of the patches


BLOCKS = ("stem", "block0", "block1", "block2")
KINDS = {
    "vit": Kind(
        lambda: models.ViTBackbone(**TRANSFORMER, mlp_dim=32, image_shape=(32, 32, 3)),
        layers.ViTImageConverter,
        BLOCKS,
        1,
    ),
    "dinov2": Kind(
        lambda: models.DINOV2Backbone(
            **TOWER, num_register_tokens=2, position_embedding_shape=(48, 48, 3), layer_scale_init_value=0.5
        ),
        layers.DINOV2ImageConverter,
        BLOCKS,
        3,
    ),
    "dinov3": Kind(
        lambda: models.DINOV3Backbone(**TOWER, num_register_tokens=2), layers.DINOV3ImageConverter, BLOCKS, 3
    ),
    "deit": Kind(
        lambda: models.DeiTBackbone(**TRANSFORMER, intermediate_dim=32, image_shape=(32, 32, 3)),
        layers.DeiTImageConverter,
        BLOCKS,
        2,
    ),
    "swin": Kind(
        lambda: models.SwinTransformerBackbone(
            image_shape=(32, 32, 3),
            patch_size=4,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
            qkv_bias=False,
        ),
        layers.SwinTransformerImageConverter,
        ("stem", "block0", "block1", "block2", "block3"),
        0,
    ),
    "siglip": Kind(_siglip, layers.SigLIPImageConverter, (*BLOCKS, "head"), 0),
    "clip": Kind(_clip, layers.CLIPImageConverter, BLOCKS, 1),
    "metaclip2": Kind(_metaclip2, layers.MetaCLIP2ImageConverter, BLOCKS, 1),
    "mit": Kind(_mit, layers.MiTImageConverter, ("stage0", "stage1")),
    "densenet": Kind(
        lambda: models.DenseNetBackbone([1, 2], compression_ratio=0.5, growth_rate=8, image_shape=(None, None, 3)),
        layers.DenseNetImageConverter,
        ("stage0", "stage1"),
    ),
    "resnet": Kind(
        lambda: models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 16, 16],
            stackwise_num_blocks=[1, 2, 1],
            stackwise_num_strides=[1, 2, 2],
            block_type="basic_block",
            image_shape=(None, None, 3),
        ),
        layers.ResNetImageConverter,
        ("stage0", "stage1", "stage2"),
    ),
    "efficientnet": Kind(_efficientnet, layers.EfficientNetImageConverter, ("stage0", "stage1")),
    "mobilenet": Kind(_mobilenet, layers.MobileNetImageConverter, ("stem", "stage0", "stage1", "stage2", "stage3")),
    "hgnetv2": Kind(_hgnet, layers.HGNetV2ImageConverter, ("stem", "stage0", "stage1")),
    "cspnet": Kind(_cspnet, layers.CSPNetImageConverter, ("stage0", "stage1", "stage2")),
    "vgg": Kind(
        lambda: models.VGGBackbone([1, 2, 1], [8, 8, 16]), layers.VGGImageConverter, ("stage0", "stage1", "stage2")
    ),
    "xception": Kind(
        lambda: models.XceptionBackbone(
            [[8, 8], [8, 16], [16, 16], [16, 16]], stackwise_pooling=[False, True, False, False]
        ),
        layers.XceptionImageConverter,
        ("stage0", "stage1", "stage2", "stage3"),
    ),
}
TRANSFORMERS = [name for name, kind in KINDS.items() if kind.prefix is not None]


SLOW = KINDS.keys() - {"vit", "dinov2", "resnet"}
MOST = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in KINDS]
WITH_TOKENS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TRANSFORMERS]


@dataclass(frozen=True)
class Saved:
    """A preset in a folder, and the backbone that was saved there."""

    folder: Path
    backbone: Any
    converter: Any

    def expected(self, images: np.ndarray) -> np.ndarray:
        """What KerasHub itself gives: its converter, then its backbone."""
        tower = getattr(self.backbone, "vision_encoder", self.backbone)
        scaled = self.converter(images.astype(np.float32))
        found = tower(dict.fromkeys(tower.input, scaled) if isinstance(tower.input, dict) else scaled)
        return np.asarray(list(found.values())[-1] if isinstance(found, dict) else found)


def save_preset(folder: Path, backbone: Any, converter: Any, **options: Any) -> Saved:
    usual = {"image_size": (32, 32), "scale": SCALE, "offset": OFFSET, "crop_to_aspect_ratio": False}
    made = converter(**{**usual, "interpolation": "bicubic", **options})
    backbone.save_to_preset(str(folder))
    made.save_to_preset(str(folder))
    return Saved(folder, backbone, made)


def jitter(model: Any) -> None:
    """Other weights than those that are drawn: zeros and ones would hide what is left out."""
    draw = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path and "position_embeddings" not in weight.path:
            weight.assign(np.asarray(weight) + draw.normal(0, 0.05, weight.shape))


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    @functools.cache
    def saved(name: str) -> Saved:
        keras.utils.set_random_seed(0)
        backbone = KINDS[name].make()
        if name in TRANSFORMERS:  # whose variances must stay above 0
            jitter(getattr(backbone, "vision_encoder", backbone))
        return save_preset(tmp_path_factory.mktemp("presets") / name, backbone, KINDS[name].converter)

    return saved


@pytest.fixture(scope="module")
def ready(preset: Callable[[str], Saved]) -> Callable[[str], HubPreset]:
    """A preset that is opened and loaded once, for tests that change nothing of it."""
    return functools.cache(lambda name: opened(preset(name)))


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (3, 32, 32, 3), np.uint8)


def opened(saved: Saved, image_size: tuple[int, int] | None = None, memo: Memo | None = None) -> HubPreset:
    found = open_backbone(f"hub:{saved.folder}", "imagenet", 0, image_size, memo)
    assert isinstance(found, HubPreset)
    return found


@pytest.mark.parametrize("name", MOST)
def test_it_gives_what_keras_hub_gives(
    name: str, preset: Callable[[str], Saved], ready: Callable[[str], HubPreset], images: np.ndarray
) -> None:
    """Taken apart or not, with the scaling inside; and so does the file that is saved of it."""
    saved, kind = preset(name), KINDS[name]
    found = ready(name)
    network, expected = found.network(), saved.expected(images)
    np.testing.assert_allclose(np.asarray(network.model(images)), expected, atol=1e-5 * np.abs(expected).max())
    assert found.row is not None
    assert tuple(block.name for block in found.row.blocks) == kind.blocks
    assert (found.name, found.image_size, found.interpolation, found.resize) == (name, (32, 32), "bicubic", "stretch")


@pytest.mark.parametrize("name", MOST)
def test_every_block_is_an_endpoint_and_a_cut(name: str, ready: Callable[[str], HubPreset], images: np.ndarray) -> None:
    """Each block starts above the one before it, and what is computed from its cut is what is computed from pixels."""
    network = ready(name).network()
    blocks = KINDS[name].blocks
    features = network.features(blocks[-1], "avg")
    unfrozen = [network.unfreeze(features, block) for block in blocks]
    sizes = [len(item.depths) for item in unfrozen]
    assert sizes == sorted(set(sizes), reverse=True)
    assert unfrozen[0].from_pixels
    assert all(one.cut in cuts(features) for one in unfrozen)
    for item in unfrozen[1:]:
        lower = keras.Model(features.inputs[0], tensor_of(features, item.cut))
        upper = keras.Model(tensor_of(features, item.cut), features.outputs[0])
        np.testing.assert_allclose(upper(lower(images)), features(images), rtol=1e-4, atol=1e-5)
    seen = [np.asarray(network.features(block, "none")(images)) for block in blocks]
    assert all(a.shape != b.shape or np.abs(a - b).max() > 1e-4 for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("name", MOST)
def test_a_saved_model_says_the_same(
    name: str, preset: Callable[[str], Saved], images: np.ndarray, tmp_path: Path
) -> None:
    """All its parts can be saved, though KerasHub saves them as one layer alone; also after they were trained."""
    from pipeline.backbones.build import load_tuned

    found = opened(preset(name))
    network = found.network()
    features = network.features(found.default_endpoint(), "avg")
    head = keras.layers.Dense(2)
    model = keras.Model(features.inputs[0], head(features.outputs[0]))
    for weight in model.trainable_weights:
        weight.assign(weight - 0.01)
    expected = np.asarray(model(images))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(np.asarray(loaded(images)), expected, atol=1e-5 * np.abs(expected).max())
    tuned = load_tuned(tmp_path / "model.keras", found.row, network.top(found.default_endpoint()))
    again = tuned.features(found.default_endpoint(), "avg")
    np.testing.assert_allclose(again(images), features(images), rtol=1e-4, atol=1e-5)
    for block in KINDS[name].blocks:
        ends = tuned.features(block, "none")
        sides = zip(ends.outputs[0].shape[1:], ends(images).shape[1:], strict=True)
        assert all(declared in (None, found) for declared, found in sides), "as a cut declares it, it is read"


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_pooling_of_tokens(name: str, ready: Callable[[str], HubPreset], images: np.ndarray) -> None:
    """The class token stands first; registers and the token of a teacher are no part of the means."""
    prefix = KINDS[name].prefix
    assert prefix is not None
    network = ready(name).network()
    block = [block for block in KINDS[name].blocks if block != "head"][-1]
    tokens = np.asarray(network.features(block, "none")(images))
    wanted = {"avg": tokens[:, prefix:].mean(1), "max": tokens[:, prefix:].max(1)}
    if prefix:
        wanted |= {"cls": tokens[:, 0], "cls+avg": np.concatenate([tokens[:, 0], wanted["avg"]], axis=1)}
    else:
        for pooling in ("cls", "cls+avg"):
            with pytest.raises(EndpointError, match=f"--pooling {re.escape(pooling)} needs a class token"):
                network.features(block, pooling)
    for pooling, expected in wanted.items():
        model = network.features(block, pooling)
        assert model.outputs[0].shape[1:] == expected.shape[1:]
        np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_maps_have_no_class_token(ready: Callable[[str], HubPreset]) -> None:
    with pytest.raises(EndpointError, match="needs a class token"):
        ready("resnet").network().features("stage2", "cls")


def test_several_blocks_stand_side_by_side(ready: Callable[[str], HubPreset], images: np.ndarray) -> None:
    network = ready("dinov2").network()
    parts = [network.features(f"block{number}", "cls+avg")(images) for number in (0, 2)]
    joined = network.features("block0+block2", "cls+avg")(images)
    np.testing.assert_allclose(joined, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-6)


class TestImageSizes:
    @pytest.mark.parametrize("name", ["dinov2", pytest.param("dinov3", marks=pytest.mark.slow)])
    def test_positions_are_brought_to_another_size_as_keras_hub_does_it(
        self, name: str, preset: Callable[[str], Saved], random: np.random.Generator
    ) -> None:
        saved = preset(name)
        images = random.integers(0, 256, (2, 64, 64, 3), np.uint8)
        other = models.Backbone.from_preset(str(saved.folder), image_shape=(64, 64, 3))
        scaled = images * np.float32(SCALE) + np.float32(OFFSET)
        expected = np.asarray(other(dict.fromkeys(other.input, scaled)))
        network = opened(saved, (64, 64)).network()
        assert expected.shape == (2, 3 + 64, 16)
        np.testing.assert_allclose(network.model(images), expected, atol=1e-5 * np.abs(expected).max())

    def test_convolutions_take_any(self, preset: Callable[[str], Saved], random: np.random.Generator) -> None:
        saved = preset("resnet")
        images = random.integers(0, 256, (2, 40, 56, 3), np.uint8)
        found = np.asarray(opened(saved, (40, 56)).network().model(images))
        expected = np.asarray(saved.backbone(images * np.float32(SCALE) + np.float32(OFFSET)))
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    def test_mit_takes_squares(self, preset: Callable[[str], Saved]) -> None:
        with pytest.raises(ConfigError, match="--image-size 64x144: .* takes square pictures alone"):
            opened(preset("mit"), (64, 144))

    @pytest.mark.parametrize("name", ["vit", pytest.param("clip", marks=pytest.mark.slow)])
    def test_others_are_refused(self, name: str, preset: Callable[[str], Saved]) -> None:
        with pytest.raises(ConfigError, match="--image-size 64x64: .*leave it out"):
            opened(preset(name), (64, 64))


class TestIdentity:
    def test_digest_is_of_weights_and_scaling(self, preset: Callable[[str], Saved], tmp_path: Path) -> None:
        saved = preset("vgg")
        same = save_preset(tmp_path / "same", saved.backbone, layers.VGGImageConverter)
        scaled = save_preset(tmp_path / "scaled", saved.backbone, layers.VGGImageConverter, scale=[1 / 127.5] * 3)
        other = KINDS["vgg"].make()
        others = save_preset(tmp_path / "others", other, layers.VGGImageConverter)
        assert opened(same).digest() == opened(saved).digest()
        assert len({opened(one).digest() for one in (saved, scaled, others)}) == 3

    def test_what_is_known_is_remembered(
        self, preset: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing heavy is loaded as long as the files look unchanged."""
        saved, memo = preset("vgg"), Memo(tmp_path)
        for path in saved.folder.iterdir():
            os.utime(path, (1e9, 1e9))
        facts = opened(saved, memo=memo).facts
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.backbones.hub.load_preset", None)
            assert opened(saved, memo=memo).facts == facts
        os.utime(saved.folder / "model.weights.h5", (1e9 + 1, 1e9 + 1))
        with monkeypatch.context() as patched, pytest.raises(TypeError):
            patched.setattr("pipeline.backbones.hub.load_preset", None)
            opened(saved, memo=memo)

    def test_how_pictures_are_resized(self, preset: Callable[[str], Saved], tmp_path: Path) -> None:
        backbone = preset("vgg").backbone
        crop = save_preset(
            tmp_path / "a", backbone, layers.VGGImageConverter, crop_to_aspect_ratio=True, interpolation="lanczos3"
        )
        pad = save_preset(tmp_path / "b", backbone, layers.VGGImageConverter, pad_to_aspect_ratio=True)
        assert [(one.resize, one.interpolation) for one in map(opened, (crop, pad))] == [
            ("crop", "lanczos"),
            ("pad", "bicubic"),
        ]


class TestNames:
    def test_a_folder_needs_no_prefix(self, preset: Callable[[str], Saved], tmp_path: Path) -> None:
        folder = preset("vgg").folder
        assert is_preset(str(folder))
        assert isinstance(open_backbone(str(folder), "imagenet", 0, None), HubPreset)
        assert not is_preset(str(tmp_path))
        assert not is_preset("densenet121")

    def test_unknown_presets(self) -> None:
        with pytest.raises(
            UnknownBackboneError, match="no preset 'vit_base_patch16_224_imagenett'.*Did you mean hub:vit_base"
        ):
            open_backbone("hub:vit_base_patch16_224_imagenett", "imagenet", 0, None)
        for name in ("hub:zzz", "hub:"):
            with pytest.raises(UnknownBackboneError, match="List them: tlpipe backbones"):
                open_backbone(name, "imagenet", 0, None)

    def test_networks_that_are_known_come_to_be_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """KerasHub lists some of their presets under other classes, too."""
        asked = []

        def loader(preset: str) -> SimpleNamespace:
            asked.append(preset)
            return SimpleNamespace(check_backbone_class=lambda: models.VGGBackbone)

        monkeypatch.setattr("keras_hub.src.utils.preset_utils.get_preset_loader", loader)
        names = [row["name"].removeprefix("hub:") for row in presets()]
        for name in names:
            _check_class(name)
        assert asked == names

    def test_text_models_are_refused_before_anything_is_fetched(self) -> None:
        with pytest.raises(ConfigError, match="is a BertBackbone, which takes no pictures"):
            open_backbone("hub:bert_tiny_en_uncased", "imagenet", 0, None)

    def test_other_weights_are_refused(self, preset: Callable[[str], Saved]) -> None:
        with pytest.raises(ConfigError, match="brings its own weights"):
            open_backbone(f"hub:{preset('vit').folder}", "random", 0, None)


def test_presets_are_asked_of_keras_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hub_presets(tmp_path)
    names = {row["name"]: row for row in rows}
    assert names["hub:vit_base_patch16_224_imagenet"]["endpoints"] == "block"
    assert names["hub:resnet_50_imagenet"]["parameters"] > 2e7
    assert {row["network"] for row in rows} == set(NETWORKS)
    assert not any(row["rate"] for row in rows)
    monkeypatch.setattr(runtime, "keras_hub", None)
    assert hub_presets(tmp_path) == rows, "remembered"
    name = "hub:resnet_50_imagenet"
    remember_rate(tmp_path, name, Rate(12.5, (224, 224), "openvino", "float32", machine.processor()), LEAST_TIMED)
    assert {row["name"]: row["rate"]["images_per_second"] for row in hub_presets(tmp_path) if row["rate"]} == {
        name: 12.5
    }
    monkeypatch.setattr(runtime, "installed", lambda _: False)
    assert hub_presets(tmp_path) == []


def test_every_network_that_is_known_is_tested() -> None:
    assert {kind.converter.backbone_cls.__name__ for kind in KINDS.values()} == set(NETWORKS)


class TestBadPresets:
    def test_text_model(self, tmp_path: Path) -> None:
        text = models.BertBackbone(
            vocabulary_size=20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=4
        )
        text.save_to_preset(str(tmp_path / "text"))
        with pytest.raises(ConfigError, match="is a BertBackbone, which takes no pictures"):
            open_backbone(f"hub:{tmp_path / 'text'}", "imagenet", 0, None)

    def test_no_image_converter(self, preset: Callable[[str], Saved], tmp_path: Path) -> None:
        preset("vgg").backbone.save_to_preset(str(tmp_path / "bare"))
        with pytest.raises(WeightsError, match="doesn't say how its pictures are prepared"):
            open_backbone(f"hub:{tmp_path / 'bare'}", "imagenet", 0, None)

    @pytest.mark.parametrize("file", ["config.json", "model.weights.h5"])
    def test_damage(self, file: str, preset: Callable[[str], Saved], tmp_path: Path) -> None:
        saved = save_preset(tmp_path / "bad", preset("vgg").backbone, layers.VGGImageConverter)
        content = (saved.folder / file).read_bytes()
        (saved.folder / file).write_bytes(content[: len(content) // 2])
        with pytest.raises(WeightsError, match="can't be loaded as a preset of KerasHub"):
            opened(saved)

    def test_keras_hub_is_missing(self, preset: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch) -> None:
        saved = preset("vgg")
        runtime.keras_hub.cache_clear()
        monkeypatch.setattr(runtime, "installed", lambda name: name != "keras_hub")
        with pytest.raises(ConfigError, match=r"need keras-hub; .* pip install 'tlpipe\[hub\]'"):
            opened(saved)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("vit", "float32"),
        ("dinov2", "bfloat16"),
        *(pytest.param(name, "float32", marks=pytest.mark.slow) for name in KINDS if name not in ("vit", "swin")),
    ],
)
def test_engines_compute_them(name: str, precision: str, ready: Callable[[str], HubPreset], tmp_path: Path) -> None:
    try:
        choice = choose("openvino", precision)
    except Exception as error:
        pytest.skip(str(error))
    found = ready(name)
    verdict = judge(choice, found.network, found.default_endpoint(), "avg", tmp_path / "graph")
    assert verdict.holds, verdict


def test_auto_takes_what_runs(
    preset: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where OpenVINO can't convert a graph, Keras computes it; the graph isn't tried again."""
    config = ExtractConfig("", backbone=f"hub:{preset('vit').folder}", engine="auto")
    with monkeypatch.context() as patched, caplog.at_level("INFO", logger="tlpipe"):
        refusing = Mock(side_effect=RuntimeError("No conversion rule found for operations: Odd"))
        patched.setattr("pipeline.extraction.engines.openvino._from_keras", refusing)
        plans = [open_plan(config, tmp_path) for _ in range(2)]
    assert {(plan.choice.engine, plan.spec.precision) for plan in plans} == {("tensorflow", "float32")}
    assert refusing.call_count == 1
    assert "operations: Odd; use --engine tensorflow, as --engine auto does now" in caplog.text
    given = open_plan(replace(config, engine="openvino", precision="float32"), tmp_path)
    assert given.choice.engine == "openvino", "what is asked for is never exchanged"


@pytest.mark.slow
def test_what_openvino_can_not_convert(ready: Callable[[str], HubPreset], tmp_path: Path) -> None:
    swin = ready("swin")
    with pytest.raises(EngineError, match=r"No conversion rule found .*; use --engine tensorflow"):
        judge(EngineChoice("openvino", "float32"), swin.network, "block3", "avg", tmp_path)
    assert judge(EngineChoice("tensorflow", "float32"), swin.network, "block3", "avg", tmp_path).holds
    other = in_place_of_openvino("auto", swin.network, "block3", "avg", tmp_path, None)
    assert other is not None
    assert other.engine == "tensorflow"
    assert in_place_of_openvino("auto", swin.network, "block0", "avg", tmp_path / "lower", None) is None


@pytest.mark.slow
def test_mixed_precision_of_keras(ready: Callable[[str], HubPreset], tmp_path: Path) -> None:
    found = ready("vit")
    assert judge(EngineChoice("tensorflow", "bfloat16"), found.network, "block2", "cls+avg", tmp_path).holds


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        pytest.param("vit", "block2", marks=pytest.mark.slow),
        pytest.param("dinov2", "block1", marks=pytest.mark.slow),
        ("resnet", "stage2"),
    ],
)
def test_losses_from_the_cut_are_those_end_to_end(
    name: str, blocks: str, preset: Callable[[str], Saved], random: np.random.Generator
) -> None:
    """As for DenseNet: twenty steps, with the layers below frozen in one model and cached in the other."""
    images = random.integers(0, 256, (40, 32, 32, 3), np.uint8)
    labels = random.integers(0, 3, 40)
    losses = []
    for from_images in (True, False):
        found = opened(preset(name))
        network = found.network()
        features = network.features(found.default_endpoint(), "avg")
        unfrozen = network.unfreeze(features, blocks)
        head = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(0))
        head.build((None, features.outputs[0].shape[-1]))
        made = assemble(features, unfrozen, [head], 3, from_images=from_images)
        assert not unfrozen.from_pixels
        inputs = images
        if not from_images:
            inputs = np.asarray(keras.Model(features.inputs[0], tensor_of(features, unfrozen.cut))(images))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.trained.compile(keras.optimizers.AdamW(1e-3), loss)
        steps = [slice(8 * (step % 5), 8 * (step % 5) + 8) for step in range(20)]
        losses.append([float(made.trained.train_on_batch(inputs[step], labels[step])) for step in steps])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0][0] != losses[0][-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_shades(tmp_path_factory.mktemp("data") / "shades")


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("vgg", "stage2"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("resnet", "stage2"), ("dinov2", "block2"), ("siglip", "block2"), ("swin", "block3"))
        ),
    ],
)
def test_all_the_way(name: str, blocks: str, preset: Callable[[str], Saved], data: Path, tmp_path: Path) -> None:
    """From pictures to an exported file, and the fine-tuned model as a backbone in its turn."""
    cache, reports, token = tmp_path / "cache", tmp_path / "reports", bool(KINDS[name].prefix)
    config = ExtractConfig(
        str(data), backbone=f"hub:{preset(name).folder}", pooling="cls+avg" if token else "avg", precision="float32"
    )
    extracted = commands.extract(config, cache)
    assert extracted.record.spec.backbone == name
    assert extracted.record.spec.resize == "stretch"
    head = commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(extracted.record.id))
    tuned = commands.finetune(
        FinetuneConfig(blocks, epochs=1, learning_rate=1e-3, layer_decay=0.5), cache, reports, FinetuneOptions(head.id)
    )
    assert tuned.trainable_parameters > 100
    answers = commands.predict(tuned.id, [str(data / "dark")], cache, reports)
    assert len(answers.images) == 40
    if name != "swin":  # which has no form in ONNX
        assert commands.export(tuned.id, "onnx", cache, reports).agreement == 1
    again = commands.extract(
        ExtractConfig(str(data), backbone=str(reports / tuned.id), pooling=config.pooling, precision="float32"), cache
    )
    assert again.record.spec.weights_digest != extracted.record.spec.weights_digest
    assert again.record.spec.endpoint == extracted.record.spec.endpoint
    if name != "vgg":  # the others are slow anyway
        head = commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(again.record.id))
        tuned = commands.finetune(FinetuneConfig(blocks, epochs=1), cache, reports, FinetuneOptions(head.id))
        assert not tuned.end_to_end


class _Hub(SimpleHTTPRequestHandler):
    """As much of Hugging Face's hub as fetching a file takes: ORG/NAME/resolve/main/FILE, with a commit and a digest."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name, _, file = self.path.lstrip("/").partition("/resolve/main/")
        path = Path(self.directory) / name / file
        found = bool(file) and path.is_file()
        content = path.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound" if path.parent.is_dir() else "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


OPEN = """
import sys
from pathlib import Path
from pipeline.backbones import open_backbone
from pipeline.errors import TlpipeError
from pipeline.util.memo import Memo
try:
    found = open_backbone(sys.argv[1], "imagenet", 0, None, Memo(Path(sys.argv[2])))
    print(found.name, found.digest())
except TlpipeError as error:
    print(type(error).__name__, error)
"""


def open_elsewhere(name: str, cache: Path, **environment: str) -> str:
    """Open a preset in a process of its own, as these libraries read their settings once."""
    command = [sys.executable, "-c", OPEN, name, str(cache)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_presets_are_fetched_once(preset: Callable[[str], Saved], tmp_path: Path) -> None:
    """From a server that speaks as Hugging Face's does; afterwards none is needed."""
    served = tmp_path / "served"
    shutil.copytree(preset("vit").folder, served / "tests" / "small-vit")
    models.BertBackbone(8, 1, 2, 8, 8, max_sequence_length=4).save_to_preset(str(served / "tests" / "text"))
    (served / "tests" / "text" / "model.weights.h5").unlink()

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = functools.partial(
            open_elsewhere,
            cache=tmp_path / "cache",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(tmp_path / "home"),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        fetched = run("hub:hf://tests/small-vit")
        text = run("hub:hf://tests/text")
        server.shutdown()
    assert fetched == f"small-vit {opened(preset('vit')).digest()}"
    assert text.startswith("ConfigError"), "it isn't fetched in vain"
    assert "BertBackbone, which takes no pictures" in text
    assert run("hub:hf://tests/small-vit") == fetched
    gone = run("hub:hf://tests/other")
    assert gone.startswith("WeightsError The preset hf://tests/other is not here and can't be fetched: ")
    assert gone.endswith("write it to a folder with save_to_preset, and give --backbone hub:FOLDER")


class _Kaggle(_Hub):
    """As much of Kaggle's interface as fetching a file of a version takes."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.path = f"/{asked['instanceSlug']}/resolve/main/{asked.get('path', '')}"
        self._answer(body=True)


@pytest.mark.slow
def test_presets_by_name_come_from_kaggle(preset: Callable[[str], Saved], tmp_path: Path) -> None:
    """A small network stands in for the one of that name."""
    name = "vit_base_patch16_224_imagenet"
    shutil.copytree(preset("vit").folder, tmp_path / "served" / name)
    handler = functools.partial(_Kaggle, directory=str(tmp_path / "served"))
    try:
        server = ThreadingHTTPServer(("localhost", 7777), handler)  # the one that Kaggle's own tests use
    except OSError as error:
        pytest.skip(f"port 7777 is not free: {error}")
    settings = {"KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLEHUB_CACHE": str(tmp_path / "home")}
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetched = open_elsewhere(f"hub:{name}", tmp_path / "cache", **settings)
        handle = f"kaggle://keras/vit/keras/{name}/4"
        by_handle = open_elsewhere(f"hub:{handle}", tmp_path / "cache", **settings)
        server.shutdown()
    assert fetched == f"{name} {opened(preset('vit')).digest()}"
    assert by_handle == fetched, "its version is no name"
    assert open_elsewhere(f"hub:{name}", tmp_path / "cache", **settings) == fetched
