"""Where a backbone's weights come from, and the digest of the arrays that were loaded."""

from __future__ import annotations

import os
import random
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbones.build import build_network, check_image_size, load_network, load_tuned
from pipeline.backbones.catalogue import BACKBONES, Anatomy, Backbone, Block, get_backbone
from pipeline.backbones.graph import weights_digest
from pipeline.backbones.hub import PREFIX, HubFacts, facts_of, folder_of, is_preset, load_preset
from pipeline.backbones.network import Network, unknown_layer
from pipeline.backbones.onnx_file import SUFFIX as ONNX_SUFFIX
from pipeline.backbones.onnx_file import OnnxFile, is_onnx, open_onnx
from pipeline.backbones.scaling import INTERPOLATION, RESIZE
from pipeline.config import FeatureSpec
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.util import runtime
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp
from pipeline.util.sealed import decoded, read_json
from pipeline.util.text import first_line, sides

if TYPE_CHECKING:
    import keras

WEIGHTS_FOLDER = "TLPIPE_WEIGHTS"
MODEL_FILE = "model.keras"  # of a fine-tuned run


def keras_file(row: Backbone) -> Path:
    """Where Keras keeps the ImageNet weights of a backbone once it has fetched them."""
    return runtime.keras_home() / "models" / row.weights_file


def find_imagenet(row: Backbone) -> Path | None:
    """The file with ImageNet weights: in $TLPIPE_WEIGHTS, else in Keras's own cache, else None."""
    candidates = [keras_file(row)]
    if folder := os.environ.get(WEIGHTS_FOLDER):
        candidates = [Path(folder) / row.weights_file, Path(folder) / f"{row.name}_imagenet_notop.h5", *candidates]
    return next((path for path in candidates if path.is_file()), None)


def fetch_imagenet(row: Backbone) -> Path:
    """Let Keras fetch the ImageNet weights of a backbone, and check them.

    Raises:
        WeightsError: If they can't be fetched, with what to do instead.
    """
    function = getattr(runtime.keras().applications, row.function)
    shape = (row.native_size, row.native_size, 3)
    try:
        # Where the folder isn't there yet, Keras would quietly take another one.
        runtime.keras_home().mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # Keras draws its progress on standard output
            function(weights="imagenet", include_top=False, input_shape=shape, **row.arguments)
    except Exception as error:  # Keras raises a bare Exception where the network fails
        raise WeightsError(
            f"The ImageNet weights of {row.name} are not here and can't be fetched: {first_line(error)}. "
            f"Put {row.weights_file} from {row.weights_address} into the folder that ${WEIGHTS_FOLDER} names, "
            "or go without: --weights random"
        ) from error
    return keras_file(row)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let Keras draw the same weights each time, and put back the generators of Python and NumPy."""
    states = random.getstate(), np.random.get_state()
    runtime.keras().utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@dataclass
class Pretrained:
    """A backbone with its weights, loaded when they are needed.

    Attributes:
        name: Name in the table, or of a model file.
        row: Row in the table, or the blocks of a preset; None for a model file.
        source: The file of the weights or of the whole model; "random", or "imagenet" if that is still to be fetched.
        seed: Seed of random weights.
        image_size: (height, width), pixels.
        memo: Where the digest is remembered, so that features are found again without loading a network.
        tuned: Endpoint and highest layer of a fine-tuned backbone; None for others.
        resize: How pictures are brought to the size, unless options say otherwise.
        interpolation: How pixels are interpolated, unless options say otherwise.
    """

    name: str
    row: Anatomy | None
    source: Path | str
    seed: int
    image_size: tuple[int, int]
    memo: Memo | None = None
    tuned: tuple[str, str] | None = None
    resize: str = RESIZE
    interpolation: str = INTERPOLATION
    _networks: dict[str, Network] = field(default_factory=dict, repr=False)

    def digest(self) -> str:
        """Digest of the weight arrays as loaded; of a model file, of its graph as well.

        Raises:
            WeightsError: If the weights can't be fetched or loaded.
        """
        self._fetch()
        kind, stamped = f"weights of {self.name} in keras {runtime.version('keras')}", time.time_ns()
        if isinstance(self.source, str):
            kind += f", {self.source} {self.seed}"
            if self.source == "random" and (backend := runtime.keras_backend()) == "jax":
                kind += f" on {backend}"  # whose generator draws other weights
            known = self.memo.recall_text(kind) if self.memo else None
        else:
            stamp = Stamp.of(self.source)
            known = self.memo.recall(kind, {self.source: stamp}).get(self.source) if self.memo else None
        if known:
            return known
        model = self.network().model
        digest = weights_digest(model)
        if self.row is None:
            with zipfile.ZipFile(self.source) as file:
                digest = digest_of(digest.encode() + file.read("config.json"))
        if self.memo and isinstance(self.source, str):
            self.memo.remember_text(kind, digest)
        elif self.memo and isinstance(self.source, Path):
            self.memo.remember(kind, {self.source: (stamp, digest)}, stamped)
        return digest

    def default_endpoint(self) -> str:
        """Name of the last block, or of the last layer with height and width in a model of one's own.

        A fine-tuned backbone ends where its head took the features.
        """
        if self.tuned:
            return self.tuned[0]
        return self.row.default_endpoint if self.row else self.network().last_map()

    def network(self, policy: str = "float32") -> Network:
        """The backbone as a graph, with its weights.

        Args:
            policy: Keras dtype policy: "float32", "mixed_float16" or "mixed_bfloat16".

        Raises:
            WeightsError: If the file doesn't hold weights of this backbone.
        """
        if policy not in self._networks:
            self._networks[policy] = self._load(policy)
            if self.memo and self.row:
                names = [layer.name for layer in self._networks[policy].model.layers]
                self.memo.remember_text(self._layers_name(), "\n".join(names))
        return self._networks[policy]

    def check_name(self, option: str, name: str) -> None:
        """Refuse a name that no block and no layer has, if that can be told without building the network.

        Layers are known once the network was built with the same memo.

        Args:
            option: Where the name was given.
            name: The name.

        Raises:
            EndpointError: With near names.
        """
        if self.row is None or self.row.block(name) is not None or self.memo is None:
            return
        known = self.memo.recall_text(self._layers_name())
        if known is not None and name not in known.split("\n"):
            raise unknown_layer(self.row, option, name, known.split("\n"))

    def _layers_name(self) -> str:
        return f"layers of {self.name} in keras {runtime.version('keras')}"

    def _fetch(self) -> None:
        if self.source == "imagenet" and isinstance(self.row, Backbone):
            self.source = fetch_imagenet(self.row)

    def _load(self, policy: str) -> Network:
        self._fetch()
        if self.tuned:
            return load_tuned(Path(self.source), self.row, self.tuned[1], policy)
        if self.row is None:
            return load_network(Path(self.source), self.image_size, policy)
        if not isinstance(self.row, Backbone):
            raise TypeError(f"{self.row.name} is no row of the table")
        if isinstance(self.source, str):
            with _seeded(self.seed):
                return build_network(self.row, self.image_size, policy)
        network = build_network(self.row, self.image_size, policy)
        _load_file(network.model, self.source, self.name)
        return network


@dataclass
class HubPreset(Pretrained):
    """A preset of KerasHub, in a folder.

    Attributes:
        facts: What is known of it.
    """

    facts: HubFacts = field(kw_only=True)

    def digest(self) -> str:
        """Digest of its weights, its configuration, and how it scales pixels."""
        return self.facts.digest

    def _layers_name(self) -> str:
        return f"layers of the preset {self.facts.digest} in keras {runtime.version('keras')}"

    def _load(self, policy: str) -> Network:
        return load_preset(Path(self.source), self.image_size, policy)[0]


def _open_preset(name: str, image_size: tuple[int, int] | None, memo: Memo | None) -> HubPreset:
    """Open a preset of KerasHub, whose network is loaded only if what must be known of it isn't remembered."""
    folder = folder_of(name, memo)
    facts, network = facts_of(folder, image_size, memo)
    words = [word for word in name.removeprefix(PREFIX).split("/") if word and not word.isdecimal()]  # without version
    plain = re.sub(r"[^\w.-]+", "_", words[-1] if words else folder.name)
    return HubPreset(
        plain,
        Anatomy(plain, facts.blocks),
        folder,
        0,
        facts.image_size,
        memo,
        resize=facts.resize,
        interpolation=facts.interpolation,
        facts=facts,
        _networks={"float32": network} if network else {},
    )


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    try:
        if path.suffix == ".keras":
            other = runtime.keras().models.load_model(path, compile=False, safe_mode=True)
            # A model that was trained further has a head above the backbone's own arrays.
            arrays = other.get_weights()[: len(model.get_weights())]
            model.set_weights(arrays)
        else:
            model.load_weights(path)
    except Exception as error:  # h5py, Keras and zipfile raise many kinds
        raise WeightsError(
            f"{path} doesn't hold weights of {name} without its classifier, or is damaged: {first_line(error)}. "
            "If Keras fetched it, delete it to have it fetched again"
        ) from error


def is_path(name: str) -> bool:
    """Whether a backbone is a model file or a run folder, not a name in the table."""
    return name.endswith((".keras", ONNX_SUFFIX)) or os.sep in name


def _open_tuned(folder: Path, image_size: tuple[int, int] | None, memo: Memo | None) -> Pretrained:
    """Open the backbone inside a fine-tuned model, which the run.json beside it describes."""
    path, about = folder / MODEL_FILE, folder / "run.json"
    try:
        value = read_json(about)
        stage = value["stage"]
        if stage != "finetune":
            raise RunError(f"{folder} is a run of tlpipe {stage}; as a backbone one of tlpipe finetune is needed")
        about_model = value.get("payload") or {**value, **value["settings"]}  # the latter until version 0.1
        spec = decoded(FeatureSpec, about_model["specs"][0])
        endpoint, top = about_model["endpoint"], about_model["top"]
        blocks = tuple(decoded(Block, one) for one in about_model.get("blocks", ()))
        if not isinstance(endpoint, str) or not isinstance(top, str) or not re.fullmatch(r"[\w.-]+", spec.backbone):
            raise TypeError("its endpoint, highest layer or backbone is no name")
    except OSError as error:
        raise RunError(f"{folder} is no run that can be read: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, ConfigError) as error:
        raise RunError(f"{about} is not what tlpipe wrote: it doesn't say what its backbone is") from error
    if image_size not in (None, spec.image_size):
        raise ConfigError(f"{folder} takes images of {sides(spec.image_size)} pixels; leave --image-size out")
    if not path.is_file():
        raise RunError(f"{folder} has no {MODEL_FILE} any more; fine-tune again: {value.get('command')}")
    row = Anatomy(spec.backbone, blocks) if blocks else BACKBONES.get(spec.backbone)
    return Pretrained(spec.backbone, row, path, 0, spec.image_size, memo, (endpoint, top))


def open_backbone(
    name: str,
    weights: str,
    seed: int,
    image_size: tuple[int, int] | None,
    memo: Memo | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Pretrained | OnnxFile:
    """Find a backbone and its weights; nothing heavy is loaded.

    Args:
        name: Name in the table, `hub:` and a preset of KerasHub or a folder of one, the path of a `.keras` or `.onnx`
            file, or the folder of a run of finetune.
        weights: "imagenet", "random", or a file (`.h5`, `.weights.h5` or `.keras`).
        seed: Seed of random weights.
        image_size: (height, width), pixels; None for the native size.
        memo: Where digests are remembered.
        mean: Of RGB as shares of white, which an ONNX file expects to be taken away.
        std: Likewise, the standard deviation.

    Raises:
        UnknownBackboneError: If there is no such backbone.
        ConfigError: If the image size is too small, or options don't fit each other.
        WeightsError: If a file isn't there. ImageNet weights are fetched later, when they are needed.
        RunError: If the run can't be read, or none of finetune.
    """
    if (mean is not None or std is not None) and not is_onnx(name):
        raise ConfigError(f"--mean and --std are for ONNX files; {name} prepares pictures itself, leave them out")
    if (preset := is_preset(name)) or is_path(name):
        if weights != "imagenet":
            raise ConfigError(f"--weights {weights} with --backbone {name}: a trained model brings its own weights")
        if preset:
            return _open_preset(name, image_size, memo)
        if "://" in name:
            raise WeightsError(f"--backbone {name} is an address; copy the run or the model here, and give its path")
        path = Path(name).expanduser()
        if path.is_dir():
            return _open_tuned(path, image_size, memo)
        if not path.is_file():
            raise WeightsError(
                f"There is no model {name}; give a .keras or .onnx file, the folder of a run of tlpipe finetune, or a "
                "name from tlpipe backbones"
            )
        if is_onnx(name):
            return open_onnx(path, image_size, mean, std, memo)
        return Pretrained(path.stem, None, path, 0, image_size or (224, 224), memo)
    row = get_backbone(name)
    size = image_size or (row.native_size, row.native_size)
    check_image_size(row, size)
    if weights == "random":
        return Pretrained(name, row, "random", seed, size, memo)
    if weights == "imagenet":
        return Pretrained(name, row, find_imagenet(row) or "imagenet", 0, size, memo)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {weights}; --weights is imagenet, random, or a .h5 or .keras file"
        )
    return Pretrained(name, row, path, 0, size, memo)


def whole_name(name: str) -> str:
    """The name of a backbone from any folder: with whole paths."""
    bare = name.removeprefix(PREFIX)
    if not Path(bare).expanduser().exists() or not (is_preset(name) or is_path(name)):
        return name
    return name[: len(name) - len(bare)] + str(Path(bare).expanduser().resolve())


def open_keras(
    name: str, weights: str, seed: int, image_size: tuple[int, int] | None, memo: Memo | None = None
) -> Pretrained:
    """As `open_backbone`, for what needs the layers of Keras: fine-tuning, and comparison with Keras itself.

    Raises:
        ConfigError: If it is an ONNX file.
    """
    check_keras(name)
    found = open_backbone(name, weights, seed, image_size, memo)
    if isinstance(found, OnnxFile):
        raise TypeError(f"{name} is no network of Keras")
    return found


def check_keras(name: str) -> None:
    """Refuse a backbone that can be run but not trained.

    Raises:
        ConfigError: With the reason.
    """
    if is_onnx(name):
        raise ConfigError(
            f"{name} is an ONNX file, whose graph can be run but has no gradients and no layers, so that it can't be "
            "fine-tuned or measured against Keras. Take a network of Keras (tlpipe backbones), or stay with heads: "
            "tlpipe train-head"
        )
