"""A backbone as a graph: its features at an endpoint, its blocks, and where frozen meets trainable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.backbones.catalogue import Anatomy, Block
from pipeline.backbones.graph import Node, cuts, nodes
from pipeline.backbones.parts import prefix_tokens
from pipeline.config import POOLINGS
from pipeline.errors import EndpointError
from pipeline.util import runtime
from pipeline.util.options import one_of
from pipeline.util.text import did_you_mean

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class Unfrozen:
    """Where frozen meets trainable.

    Attributes:
        cut: Layer whose output alone decides all that lies above it; the input itself if all is trained.
        depths: Names of the layers above the cut that may be trained, each with the number of blocks above its own.
        from_pixels: Whether the cut is the input.
    """

    cut: str
    depths: dict[str, int]
    from_pixels: bool


@dataclass(frozen=True, slots=True)
class Network:
    """A backbone as a graph from uint8 [n, height, width, 3] to its last feature map.

    Attributes:
        model: The functional model.
        row: Its blocks; None for a model of one's own, which has layers alone.
    """

    model: keras.Model
    row: Anatomy | None

    def features(self, endpoint: str, pooling: str) -> keras.Model:
        """The part of the graph that computes features.

        Args:
            endpoint: Block or layer; several, joined by "+", are pooled each and concatenated.
            pooling: "avg" or "max" over height and width or over the tokens of patches; "cls" for the class token, or
                "cls+avg" for both side by side; or "none".

        Returns:
            A model from uint8 [n, height, width, 3] to float32 [n, d], or [n, h, w, c] or [n, tokens, c] without
            pooling.

        Raises:
            EndpointError: If an endpoint is unknown, can't be pooled so, or several can't be joined.
        """
        keras = runtime.keras()
        one_of("--pooling", pooling, POOLINGS)
        parts = [self._tensor(name) for name in endpoint.split("+")]
        if len(parts) > 1 and pooling == "none":
            raise EndpointError(f"--endpoint {endpoint} joins several layers; that needs --pooling avg or max")
        if pooling != "none":
            parts = [one for number, part in enumerate(parts) for one in self._pooled(part, pooling, endpoint, number)]
        joined = keras.layers.Concatenate(name="joined")(parts) if len(parts) > 1 else parts[0]
        if joined.dtype != "float32":
            joined = keras.layers.Activation("linear", dtype="float32", name="in_float32")(joined)
        return keras.Model(self.model.inputs[0], joined, name="features")

    def _pooled(self, tensor: Any, pooling: str, endpoint: str, number: int) -> list[Any]:
        """What pooling makes of the output of an endpoint: several tensors [n, d], if it is several kinds of it."""
        layers, rank = runtime.keras().layers, len(tensor.shape)
        prefix = prefix_tokens(self.model) if rank == 3 else None
        if "cls" in pooling and not prefix:
            raise EndpointError(
                f"--pooling {pooling} needs a class token, and what {endpoint} gives has none; use avg or max"
            )
        found = []
        for kind in pooling.split("+"):
            name = f"pooled_{number}" if kind == pooling else f"pooled_{number}_{kind}"
            if kind == "cls":
                first = layers.Cropping1D((0, tensor.shape[1] - 1), name=f"class_token_{number}")(tensor)
                found.append(layers.Flatten(name=name)(first))
            elif rank == 4:
                pool = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[kind]
                found.append(pool(name=name)(tensor))
            elif prefix is not None:
                pool = {"avg": layers.GlobalAveragePooling1D, "max": layers.GlobalMaxPooling1D}[kind]
                patches = layers.Cropping1D((prefix, 0), name=f"patches_{number}")(tensor) if prefix else tensor
                found.append(pool(name=name)(patches))
            else:  # a layer without height and width, such as a dense one, is pooled already
                found.append(tensor)
        return found

    def last_map(self) -> str:
        """Name of the last layer with height and width; of the last layer if there is none."""
        order = nodes(self.model)
        maps = [node for node in order if len(node.outputs) == 1 and len(node.outputs[0].shape) == 4]
        return (maps or order)[-1].name

    def top_block(self, features: keras.Model) -> str:
        """The highest block that features are computed by; "all" of a model without blocks."""
        return next(reversed(self._block_starts(nodes(features))), "all")

    def top(self, endpoint: str) -> str:
        """Name of the highest layer whose output is taken at an endpoint, or at several that are joined by "+"."""
        order = nodes(self.model)
        taken = {id(self._tensor(name)) for name in endpoint.split("+")}
        return [node.name for node in order if any(id(tensor) in taken for tensor in node.outputs)][-1]

    def unfreeze(self, features: keras.Model, blocks: str) -> Unfrozen:
        """Find the cut below the blocks that are trained: the last single tensor below their first layer.

        Where nothing below it could be trained (preprocessing, padding), the cut is the input.

        Args:
            features: What `features` gave.
            blocks: A block or a layer, which is trained with all above it; the blocks from one to the top, joined by
                commas, which says the same; "all", or "none".

        Raises:
            EndpointError: If there is no such block or layer, blocks between them are left out, or nothing of the
                features lies above them.
        """
        order = nodes(features)
        if blocks == "none":
            return Unfrozen(order[-1].name, {}, False)
        start = 0 if blocks == "all" else self._lowest(order, blocks)
        positions = {node.name: position for position, node in enumerate(order)}
        cut = max((positions[name] for name in cuts(features) if positions[name] < start), default=0)
        if not any(node.is_trained for node in order[: cut + 1]):
            cut = 0
        depths = self._depths(order)
        trained = {node.name: depths[at] for at, node in enumerate(order) if at >= start and node.is_trained}
        return Unfrozen(order[cut].name, trained, cut == 0)

    def _lowest(self, order: list[Node], blocks: str) -> int:
        """Position of the first layer of the lowest of some blocks, without a gap above it."""
        names = [name.strip() for name in blocks.split(",")]
        starts = {name: self._start(order, name) for name in names}
        if len(starts) > 1:
            known = list(self._block_starts(order))
            foreign = [name for name in starts if name not in known]
            if foreign:
                raise EndpointError(
                    f"--blocks {blocks} joins {foreign[0]}, which is no block; a layer's name stands alone, "
                    "for it and all above it"
                )
            lowest = min(starts, key=known.index)
            missing = [name for name in known[known.index(lowest) :] if name not in starts]
            if missing:
                raise EndpointError(
                    f"--blocks {blocks} leaves out {', '.join(missing)}; what is trained has no gaps up to the top: "
                    f"--blocks {lowest} trains it and all above it"
                )
        return min(starts.values())

    def _depths(self, order: list[Node]) -> list[int]:
        """For each layer, how many blocks start above it."""
        starts = self._block_starts(order).values()
        return [sum(start > position for start in starts) for position in range(len(order))]

    def _block_starts(self, order: list[Node]) -> dict[str, int]:
        """Position of the first layer of each block that a graph has, from the image upwards."""
        found = {block.name: self._block_start(order, block) for block in self.row.blocks} if self.row else {}
        return {name: start for name, start in found.items() if start is not None}

    def _tensor(self, endpoint: str) -> Any:
        order = nodes(self.model)
        block = self.row.block(endpoint) if self.row else None
        if block is None:
            return self._layer(order, endpoint, "--endpoint").outputs[0]
        if block.output:
            found = next((node for node in order if re.match(block.output, node.name)), None)
            if found is None:
                raise EndpointError(f"--endpoint {endpoint} lies above the last layer of this backbone")
            return found.outputs[0]
        if self.row is not None and block is not self.row.blocks[-1]:
            following = self.row.blocks[self.row.blocks.index(block) + 1]
            start = self._block_start(order, following)
            if start is not None:
                below = set(cuts(self.model))
                return next(node for node in reversed(order[:start]) if node.name in below).outputs[0]
        if self._block_start(order, block) is None:
            raise EndpointError(f"--endpoint {endpoint} lies above the last layer of this backbone")
        return self.model.outputs[0]

    def _start(self, order: list[Node], name: str) -> int:
        """Position of the first layer of a block, or of a layer."""
        block = self.row.block(name) if self.row else None
        if block is None:
            return order.index(self._layer(order, name, "--blocks"))
        position = self._block_start(order, block)
        if position is None:
            raise EndpointError(
                f"--blocks {name} lies above the endpoint of the features; train on features from above it"
            )
        return position

    def _block_start(self, order: list[Node], block: Block) -> int | None:
        names = [node.name for node in order]
        if block.first:
            return next((at for at, name in enumerate(names) if re.match(block.first, name)), None)
        if block.after:
            return next((at + 1 for at, name in enumerate(names) if re.match(block.after, name)), None)
        output = next((at for at, name in enumerate(names) if re.match(block.output, name)), None)
        if output is None:
            return None
        below = set(cuts(self.model))
        return next(at + 1 for at in reversed(range(output)) if names[at] in below)

    def _layer(self, order: list[Node], name: str, option: str) -> Node:
        for node in order:
            if node.name == name:
                if len(node.outputs) > 1:
                    raise EndpointError(f"{option} {name} has {len(node.outputs)} outputs; take a layer with one")
                return node
        raise unknown_layer(self.row, option, name, [node.name for node in order])


def unknown_layer(row: Anatomy | None, option: str, name: str, layers: Sequence[str]) -> EndpointError:
    """The error of a name that no block and no layer has.

    Args:
        row: The backbone's row in the table; None for a model of one's own.
        option: Where the name was given.
        name: The name.
        layers: Names of all layers.
    """
    blocks = [block.name for block in row.blocks] if row else []
    if option == "--blocks":
        blocks += ["all", "none"]
    near = did_you_mean(name.lower(), dict.fromkeys([*blocks, *layers]))
    legal = f"Blocks are {', '.join(blocks)}; any layer's name will do too." if blocks else "Any layer's name will do."
    hints = filter(None, (near, legal))
    return EndpointError(f"{option}: there is no block or layer {name!r}. {' '.join(hints)}")
