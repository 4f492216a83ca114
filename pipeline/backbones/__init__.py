"""Pretrained networks: which there are, where their weights are, and how their graphs are taken apart."""

from pipeline.backbones.catalogue import BACKBONES, Backbone, get_backbone
from pipeline.backbones.graph import apply, cuts, nodes, tensor_of, weights_digest
from pipeline.backbones.hub import presets
from pipeline.backbones.network import Network, Unfrozen
from pipeline.backbones.onnx_file import OnnxFile, is_onnx
from pipeline.backbones.onnx_graph import OnnxGraph, OnnxNetwork
from pipeline.backbones.open import check_keras, is_path, open_backbone, open_keras, whole_name
from pipeline.backbones.pretrained import Pretrained
from pipeline.backbones.weights import find_imagenet, keras_file

__all__ = [
    "BACKBONES",
    "Backbone",
    "Network",
    "OnnxFile",
    "OnnxGraph",
    "OnnxNetwork",
    "Pretrained",
    "Unfrozen",
    "apply",
    "check_keras",
    "cuts",
    "find_imagenet",
    "get_backbone",
    "is_onnx",
    "is_path",
    "keras_file",
    "nodes",
    "open_backbone",
    "open_keras",
    "presets",
    "tensor_of",
    "weights_digest",
    "whole_name",
]
