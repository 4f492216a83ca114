"""Opening a backbone by what a user calls it: a name, a preset, a file or a run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.backbones.build import check_image_size
from pipeline.backbones.catalogue import BACKBONES, Anatomy, Block, get_backbone
from pipeline.backbones.hub import PREFIX, facts_of, folder_of, is_preset
from pipeline.backbones.onnx_file import SUFFIX as ONNX_SUFFIX
from pipeline.backbones.onnx_file import OnnxFile, is_onnx, open_onnx
from pipeline.backbones.pretrained import HubPreset, Pretrained
from pipeline.backbones.weights import find_imagenet
from pipeline.config import FeatureSpec
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.util.files import is_as_written
from pipeline.util.memo import Memo
from pipeline.util.sealed import decoded, read_json
from pipeline.util.text import sides

MODEL_FILE = "model.keras"  # of a fine-tuned run


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
        digest = value.get("files", {}).get(MODEL_FILE, "")
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
    if not is_as_written(path, digest):
        raise RunError(f"{path} was changed after it was written; fine-tune again: {value.get('command')}")
    row = Anatomy(spec.backbone, blocks) if blocks else BACKBONES.get(spec.backbone)
    return Pretrained(spec.backbone, row, path, 0, spec.image_size, memo, (endpoint, top))


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


def is_path(name: str) -> bool:
    """Whether a backbone is a model file or a run folder, not a name in the table."""
    return name.endswith((".keras", ONNX_SUFFIX)) or os.sep in name


def whole_name(name: str) -> str:
    """The name of a backbone from any folder: with whole paths."""
    bare = name.removeprefix(PREFIX)
    if not Path(bare).expanduser().exists() or not (is_preset(name) or is_path(name)):
        return name
    return name[: len(name) - len(bare)] + str(Path(bare).expanduser().resolve())
