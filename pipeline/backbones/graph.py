"""The graph of a functional Keras model: its order, and the single tensors that cut it in two."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.util import runtime

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class Node:
    """One use of a layer (or of an operation) in a graph.

    Attributes:
        name: The layer's name.
        layer: The layer.
        outputs: Its output tensors.
        parents: Positions, in the list of nodes, of those whose outputs it reads.
    """

    name: str
    layer: Any
    outputs: tuple[Any, ...]
    parents: tuple[int, ...]

    @property
    def is_trained(self) -> bool:
        """Whether training changes anything in the layer; a network's own normalisation of pixels is fixed."""
        return bool(getattr(self.layer, "trainable_weights", ()))


def apply(model: keras.Model, tensor: Any) -> Any:
    """The first output of a model with one input, on another tensor: its layers one by one, not as one nested layer."""
    return runtime.keras().Function(model.inputs[0], model.outputs[0]).call(tensor)


def tensor_of(model: keras.Model, name: str) -> Any:
    """Output of a layer in a model; `layer.output` can't tell which where other models use the layer as well."""
    return next(node.outputs[0] for node in nodes(model) if node.name == name)


def nodes(model: keras.Model) -> list[Node]:
    """The uses of layers between a model's inputs and its outputs, each after those that it reads.

    The order is Keras's own, which is by depth; layers that no output depends on are left out.
    """
    model = getattr(model, "_functional", None) or model  # what a sequential model holds inside
    known: dict[int, int] = {}
    found: list[Node] = []
    by_depth = model._nodes_by_depth
    for use in (use for depth in sorted(by_depth, reverse=True) for use in by_depth[depth]):
        parents = tuple(sorted({known[id(tensor)] for tensor in use.input_tensors}))
        known.update(dict.fromkeys(map(id, use.output_tensors), len(found)))
        found.append(Node(use.operation.name, use.operation, tuple(use.output_tensors), parents))
    return found


def cuts(model: keras.Model) -> list[str]:
    """Names of all layers whose output alone decides what lies above them, from the input upwards.

    A layer is a cut if every path from the inputs to the outputs goes through its one output tensor: if no later
    layer reads anything from before it. Any functional model will do; the outputs themselves are no cuts.
    """
    order = nodes(model)
    outputs = {id(tensor) for tensor in model.outputs}
    # reach[i] is the last position that reads the output of node i; the world outside reads the model's outputs. A
    # path around node p has an edge that starts before p and ends behind it; without one, all paths meet at p.
    outside = len(order)
    reach = [outside if any(id(tensor) in outputs for tensor in node.outputs) else 0 for node in order]
    for position, node in enumerate(order):
        for parent in node.parents:
            reach[parent] = max(reach[parent], position)
    furthest = max(position for position, node in enumerate(order) if not node.parents)
    found = []
    for position, node in enumerate(order):
        if furthest <= position and reach[position] < outside and len(node.outputs) == 1:
            found.append(node.name)
        furthest = max(furthest, reach[position])
    return found


def weights_digest(model: keras.Model) -> str:
    """Digest of all weight arrays of a model, in its order: type, shape and bytes; 32 hexadecimal characters."""
    digest = hashlib.blake2b(digest_size=16)
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
