"""Pretrained networks: which there are, where their weights are, and how their graphs are taken apart."""

from pipeline.backbones.build import first_line
from pipeline.backbones.catalogue import BACKBONES, Backbone, get_backbone
from pipeline.backbones.graph import apply, cuts, nodes, tensor_of
from pipeline.backbones.network import Network, Unfrozen
from pipeline.backbones.weights import Pretrained, find_imagenet, is_path, keras_file, open_backbone, weights_digest

__all__ = [
    "BACKBONES",
    "Backbone",
    "Network",
    "Pretrained",
    "Unfrozen",
    "apply",
    "cuts",
    "find_imagenet",
    "first_line",
    "get_backbone",
    "is_path",
    "keras_file",
    "nodes",
    "open_backbone",
    "tensor_of",
    "weights_digest",
]
