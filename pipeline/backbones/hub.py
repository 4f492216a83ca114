"""Presets of KerasHub as backbones: by name, from Hugging Face or Kaggle, or from a folder.

What is fetched lies in KerasHub's own cache afterwards, and is used from there like any other folder. What must be
known of a preset before it is used (its digest, its blocks, how its pictures are prepared) is remembered as long as
the files of its folder look unchanged.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones.build import dtype_policy, fresh_names
from pipeline.backbones.catalogue import Anatomy, Block
from pipeline.backbones.graph import Node, nodes, weights_digest
from pipeline.backbones.network import Network
from pipeline.backbones.parts import NETWORKS, NOT_CONVERTED, SQUARE, blocks_of, hold_back_warnings, mend, taken_apart
from pipeline.config.extract import INTERPOLATIONS
from pipeline.errors import ConfigError, UnknownBackboneError, WeightsError
from pipeline.util import runtime
from pipeline.util.files import digest_of
from pipeline.util.memo import YOUNG, Memo, Stamp
from pipeline.util.sealed import decoded
from pipeline.util.text import did_you_mean, first_line, sides

if TYPE_CHECKING:
    import keras

PREFIX = "hub:"
CONFIG = "config.json"
USUAL_SIZE = (224, 224)  # of presets that take any size and name none
RESIZING = {"lanczos3": "lanczos", "lanczos5": "lanczos"}  # of KerasHub, by Pillow's names where these differ


@dataclass(frozen=True, slots=True)
class HubFacts:
    """What is known of a preset at one size of images.

    Attributes:
        digest: Of its weights, its configuration, and how it scales pixels.
        blocks: From the image upwards; a single one of a network that isn't taken apart.
        image_size: (height, width), pixels.
        resize: How pictures are brought to the size, as in `ImageConfig`.
        interpolation: As in `ImageConfig`.
    """

    digest: str
    blocks: tuple[Block, ...]
    image_size: tuple[int, int]
    resize: str
    interpolation: str


def is_preset(name: str) -> bool:
    """Whether a backbone is a preset of KerasHub: `hub:` and what names it, or a folder that one was saved to."""
    if name.startswith(PREFIX):
        return True
    path = Path(name).expanduser() / CONFIG
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads(path.read_bytes()).get("registered_name", "")).startswith("keras_hub")
    return False


def folder_of(name: str, memo: Memo | None) -> Path:
    """The folder where a preset lies, which is fetched first if it isn't here.

    Raises:
        UnknownBackboneError: If there is no preset of this name.
        WeightsError: If it can't be fetched.
        ConfigError: If KerasHub isn't installed.
    """
    preset = name.removeprefix(PREFIX)
    if preset and (folder := Path(preset).expanduser()).is_dir():
        return folder.resolve()
    remembered = f"folder of the preset {preset} in keras-hub {runtime.version('keras-hub')}"
    if memo and (known := memo.recall_text(remembered)) and (Path(known) / CONFIG).is_file():
        return Path(known)
    found = _fetched(preset)
    if memo:
        memo.remember_text(remembered, str(found))
    return found


def _fetched(preset: str) -> Path:
    """Let KerasHub fetch a preset, as it does it; where it lies then."""
    hub = runtime.keras_hub()
    from keras_hub.src.utils.preset_utils import get_file

    if "://" not in preset and preset not in hub.models.Backbone.presets:
        near = did_you_mean(PREFIX + preset, (row["name"] for row in presets()))
        hint = near or "List them: tlpipe backbones"
        raise UnknownBackboneError(f"KerasHub has no preset {preset!r}, and there is no such folder. {hint}")
    try:
        with redirect_stdout(sys.stderr):  # where progress is drawn
            _check_class(preset)  # of the configuration alone, so that a text model isn't fetched in vain
            hub.models.Backbone.from_preset(preset)
            hub.layers.ImageConverter.from_preset(preset)
            return Path(get_file(preset, CONFIG)).parent
    except ConfigError:
        raise
    except Exception as error:  # the libraries below raise many kinds
        raise WeightsError(
            f"The preset {preset} is not here and can't be fetched: {first_line(error)}. Fetch it where there is a "
            "network, write it to a folder with save_to_preset, and give --backbone hub:FOLDER"
        ) from error


def _check_class(preset: str) -> None:
    """Refuse a preset whose network can't be had as a backbone, by its configuration alone.

    Raises:
        ConfigError: If it takes no pictures, or is of no class that is known.
        WeightsError: If its folder holds no configuration that can be read.
    """
    hub = runtime.keras_hub()
    from keras_hub.src.utils.preset_utils import get_preset_loader, list_subclasses

    try:
        # Of KerasHub's own presets its lists tell, without a network; some are in those of several classes.
        listed = [one for one in list_subclasses(hub.models.Backbone) if preset in one.presets]
        known = not listed or any(one.__name__ in NETWORKS for one in listed)
        kind = get_preset_loader(preset).check_backbone_class() if known else listed[0]
    except (ValueError, KeyError, AttributeError) as error:
        if "://" in preset or not Path(preset).is_dir():
            raise
        raise WeightsError(f"{preset} can't be loaded as a preset of KerasHub: {first_line(error)}") from error
    if kind.__name__ in NETWORKS:
        return
    takes = {getattr(one, "backbone_cls", None) for one in list_subclasses(hub.layers.ImageConverter)}
    cause = "gives no features of pictures that are known here" if kind in takes else "takes no pictures"
    raise ConfigError(
        f"--backbone {PREFIX}{preset} is a {kind.__name__}, which {cause}; take a preset of "
        f"{', '.join(name.removesuffix('Backbone') for name in NETWORKS)}: tlpipe backbones"
    )


def presets(memo: Memo | None = None) -> list[dict[str, Any]]:
    """The presets that KerasHub itself has for networks that can be had as backbones, a row for each.

    Args:
        memo: Where they are remembered, so that KerasHub is asked once.

    Returns:
        Name as on the command line, class of the network, parameters in all, word of its endpoints, engines that run
        it, what it says of itself; nothing where KerasHub isn't installed.
    """
    if not runtime.installed("keras_hub"):
        return []
    remembered = f"presets of keras-hub {runtime.version('keras-hub')}: {digest_of(repr(NETWORKS).encode())}"
    if memo and (known := memo.recall_text(remembered)):
        return list(json.loads(known))
    hub = runtime.keras_hub()
    found = [
        {
            "name": PREFIX + name,
            "network": network,
            "parameters": about["metadata"]["params"],
            "endpoints": endpoints,
            "engines": ["tensorflow", "jax"] if network in NOT_CONVERTED else ["tensorflow", "openvino", "jax"],
            "description": about["metadata"]["description"],
        }
        for network, endpoints in NETWORKS.items()
        for name, about in getattr(hub.models, network).presets.items()
    ]
    if memo:
        memo.remember_text(remembered, json.dumps(found))
    return found


def facts_of(folder: Path, image_size: tuple[int, int] | None, memo: Memo | None) -> tuple[HubFacts, Network | None]:
    """What is known of a preset, and its network where that had to be loaded, as nothing was remembered.

    Args:
        folder: Where it lies.
        image_size: (height, width), pixels; None for that of the preset.
        memo: Where it is remembered.

    Raises:
        ConfigError: If it takes no pictures, or none of this size.
        WeightsError: If it can't be loaded.
    """
    stamps = {path.name: Stamp.of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    versions = runtime.version("keras"), runtime.version("keras-hub")
    name = f"preset {digest_of(repr((str(folder), stamps, image_size, versions)).encode())}"
    if memo and (known := memo.recall_text(name)):
        return decoded(HubFacts, json.loads(known)), None
    network, facts = load_preset(folder, image_size)
    if memo and max((stamp.mtime_ns for stamp in stamps.values()), default=0) < time.time_ns() - YOUNG:
        memo.remember_text(name, json.dumps(asdict(facts)))
    return facts, network


def load_preset(folder: Path, image_size: tuple[int, int] | None, policy: str = "float32") -> tuple[Network, HubFacts]:
    """A preset as one graph from uint8 images to its output, with its own scaling of pixels inside, and what it is.

    Args:
        folder: Where it lies.
        image_size: (height, width), pixels; None for that of the preset.
        policy: Keras dtype policy.

    Raises:
        ConfigError: If it takes no pictures, or none of this size.
        WeightsError: If it can't be loaded.
    """
    keras = runtime.keras()
    hold_back_warnings()
    with fresh_names(), dtype_policy(policy):
        converter = _converter(folder)
        tower, size = _tower(folder, image_size or converter.image_size, policy)
        pixels = keras.Input((*size, 3), dtype="uint8", name="pixels")
        scale, offset = _factors(converter)
        scaled = keras.layers.Rescaling(scale, offset, name="preprocessing")(pixels)
        model = keras.Model(pixels, taken_apart(tower, scaled), name=re.sub(r"\W", "_", folder.name))
    mend(model)
    blocks = blocks_of(model) or _stages(tower, model)
    about = (weights_digest(model), (folder / CONFIG).read_text(), scale, offset)
    facts = HubFacts(
        digest=digest_of(repr(about).encode()),
        blocks=blocks,
        image_size=size,
        resize="crop" if converter.crop_to_aspect_ratio else "pad" if converter.pad_to_aspect_ratio else "stretch",
        interpolation=_interpolation(converter.interpolation),
    )
    return Network(model, Anatomy(folder.name, blocks)), facts


def _interpolation(name: str) -> str:
    found = RESIZING.get(name, name)
    return found if found in INTERPOLATIONS else INTERPOLATIONS[0]


def _converter(folder: Path) -> Any:
    """What prepares the pictures of a preset."""
    _check_class(str(folder))
    try:
        return runtime.keras_hub().layers.ImageConverter.from_preset(str(folder))
    except Exception as error:  # KerasHub and Keras raise many kinds
        raise WeightsError(
            f"{folder} doesn't say how its pictures are prepared: {first_line(error)}. Write it with save_to_preset of "
            "a task or a preprocessor, or of the image converter as well"
        ) from error


def _factors(converter: Any) -> tuple[Any, Any]:
    """Scale and offset of RGB 0..255, each one number or three."""
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    if isinstance(scale, (list, tuple)) != isinstance(offset, (list, tuple)):  # Rescaling wants both of one length
        scale, offset = (one if isinstance(one, (list, tuple)) else [one] * 3 for one in (scale, offset))
    return scale, offset


def _tower(folder: Path, image_size: tuple[int, int] | None, policy: str) -> tuple[keras.Model, tuple[int, int]]:
    """The network of a preset that takes pictures, and the size of those."""
    backbone = _loaded(folder, policy)
    tower = getattr(backbone, "vision_encoder", backbone)  # of what has a tower for text as well
    native = tuple(getattr(tower, "image_shape", (None, None))[:2])
    size = image_size or (native if None not in native else USUAL_SIZE)
    if type(tower).__name__ in SQUARE and size[0] != size[1]:
        raise ConfigError(f"--image-size {sides(size)}: {folder} takes square pictures alone; give one number")
    if None in native or native == size:
        return _at_home(tower, folder, policy), size
    if tower is not backbone:
        raise ConfigError(f"--image-size {sides(size)}: {folder} takes {sides(native)} pixels alone; leave it out")
    try:
        tower = _loaded(folder, policy, image_shape=(*size, 3))
    except WeightsError as error:
        raise ConfigError(
            f"--image-size {sides(size)}: {error}. It was trained on {sides(native)} pixels, and can't be brought to "
            "others; leave it out"
        ) from error
    return _at_home(tower, folder, policy), size


def _loaded(folder: Path, policy: str, **options: Any) -> keras.Model:
    try:
        return runtime.keras_hub().models.Backbone.from_preset(str(folder), dtype=policy, **options)
    except Exception as error:  # KerasHub and Keras raise many kinds
        raise WeightsError(f"{folder} can't be loaded as a preset of KerasHub: {first_line(error)}") from error


def _at_home(tower: keras.Model, folder: Path, policy: str) -> keras.Model:
    """The same network with positions that are those of its images.

    DINOv2 keeps positions of another size beside those it uses, and would make the latter of the former each time it
    is loaded, which loses what was trained.
    """
    kept = getattr(tower, "position_embedding_shape", None)
    if kept is None or tuple(kept[:2]) == tuple(tower.image_shape[:2]):
        return tower
    shape = {"image_shape": tower.image_shape, "position_embedding_shape": tower.image_shape}
    other = runtime.keras_hub().models.Backbone.from_preset(str(folder), load_weights=False, dtype=policy, **shape)
    positions = tower.embeddings.interpolated_position_embeddings
    for mine, theirs in zip(other.weights, tower.weights, strict=True):
        mine.assign(theirs if mine.shape == theirs.shape else positions)
    return other


def _stages(tower: keras.Model, model: keras.Model) -> tuple[Block, ...]:
    """The stages of a convolutional network, as KerasHub tells them or its layers are named; else a stem alone."""
    there = {node.name for node in nodes(model)}
    outputs = getattr(tower, "pyramid_outputs", None) or {}
    names = [tensor._keras_history.operation.name for tensor in outputs.values()]
    if len(set(names)) < len(names) or not names or not set(names) <= there:
        return _numbered(nodes(model))
    ends = [f"{re.escape(name)}$" for name in names]
    middle = [Block(f"stage{at}", after=ends[at - 1], output=ends[at]) for at in range(1, len(ends) - 1)]
    last = [Block(f"stage{len(ends) - 1}", after=ends[-2])] if len(ends) > 1 else []
    return (Block("stage0", ".*", output=ends[0]), *middle, *last)


def _numbered(order: list[Node]) -> tuple[Block, ...]:
    """The stages of a network whose layers have numbers in their names, after a stem if anything lies below them."""
    trained = [node.name for node in order if node.is_trained]
    numbers = sorted({int(match[1]) for name in trained if (match := re.match(r"block_?(\d+)_", name))})
    stages = [Block(f"stage{at}", rf"block_?{number}_") for at, number in enumerate(numbers)]
    if stages and re.match(stages[0].first, trained[0]):
        return (Block("stage0", ".*"), *stages[1:])
    return (Block("stem", ".*"), *stages)
