"""The table of backbones: the families of keras.applications, and what tlpipe must know of each.

Nothing here imports Keras. A contract test builds every row and compares it with what is declared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.errors import UnknownBackboneError
from pipeline.util.text import did_you_mean

Preprocessing = Literal["torch", "caffe", "tf", "inside", "efficientnet"]
"""`torch`: shares of white, less ImageNet's mean, by its standard deviation. `caffe`: BGR less ImageNet's mean.
`tf`: -1..1. `inside`: the network takes 0..255 itself. `efficientnet`: so too, but one factor of it is missing when
Keras builds the network without its own download."""

BUCKET = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclass(frozen=True, slots=True)
class Block:
    """A run of layers with a name of its own.

    Attributes:
        name: As on the command line (`conv4`).
        first: Regular expression that the name of its first layer matches from the start; or
        after: regular expression of the layer that it follows. If both are empty, it starts above the last single
            tensor below its output.
        output: Regular expression of the layer whose output stands for the block; if empty, the last single tensor
            below the next block. In networks that normalise before each convolution it is the activation that the
            next block reads, since the sum or concatenation before that has no common scale.
    """

    name: str
    first: str = ""
    after: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A network whose blocks are known.

    Attributes:
        name: Of the network.
        blocks: From the image upwards; the last one's output is the last feature map.
    """

    name: str
    blocks: tuple[Block, ...]

    def block(self, name: str) -> Block | None:
        """The block of this name, None if there is none."""
        return next((block for block in self.blocks if block.name == name), None)

    @property
    def default_endpoint(self) -> str:
        """Name of the last block, whose output is the last feature map."""
        return self.blocks[-1].name


@dataclass(frozen=True, slots=True)
class Backbone(Anatomy):
    """One row of the table; its name is that of Keras's function in lower case, with the width multiplier as digits.

    Attributes:
        function: Keras's function.
        arguments: Further arguments of that function.
        native_size: Height and width of the images it was trained on, pixels.
        least_size: Smallest height and width it takes, pixels.
        preprocessing: What happens to RGB 0..255 first.
        width: Channels of the last feature map.
        weights_file: Keras's name of the ImageNet weights without top.
        weights_address: Where Keras fetches them.
    """

    function: str
    arguments: dict[str, Any]
    native_size: int
    least_size: int
    preprocessing: Preprocessing
    width: int
    weights_file: str
    weights_address: str


def _efficientnet_blocks(n_blocks: int) -> tuple[Block, ...]:
    middle = [Block(f"block{i}", rf"block{i}a_") for i in range(1, n_blocks + 1)]
    return (Block("stem", "stem_conv"), *middle, Block("top", "top_conv$"))


def _rows() -> Iterator[Backbone]:
    last = Block("conv5", "conv5_block1_")
    middle = [Block(f"conv{i}", rf"conv{i}_block1_", output=f"pool{i}_relu$") for i in (2, 3, 4)]
    blocks = (Block("conv1", "conv1_conv$", output="conv1_relu$"), *middle, last)
    for depth, width in ((121, 1024), (169, 1664), (201, 1920)):
        file = f"densenet/densenet{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        yield _row(f"DenseNet{depth}", 224, 32, "torch", width, blocks, file)
    blocks = tuple(Block(f"block{i}", rf"block{i}_conv1$") for i in range(1, 6))
    for depth in (16, 19):
        file = f"vgg{depth}/vgg{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        yield _row(f"VGG{depth}", 224, 32, "caffe", 512, blocks, file)
    blocks = (Block("conv1", "conv1_conv$"), *(Block(f"conv{i}", rf"conv{i}_block1_") for i in (2, 3, 4)), last)
    middle = [Block(f"conv{i}", rf"conv{i}_block1_", output=f"conv{i + 1}_block1_preact_relu$") for i in (2, 3, 4)]
    blocks_v2 = (Block("conv1", "conv1_conv$", output="conv2_block1_preact_relu$"), *middle, last)
    for depth in (50, 101, 152):
        file = f"resnet/resnet{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        yield _row(f"ResNet{depth}", 224, 32, "caffe", 2048, blocks, file)
        file = f"resnet/resnet{depth}v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
        yield _row(f"ResNet{depth}V2", 224, 32, "tf", 2048, blocks_v2, file)
    blocks = (Block("conv1", "conv1$"), *(Block(f"block{i}", rf"conv_(pad|dw)_{i}$") for i in range(1, 14)))
    for digits, alpha, label in (("", 1.0, "1_0"), ("025", 0.25, "2_5"), ("050", 0.5, "5_0"), ("075", 0.75, "7_5")):
        file = f"mobilenet/mobilenet_{label}_224_tf_no_top.h5"
        yield _row("MobileNet", 224, 32, "tf", int(1024 * alpha), blocks, file, digits=digits, alpha=alpha)
    middle = [Block(f"block{i}", rf"block_{i}_") for i in range(1, 17)]
    blocks = (Block("conv1", "Conv1$"), Block("block0", "expanded_conv_"), *middle, Block("top", "Conv_1$"))
    for digits, alpha in (("", 1.0), ("035", 0.35), ("050", 0.5), ("075", 0.75), ("130", 1.3), ("140", 1.4)):
        file = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"
        width = max(1280, int(1280 * alpha))
        yield _row("MobileNetV2", 224, 32, "tf", width, blocks, file, digits=digits, alpha=alpha)
    for size, width, n_blocks in (("Small", 576, 11), ("Large", 960, 15)):
        middle = [Block(f"block{i}", rf"expanded_conv_{i}_") for i in range(1, n_blocks)]
        blocks = (Block("conv", "conv$"), Block("block0", r"expanded_conv_(?!\d)"), *middle, Block("top", "conv_1$"))
        file = f"mobilenet_v3/weights_mobilenet_v3_{size.lower()}_224_1.0_float_no_top_v2.h5"
        yield _row(f"MobileNetV3{size}", 224, 32, "inside", width, blocks, file)
    blocks = tuple(Block(f"block{i}", rf"block{i}_") for i in range(1, 15))
    file = "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5"
    yield _row("Xception", 299, 71, "tf", 2048, blocks, file)
    middle = [Block(f"mixed{i}", after=f"mixed{i - 1}$", output=f"mixed{i}$") for i in range(1, 11)]
    file = "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
    yield _row("InceptionV3", 299, 75, "tf", 2048, (Block("mixed0", output="mixed0$"), *middle), file)
    blocks = (
        Block("mixed_5b", output="mixed_5b$"),
        Block("block35", after="mixed_5b$", output="block35_10_ac$"),
        Block("mixed_6a", after="block35_10_ac$", output="mixed_6a$"),
        Block("block17", after="mixed_6a$", output="block17_20_ac$"),
        Block("mixed_7a", after="block17_20_ac$", output="mixed_7a$"),
        Block("block8", after="mixed_7a$"),
        Block("conv_7b", "conv_7b$"),
    )
    file = "inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    yield _row("InceptionResNetV2", 299, 75, "tf", 1536, blocks, file)
    for size, native, width, n_cells in (("Mobile", 224, 1056, 4), ("Large", 331, 4032, 6)):
        blocks = (
            Block("stem", "stem_conv1$", output="reduction_concat_stem_2$"),
            Block("stage1", after="reduction_concat_stem_2$", output=f"normal_concat_{n_cells - 1}$"),
            Block("stage2", after=f"normal_concat_{n_cells - 1}$", output=f"normal_concat_{2 * n_cells}$"),
            Block("stage3", after=f"normal_concat_{2 * n_cells}$"),
        )
        row = _row(f"NASNet{size}", native, 32, "tf", width, blocks, f"nasnet/NASNet-{size.lower()}-no-top.h5")
        # Keras keeps these files under another name than it fetches them by.
        yield replace(row, weights_file=f"nasnet_{size.lower()}_no_top.h5")
    natives = (224, 240, 260, 300, 380, 456, 528, 600)
    widths = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)
    for number, (native, width) in enumerate(zip(natives, widths, strict=True)):
        file = f"https://storage.googleapis.com/keras-applications/efficientnetb{number}_notop.h5"
        yield _row(f"EfficientNetB{number}", native, 32, "efficientnet", width, _efficientnet_blocks(7), file)
    for size, native, width, n_blocks in (
        ("B0", 224, 1280, 6),
        ("B1", 240, 1280, 6),
        ("B2", 260, 1408, 6),
        ("B3", 300, 1536, 6),
        ("S", 384, 1280, 6),
        ("M", 480, 1280, 7),
        ("L", 480, 1280, 7),
    ):
        file = f"efficientnet_v2/efficientnetv2-{size.lower()}_notop.h5"
        yield _row(f"EfficientNetV2{size}", native, 32, "inside", width, _efficientnet_blocks(n_blocks), file)
    for size, width in (("Tiny", 768), ("Small", 768), ("Base", 1024), ("Large", 1536), ("XLarge", 2048)):
        name = f"convnext_{size.lower()}"
        blocks = tuple(Block(f"stage{i}", rf"{name}_(downsampling_block_{i - 1}|stage_{i}_)") for i in range(4))
        yield _row(f"ConvNeXt{size}", 224, 32, "inside", width, blocks, f"convnext/{name}_notop.h5")


def _row(
    function: str,
    native_size: int,
    least_size: int,
    preprocessing: Preprocessing,
    width: int,
    blocks: tuple[Block, ...],
    weights: str,
    *,
    digits: str = "",
    **arguments: Any,
) -> Backbone:
    address = weights if weights.startswith("https:") else BUCKET + weights
    file = address.rpartition("/")[2]
    name = function.lower() + digits
    return Backbone(name, blocks, function, arguments, native_size, least_size, preprocessing, width, file, address)


BACKBONES: dict[str, Backbone] = {row.name: row for row in _rows()}


def get_backbone(name: str) -> Backbone:
    """The row of this name.

    Raises:
        UnknownBackboneError: If there is none, with near names.
    """
    try:
        return BACKBONES[name]
    except KeyError:
        hint = did_you_mean(name, BACKBONES) or "List them: tlpipe backbones"
        raise UnknownBackboneError(f"Unknown backbone {name!r}. {hint}") from None
