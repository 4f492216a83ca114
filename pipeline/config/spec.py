"""What features are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.util.files import digest_of

# Raised when the same options give other values than before (another resize, another preprocessing).
SPEC_VERSION = 1


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Everything that changes a feature value, and nothing else; its digest names the folder in the cache.

    Attributes:
        backbone: Name in the table of backbones, or the name of a model file.
        weights_digest: Digest of the weight arrays as loaded.
        weights_seed: Seed of random weights; None for trained ones.
        endpoint: Block or layer whose output is taken; several are joined by "+".
        pooling: How the output is pooled, as in `ExtractConfig`.
        image_size: (height, width), pixels.
        resize: As in `ImageConfig`.
        interpolation: As in `ImageConfig`.
        precision: "float32", which is the same on every engine, else engine and precision ("openvino-bfloat16"), with
            the digest of the graph for int8.
        dtype: Type on disk, "float32" or "float16".
    """

    backbone: str
    weights_digest: str
    weights_seed: int | None
    endpoint: str
    pooling: str
    image_size: tuple[int, int]
    resize: str
    interpolation: str
    precision: str
    dtype: str

    def digest(self) -> str:
        """Hexadecimal digest over all fields, 32 characters."""
        text = json.dumps({"version": SPEC_VERSION, **asdict(self)}, sort_keys=True)
        return digest_of(text.encode())

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return {**asdict(self), "image_size": list(self.image_size)}

    def differences(self, other: FeatureSpec) -> dict[str, tuple[Any, Any]]:
        """Fields in which two specs differ, each with both values."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
