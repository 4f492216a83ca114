"""The table of backbones, against the networks that Keras builds."""

from __future__ import annotations

import importlib
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import FakeEngine

from pipeline import commands
from pipeline.backbones import BACKBONES, Backbone, cuts, get_backbone, open_backbone, weights_digest
from pipeline.backbones.build import build_network, load_network, load_tuned
from pipeline.backbones.graph import nodes
from pipeline.backbones.network import Network
from pipeline.config import ExtractConfig
from pipeline.errors import ConfigError, EndpointError, UnknownBackboneError, WeightsError
from pipeline.util import machine, runtime
from pipeline.util.memo import Memo

# Building these takes long, and their smaller sisters have the same structure.
LARGE = {
    *(f"efficientnetb{number}" for number in (4, 5, 6, 7)),
    *(f"efficientnetv2{size}" for size in "sml"),
    *(f"convnext{size}" for size in ("small", "base", "large", "xlarge")),
    "nasnetlarge",
    "inceptionresnetv2",
    "densenet201",
    "resnet152",
    "resnet152v2",
}
MIDDLE = {
    "nasnetmobile",
    "efficientnetb2",
    "efficientnetb3",
    "efficientnetv2b2",
    "efficientnetv2b3",
    "densenet169",
    "resnet101",
    "resnet101v2",
}

CUTS = {
    ("densenet121", "conv5"): ("pool4_pool", (7, 7, 512)),
    ("densenet121", "conv4"): ("pool3_pool", (14, 14, 256)),
    ("vgg16", "block5"): ("block4_pool", (14, 14, 512)),
    ("resnet50", "conv5"): ("conv4_block6_out", (14, 14, 1024)),
    ("mobilenet", "block13"): ("conv_pw_12_relu", (7, 7, 1024)),
    ("mobilenet", "conv_pw_13"): ("conv_dw_13_relu", (7, 7, 1024)),
    ("efficientnetb0", "block7"): ("block6d_add", (7, 7, 192)),
    ("efficientnetb0", "top"): ("block7a_project_bn", (7, 7, 320)),
}

_networks: dict[str, Network] = {}


def network_of(name: str) -> Network:
    if name not in _networks:
        row = BACKBONES[name]
        _networks[name] = build_network(row, (row.native_size, row.native_size))
    return _networks[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE | MIDDLE else name for name in BACKBONES]
)
def test_row_is_true(name: str) -> None:
    """Width, stride, blocks and cuts of the built network are those of its row; uint8 goes in, float32 comes out."""
    row = BACKBONES[name]
    network = build_network(row, (row.native_size, row.native_size))
    assert network.model.inputs[0].dtype == "uint8"
    last = network.model.outputs[0]
    assert last.shape[3] == row.width
    features = network.features(row.default_endpoint, "avg")
    assert tuple(features.outputs[0].shape) == (None, row.width)
    shapes = [tuple(network._tensor(block.name).shape[1:]) for block in row.blocks]
    sides = [shape[0] for shape in shapes]
    assert sides == sorted(sides, reverse=True)
    assert shapes[-1] == tuple(last.shape[1:])
    unfrozen = [network.unfreeze(features, block.name) for block in row.blocks]
    sizes = [len(item.depths) for item in unfrozen]
    assert sizes == sorted(set(sizes), reverse=True), "each block lies above the one before it"
    assert all(upper.depths.keys() < lower.depths.keys() for lower, upper in pairwise(unfrozen))
    assert {item.cut for item in unfrozen} <= set(cuts(features))


@pytest.mark.parametrize(("name", "blocks"), CUTS)
def test_cut_of_a_block(name: str, blocks: str) -> None:
    network = network_of(name)
    features = network.features(BACKBONES[name].default_endpoint, "avg")
    unfrozen = network.unfreeze(features, blocks)
    assert (unfrozen.cut, tuple(network.model.get_layer(unfrozen.cut).output.shape[1:])) == CUTS[name, blocks]
    assert unfrozen.cut not in unfrozen.depths


def test_layers_between_cut_and_block_stay_frozen() -> None:
    network = network_of("densenet121")
    features = network.features("conv4+conv5", "avg")
    unfrozen = network.unfreeze(features, "conv5")
    assert unfrozen.cut == "pool4_relu"  # the last tensor that decides the conv4 features as well
    assert "pool4_conv" not in unfrozen.depths
    assert "conv5_block1_1_conv" in unfrozen.depths


MODES = {"torch": "densenet121", "caffe": "resnet50", "tf": "mobilenet025"}


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_is_that_of_keras(mode: str, random: np.random.Generator) -> None:
    images = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    network = build_network(BACKBONES[MODES[mode]], (32, 32))
    tensor = [node.outputs[0] for node in nodes(network.model) if node.name in ("preprocessing", "flip")][-1]
    found = keras.Model(network.model.inputs[0], tensor)(images)
    expected = keras.applications.imagenet_utils.preprocess_input(images.astype(np.float32), mode=mode)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnetb0", "efficientnetv2b0", "convnexttiny")
        ),
    ],
)
def test_networks_with_preprocessing_inside(
    name: str, random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Keras builds around its own ImageNet weights gives the same as our graph with those weights."""
    from keras.src.utils import file_utils

    row = BACKBONES[name]
    function = getattr(keras.applications, row.function)
    arguments = {"include_top": False, "input_shape": (224, 224, 3)}
    drawn = function(weights=None, **arguments)
    for layer in drawn.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    file = tmp_path / "drawn.weights.h5"
    drawn.save_weights(file)
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(file))
    images = random.integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = np.asarray(function(weights="imagenet", **arguments)(images.astype(np.float32), training=False))
    network = build_network(row, (224, 224))
    network.model.load_weights(file)
    found = np.asarray(network.model(images, training=False))
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_joined_endpoints_are_the_single_ones_side_by_side(random: np.random.Generator) -> None:
    network = build_network(BACKBONES["mobilenet025"], (64, 64))
    images = random.integers(0, 256, (2, 64, 64, 3), np.uint8)
    for pooling in ("avg", "max"):
        single = [network.features(name, pooling)(images, training=False) for name in ("block11", "block13")]
        joined = network.features("block11+block13", pooling)(images, training=False)
        np.testing.assert_allclose(joined, np.concatenate(single, axis=1), rtol=1e-5)


def test_pooling(random: np.random.Generator) -> None:
    network = build_network(BACKBONES["mobilenet025"], (64, 64))
    images = random.integers(0, 256, (2, 64, 64, 3), np.uint8)
    maps = np.asarray(network.features("conv_pw_11_relu", "none")(images, training=False))
    assert maps.shape == (2, 4, 4, 128)
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        found = network.features("conv_pw_11_relu", pooling)(images, training=False)
        np.testing.assert_allclose(found, reduce(maps, axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("endpoint", "pooling", "word"),
    [
        ("conv99", "avg", "no block or layer 'conv99'"),
        ("blok13", "avg", "Did you mean block13"),
        ("block1+", "avg", "no block or layer ''"),
        ("block1+block2", "none", "needs --pooling avg or max"),
    ],
)
def test_bad_endpoints(endpoint: str, pooling: str, word: str) -> None:
    network = build_network(BACKBONES["mobilenet025"], (32, 32))
    with pytest.raises(EndpointError, match=word):
        network.features(endpoint, pooling)


def test_blocks_above_the_endpoint_are_refused() -> None:
    network = build_network(BACKBONES["mobilenet025"], (32, 32))
    with pytest.raises(EndpointError, match="above the endpoint"):
        network.unfreeze(network.features("block5", "avg"), "block13")


@pytest.mark.parametrize("name", ["mobilenet025", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_tuned_backbone_can_be_unfrozen_like_a_fresh_one(name: str, tmp_path: Path) -> None:
    """A model file remembers which layers were frozen; under another policy the same graph computes the same."""
    row = BACKBONES[name]
    fresh = build_network(row, (32, 32))
    features = fresh.features(row.default_endpoint, "avg")
    lowest, highest = row.blocks[2].name, row.blocks[-1].name
    expected = {blocks: fresh.unfreeze(features, blocks) for blocks in (highest, lowest, "all")}
    for layer in features.layers:
        layer.trainable = layer.name in expected[highest].depths
    keras.Model(features.inputs[0], keras.layers.Dense(2)(features.outputs[0])).save(tmp_path / "model.keras")
    top = fresh.top(row.default_endpoint)
    tuned = load_tuned(tmp_path / "model.keras", row, top)
    loaded = tuned.features(row.default_endpoint, "avg")
    assert {blocks: tuned.unfreeze(loaded, blocks) for blocks in expected} == expected
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    half = load_tuned(tmp_path / "model.keras", row, top, "mixed_bfloat16").features(row.default_endpoint, "avg")
    found, wide = np.asarray(half(images)), np.asarray(loaded(images))
    np.testing.assert_allclose(found, wide, atol=0.1 * np.abs(wide).max())


def test_names_do_not_depend_on_what_was_built_before() -> None:
    first, second = (build_network(BACKBONES["xception"], (71, 71)).model for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


def test_unknown_backbones() -> None:
    with pytest.raises(UnknownBackboneError, match="densenet121"):
        get_backbone("densenet112")
    with pytest.raises(UnknownBackboneError, match="tlpipe backbones"):
        get_backbone("zzz")


@pytest.mark.parametrize("row", BACKBONES.values(), ids=list(BACKBONES))
def test_images_below_the_least_size_are_refused(row: Backbone) -> None:
    with pytest.raises(ConfigError, match=f"takes {row.least_size} pixels or more"):
        open_backbone(row.name, "random", 0, (row.least_size - 1, 600))


class TestModelOfOnesOwn:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        keras.utils.set_random_seed(0)
        start = keras.Input((None, None, 3))
        one = keras.layers.Conv2D(4, 3, activation="relu", name="one")(start)
        two = keras.layers.Conv2D(5, 3, name="two")(one)
        top = keras.layers.Dense(7, name="top")(keras.layers.GlobalAveragePooling2D(name="mean")(two))
        keras.Model(start, top).save(tmp_path / "own.keras")
        return tmp_path / "own.keras"

    def test_it_gives_what_it_gives_in_keras(self, file: Path, random: np.random.Generator) -> None:
        images = random.integers(0, 256, (2, 16, 16, 3), np.uint8)
        pretrained = open_backbone(str(file), "imagenet", 0, (16, 16))
        assert pretrained.default_endpoint() == "two"
        loaded = keras.models.load_model(file)
        network = pretrained.network()
        np.testing.assert_allclose(network.model(images), loaded(images.astype(np.float32)), rtol=1e-4)
        assert network.features("two", "avg")(images).shape == (2, 5)
        assert network.features("top", "avg")(images).shape == (2, 7)
        assert network.unfreeze(network.features("two", "avg"), "two").cut == "one"

    def test_digest_is_of_graph_and_weights(self, file: Path, tmp_path: Path) -> None:
        model = keras.models.load_model(file)
        start = keras.Input((None, None, 3))
        one = keras.layers.Conv2D(4, 3, activation="tanh", name="one")(start)
        two = keras.layers.Conv2D(5, 3, name="two")(one)
        top = keras.layers.Dense(7, name="top")(keras.layers.GlobalAveragePooling2D(name="mean")(two))
        other = keras.Model(start, top)
        other.set_weights(model.get_weights())
        other.save(tmp_path / "other.keras")
        digests = {
            open_backbone(str(path), "imagenet", 0, (16, 16)).digest() for path in (file, tmp_path / "other.keras")
        }
        assert len(digests) == 2

    def test_code_in_it_is_not_run(self, tmp_path: Path) -> None:
        start = keras.Input((8, 8, 3))
        keras.Model(start, keras.layers.Lambda(lambda x: x * 2)(start)).save(tmp_path / "lambda.keras")
        with pytest.raises(WeightsError, match="can't be loaded"):
            load_network(tmp_path / "lambda.keras", (8, 8))

    def test_wrong_files_and_sizes(self, tmp_path: Path) -> None:
        (tmp_path / "bad.keras").write_bytes(b"PK no zip")
        with pytest.raises(WeightsError, match="bad.keras"):
            load_network(tmp_path / "bad.keras", (8, 8))
        with pytest.raises(WeightsError, match="There is no model"):
            open_backbone(str(tmp_path / "gone.keras"), "imagenet", 0, None)
        start = keras.Input((8, 8, 3))
        keras.Model(start, keras.layers.Conv2D(2, 3)(start)).save(tmp_path / "fixed.keras")
        with pytest.raises(ConfigError, match="--image-size 8x8"):
            load_network(tmp_path / "fixed.keras", (16, 16))
        with pytest.raises(ConfigError, match="brings its own weights"):
            open_backbone(str(tmp_path / "fixed.keras"), "random", 0, (8, 8))


class TestWeights:
    def test_random_weights_are_seeded(self, tmp_path: Path) -> None:
        digests = [open_backbone("mobilenet025", "random", seed, (32, 32)).digest() for seed in (0, 0, 1)]
        assert digests[0] == digests[1] != digests[2]

    def test_generators_of_the_caller_are_left_alone(self) -> None:
        np.random.seed(5)
        expected = np.random.random()
        np.random.seed(5)
        open_backbone("mobilenet025", "random", 0, (32, 32)).digest()
        assert np.random.random() == expected

    def test_same_arrays_in_any_file_have_the_same_digest(self, tmp_path: Path) -> None:
        source = open_backbone("mobilenet025", "random", 7, (32, 32))
        model = source.network().model
        model.save_weights(tmp_path / "a.weights.h5")
        model.save(tmp_path / "b.keras")
        keras.applications.MobileNet(weights=None, include_top=False, alpha=0.25, input_shape=(32, 32, 3))
        files = (tmp_path / "a.weights.h5", tmp_path / "b.keras")
        digests = {open_backbone("mobilenet025", str(path), 0, (48, 48)).digest() for path in files}
        assert digests == {source.digest()}

    def test_digest_is_remembered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        memo = Memo(tmp_path)
        digest = open_backbone("mobilenet025", "random", 0, (32, 32), memo).digest()
        monkeypatch.setattr("pipeline.backbones.pretrained.build_network", None)
        assert open_backbone("mobilenet025", "random", 0, (32, 32), memo).digest() == digest

    def test_digest_changes_with_a_weight(self) -> None:
        model = build_network(BACKBONES["mobilenet025"], (32, 32)).model
        before = weights_digest(model)
        arrays = model.get_weights()
        arrays[0].flat[0] += 1
        model.set_weights(arrays)
        assert weights_digest(model) != before

    def test_search_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        row = BACKBONES["mobilenet025"]
        ours, kerass = tmp_path / "ours", tmp_path / "keras"
        monkeypatch.setenv("TLPIPE_WEIGHTS", str(ours))
        monkeypatch.setenv("KERAS_HOME", str(kerass))
        expected = [
            kerass / "models" / "mobilenet_2_5_224_tf_no_top.h5",
            ours / "mobilenet025_imagenet_notop.h5",
            ours / "mobilenet_2_5_224_tf_no_top.h5",
        ]
        for path in expected:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            assert open_backbone(row.name, "imagenet", 0, None).source == path

    @pytest.mark.slow
    def test_file_names_and_addresses_are_those_of_keras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ask Keras for each file, and stop it where it would fetch."""
        from keras.src.utils import file_utils

        class AskedError(Exception):
            pass

        def ask(fname: str, origin: str, **_: object) -> None:
            raise AskedError(fname, origin)

        monkeypatch.setattr(file_utils, "get_file", ask)
        for row in BACKBONES.values():
            if row.name in LARGE and not row.name.startswith("densenet"):
                continue  # Keras builds the network before it asks
            with pytest.raises(AskedError) as asked:
                shape = (row.native_size, row.native_size, 3)
                getattr(keras.applications, row.function)(
                    weights="imagenet", include_top=False, input_shape=shape, **row.arguments
                )
            assert asked.value.args == (row.weights_file, row.weights_address)

    def test_without_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from keras.src.applications import mobilenet

        monkeypatch.delenv("TLPIPE_WEIGHTS", raising=False)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setattr(mobilenet, "BASE_WEIGHT_PATH", "http://127.0.0.1:9/")
        with pytest.raises(WeightsError) as caught:
            open_backbone("mobilenet025", "imagenet", 0, (32, 32)).digest()
        message = str(caught.value)
        for word in ("mobilenet_2_5_224_tf_no_top.h5", BACKBONES["mobilenet025"].weights_address, "$TLPIPE_WEIGHTS"):
            assert word in message
        assert "--weights random" in message
        assert capsys.readouterr().out == ""

    def test_download_from_a_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real download, from a server of this machine."""
        import functools
        import threading
        from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

        import h5py
        from keras.src.applications import mobilenet
        from keras.src.legacy.saving import legacy_h5_format
        from keras.src.utils import file_utils

        served = tmp_path / "served"
        served.mkdir()
        drawn = keras.applications.MobileNet(weights=None, include_top=False, alpha=0.25, input_shape=(32, 32, 3))
        with h5py.File(served / "mobilenet_2_5_224_tf_no_top.h5", "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, drawn)
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(served))
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        monkeypatch.delenv("TLPIPE_WEIGHTS", raising=False)
        home = tmp_path / "home"
        monkeypatch.setenv("KERAS_HOME", str(home))
        # Keras reads KERAS_HOME once, when it is imported.
        monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(home))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(mobilenet, "BASE_WEIGHT_PATH", f"http://127.0.0.1:{server.server_port}/")
            pretrained = open_backbone("mobilenet025", "imagenet", 0, (32, 32))
            pretrained.digest()
            server.shutdown()
        assert pretrained.source == home / "models" / "mobilenet_2_5_224_tf_no_top.h5"
        assert (home / "models" / "mobilenet_2_5_224_tf_no_top.h5").is_file()

    @pytest.mark.parametrize("damage", ["text", "torn", "another network"])
    def test_bad_files(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "weights.h5"
        if damage == "another network":
            model = keras.applications.MobileNet(weights=None, include_top=False, alpha=0.5, input_shape=(32, 32, 3))
            path = tmp_path / "other.weights.h5"
            model.save_weights(path)
        else:
            path = tmp_path / "bad.weights.h5"
            build_network(BACKBONES["mobilenet025"], (32, 32)).model.save_weights(path)
            path.write_bytes(b"no weights" if damage == "text" else path.read_bytes()[:5000])
        with pytest.raises(WeightsError, match="doesn't hold weights of mobilenet025"):
            open_backbone("mobilenet025", str(path), 0, (32, 32)).digest()

    def test_a_model_that_unpacks_to_too_much_is_not_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.weights.h5", bytes(8_000_000))
        monkeypatch.setattr(machine, "memory_limit", lambda: 10**6)
        with pytest.raises(WeightsError, match="bomb.keras .* unpacks to 8.0 MB"):
            open_backbone("mobilenet025", str(tmp_path / "bomb.keras"), 0, (32, 32)).digest()

    @pytest.mark.weights
    @pytest.mark.parametrize("name", ["densenet121", "mobilenet025", "mobilenetv2035"])
    def test_real_weights_load(self, name: str) -> None:
        network = open_backbone(name, "imagenet", 0, (96, 96)).network()
        features = np.asarray(
            network.features(BACKBONES[name].default_endpoint, "avg")(np.full((1, 96, 96, 3), 128, "u1"))
        )
        assert 0 < features.mean() < 10


def test_keras_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert runtime.keras_home() == tmp_path


def test_the_last_rate_here_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.commands.backbones import LEAST_TIMED, Rate, backbones, remember_rate

    def rates() -> dict[str, Any]:
        return {row["name"]: row["rate"] for row in backbones(tmp_path) if row["rate"]}

    def remember(images_per_second: float, n: int) -> None:
        rate = Rate(images_per_second, (224, 160), "openvino", "float32", machine.processor())
        remember_rate(tmp_path, "densenet121", rate, n)

    remember(1.0, LEAST_TIMED - 1)
    assert rates() == {}, "a few images tell no rate"
    for rate in (40.0, 44.5):
        remember(rate, LEAST_TIMED)
    (found,) = rates().values()
    assert list(rates()) == ["densenet121"]
    assert (found["images_per_second"], found["engine"], found["image_size"]) == (44.5, "openvino", (224, 160))
    monkeypatch.setattr(machine, "processor", lambda: "another one")
    assert rates() == {}, "of another machine that shares the cache"


def test_an_extract_is_timed_by_the_name_that_the_user_gave(
    cache: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pipeline.commands.backbones")
    monkeypatch.setattr(module, "LEAST_TIMED", 1)
    result = commands.extract(ExtractConfig("digits", backbone="hub:vit_base_patch16_224_imagenet"), cache)
    assert result.record.spec.backbone != "hub:vit_base_patch16_224_imagenet"
    rate = module.rate_here(Memo(cache), "hub:vit_base_patch16_224_imagenet")
    assert rate.images_per_second == pytest.approx(result.images_per_second)
