"""Pretrained networks: which there are, where their weights are, and how their graphs are taken apart."""

from pipeline.backbones.catalogue import BACKBONES, Backbone, Block, get_backbone
from pipeline.backbones.graph import cuts, tensor_of
from pipeline.backbones.network import Network, Unfrozen
from pipeline.backbones.weights import Pretrained, find_imagenet, keras_file, open_backbone, weights_digest

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "Network",
    "Pretrained",
    "Unfrozen",
    "cuts",
    "find_imagenet",
    "get_backbone",
    "keras_file",
    "open_backbone",
    "tensor_of",
    "weights_digest",
]
