"""Transformers of KerasHub, taken apart: one layer there holds all blocks, and here each block is a layer of the graph.

What is made of them computes with the very layers of the preset, so that nothing has to be written again. Anything
that a class needs to be told apart by stands in the tables below.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones.catalogue import Block
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

Run = Callable[..., Any]


def _vit(layer: Any) -> Run:
    def run(tensor: Any, **_: Any) -> Any:
        tensor = layer.dropout(tensor)
        for block in layer.encoder_layers:
            tensor = block(tensor)
        return layer.layer_norm(tensor)

    return run


def _dinov2(layer: Any) -> Run:
    def run(tensor: Any, **_: Any) -> Any:
        """Gives the outputs of all blocks as well, of which no output of the backbone depends."""
        outputs = {}
        for number, block in enumerate(layer.layers, start=1):
            outputs[f"stage{number}"] = tensor = block(tensor)
        return tensor, outputs

    return run


def _dinov3(layer: Any) -> Run:
    def run(tensor: Any, **given: Any) -> Any:
        outputs = {}
        for number, block in enumerate(layer.layers, start=1):
            outputs[f"stage{number}"] = tensor = block(tensor, **given)
        return tensor, outputs

    return run


def _positions(layer: Any) -> Run:
    """Angles depend on the size of the images alone, so that as constants they leave the blocks one tensor to read."""
    return lambda images: layer(np.zeros((1, *images.shape[1:]), np.float32))


def _deit(layer: Any) -> Run:
    """Further apart than others: a block there gives something that is no tensor beside its output."""

    def run(tensor: Any, **_: Any) -> Any:
        add = runtime.keras().layers.Add
        for number, block in enumerate(layer.encoder_layers):
            parts = (block.layer_norm_1, block.mha, block.layer_norm_2, block.mlp, block.output_layer)
            for part in parts:
                part.name = f"block{number}_{part.name}"
            normed = block.layer_norm_1(tensor)
            tensor = add(name=f"block{number}_add")([block.mha(normed, normed), tensor])
            tensor = block.output_layer(block.mlp(block.layer_norm_2(tensor)), tensor)
        return layer.layer_norm(tensor), None, None

    return run


def _swin(layer: Any) -> Run:
    def run(tensor: Any, **_: Any) -> Any:
        for block in layer.blocks:
            block.name = f"{layer.name}_{block.name}"  # each stage counts its own from 0
            tensor = block(tensor)
        if layer.downsample is not None:
            height, width = layer.input_resolution
            layer.downsample.name = f"{layer.name}_{layer.downsample.name}"
            tensor = layer.downsample(tensor, H=height, W=width)
        return tensor

    return run


def _swin_patches(layer: Any) -> Run:
    """Part by part, as the whole can't be saved."""

    def run(tensor: Any, **_: Any) -> Any:
        if layer.norm:
            layer.norm.name = f"{layer.name}_{layer.norm.name}"
        rows = runtime.keras().layers.Reshape((-1, layer.embed_dim), name="patches_in_a_row")(layer.proj(tensor))
        return layer.norm(rows) if layer.norm else rows

    return run


def _hgnet(layer: Any) -> Run:
    def run(tensor: Any, **_: Any) -> Any:
        states = [tensor]
        for stage in layer.stages_list:
            states.append(stage(states[-1]))
        return tuple(states)

    return run


SQUARE = ("MiTBackbone",)  # of those that work out the sides from the number of their tokens
NETWORKS = {
    "ViTBackbone": "block",
    "DINOV2Backbone": "block",
    "DINOV3Backbone": "block",
    "DeiTBackbone": "block",
    "SwinTransformerBackbone": "block",
    "SigLIPBackbone": "block",
    "CLIPBackbone": "block",
    "MetaCLIP2Backbone": "block",
    "MiTBackbone": "stage",
    "ResNetBackbone": "stage",
    "EfficientNetBackbone": "stage",
    "DenseNetBackbone": "stage",
    "MobileNetBackbone": "stage",
    "HGNetV2Backbone": "stage",
    "CSPNetBackbone": "stage",
    "VGGBackbone": "stage",
    "XceptionBackbone": "stage",
}
"""Networks of KerasHub that can be had as backbones, and what their endpoints are called, with a number."""

NOT_CONVERTED = {"SwinTransformerBackbone"}
"""Networks whose graph OpenVINO and ONNX can't hold: what makes their masks has no like there."""

APART: dict[str, Callable[[Any], Run]] = {
    "ViTEncoder": _vit,
    "DINOV2Encoder": _dinov2,
    "DINOV3Encoder": _dinov3,
    "DINOV3RopePositionEmbedding": _positions,
    "DeiTEncoder": _deit,
    "SwinTransformerStage": _swin,
    "HGNetV2Encoder": _hgnet,
}
"""For each class of KerasHub that holds several blocks, or reaches around them: what runs in its place."""

BLOCKS = {
    "ViTEncoderBlock": "block",
    "DINOV2Layer": "block",
    "DINOV3Layer": "block",
    "SwinTransformerBlock": "block",
    "SigLIPEncoderLayer": "block",
    "CLIPEncoderLayer": "block",
    "MetaCLIP2EncoderLayer": "block",
    "SigLIPMultiHeadAttentionPooling": "head",
    "HGNetV2Stage": "stage",
}
"""What a layer of each class is called here; several of a kind are numbered from 0."""

TOKENS: dict[str, Callable[[Any], int]] = {
    "ViTPatchingAndEmbedding": lambda layer: int(layer.use_class_token),
    "DINOV2Embedding": lambda layer: 1 + layer.num_register_tokens,
    "DINOV3Embedding": lambda layer: 1 + layer.num_register_tokens,
    "DeiTEmbeddings": lambda _: 2,  # class and distillation
    "CLIPVisionEmbedding": lambda _: 1,
    "MetaCLIP2VisionEmbedding": lambda _: 1,
    "SigLIPVisionEmbedding": lambda _: 0,
    "SwinTransformerBlock": lambda _: 0,
    "HierarchicalTransformerEncoder": lambda _: 0,
}
"""How many tokens come before those of the patches, the class token first, by the class of a layer that tells it."""


def taken_apart(backbone: keras.Model, pixels: Any) -> Any:
    """The output of a backbone of KerasHub on a tensor [n, height, width, 3], each block of it a layer of the graph."""

    def operation(layer: Any) -> Run:
        make = APART.get(type(layer).__name__)
        if type(layer).__module__.endswith("swin_transformer_layers") and type(layer).__name__ == "PatchEmbedding":
            make = _swin_patches
        return make(layer) if make else layer

    mend(backbone)
    found = backbone._run_through_graph([pixels], operation_fn=operation)
    if isinstance(found, dict):  # of what gives its stages, the last
        return found[max(found, key=lambda name: (name != "stem", name))]
    return found[0] if isinstance(found, (list, tuple)) else found


def prefix_tokens(model: keras.Model) -> int | None:
    """How many tokens come before those of the patches in a graph; None if it makes no tokens that are known."""
    for layer in model.layers:
        if tell := TOKENS.get(type(layer).__name__):
            return tell(layer)
    return None


def blocks_of(model: keras.Model) -> tuple[Block, ...]:
    """The blocks of a network that was taken apart, after a stem; none of other graphs."""
    found: dict[str, list[str]] = {}
    for layer in model.layers:
        if word := BLOCKS.get(type(layer).__name__):
            found.setdefault(word, []).append(f"{re.escape(layer.name)}$")
    if not found and prefix_tokens(model) is not None:  # what is taken apart further has blocks by its names
        numbered = (re.match(r"block(\d+)_", layer.name) for layer in model.layers)
        found["block"] = [f"block{number}_" for number in dict.fromkeys(match[1] for match in numbered if match)]
    if not any(found.values()):
        return ()
    blocks = [
        Block(word if word == "head" else f"{word}{number}", first)
        for word, names in found.items()
        for number, first in enumerate(names)
    ]
    return (Block("stem", ".*"), *blocks)


def hold_back_warnings() -> None:
    """Let Keras be silent of what it warns of each time: masks in Swin that are none of its own, and missing builds.

    Both do no harm.
    """
    warnings.filterwarnings(
        "ignore", message=r"Layer 'attn' \(of type WindowAttention\) was passed an input with a mask"
    )
    warnings.filterwarnings("ignore", message=r"`build\(\)` was called on layer '(stage|patch_and_embed)_")


def mend(model: keras.Model) -> None:
    """Mend all layers of a model, as `mended` does."""
    for layer in model.layers:
        mended(layer)


def mended(layer: Any) -> Any:
    """The layer itself, which if it is of KerasHub can stand alone in a graph that is saved and loaded again.

    Nobody loads them alone there, so that some name more than they take when they are made, or less.
    """
    kind = type(layer).__name__
    if type(layer).__module__.startswith("keras_hub."):
        layer.get_config = _config_of(layer)
    if kind == "DINOV2Embedding" and layer.image_shape == layer.position_embedding_shape:
        # It keeps what was trained only if the changes add up to more than nothing.
        layer._is_interpolated_position_embeddings_updated = lambda: True
    if kind == "SigLIPVisionEmbedding":  # it declares one token more than it gives
        layer.compute_output_shape = lambda shape: (shape[0], layer.num_positions, layer.hidden_dim)
    return layer


PLAIN = (bool, int, float, str, list, tuple, type(None))


def _config_of(layer: Any) -> Callable[[], dict[str, Any]]:
    kind = type(layer)
    names = set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}

    def get_config() -> dict[str, Any]:
        try:
            own = kind.get_config(layer)
        except AttributeError:  # it asks for what it doesn't have
            own = runtime.keras().layers.Layer.get_config(layer)
        found = {name: value for name, value in own.items() if name in names | {"name", "trainable", "dtype"}}
        # What a layer hands on when it is made is kept by the part that takes it.
        keepers = (layer, *layer._flatten_layers(include_self=False, recursive=False))
        for name in names - found.keys():
            values = [getattr(one, name) for one in keepers if hasattr(one, name)]
            values = [getattr(one, "drop_prob", one) for one in values]  # of the layer that drops paths
            if values and isinstance(values[0], PLAIN):
                found[name] = values[0]
        return found

    return get_config
