"""A backbone with its weights, and the digest of the arrays that were loaded."""

from __future__ import annotations

import random
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.backbones.build import build_network, load_network, load_tuned
from pipeline.backbones.catalogue import Anatomy, Backbone
from pipeline.backbones.graph import weights_digest
from pipeline.backbones.hub import HubFacts, load_preset
from pipeline.backbones.network import Network, unknown_layer
from pipeline.backbones.scaling import INTERPOLATION, RESIZE
from pipeline.backbones.weights import fetch_imagenet, load_weights
from pipeline.util import runtime
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp


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
        load_weights(network.model, self.source, self.name)
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
