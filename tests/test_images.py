"""Reading pictures: known pixels, odd files, and what is refused."""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ImageConfig
from pipeline.data import FileSource, file_key
from pipeline.data.images import decode, describe, from_array, read_pixels, resize
from pipeline.errors import ConfigError, ImageError

FULL = ImageConfig((4096, 4096))  # so large that no JPEG is shrunk while it is decoded


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, config: ImageConfig = FULL) -> np.ndarray:
    return np.asarray(decode(data, config))


def test_rgb_is_left_as_it_is(random: np.random.Generator) -> None:
    array = random.integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(array))), array)


def test_alpha_is_composed_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    assert pixels(encoded(image)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_half_transparent_grey_with_alpha() -> None:
    assert pixels(encoded(Image.new("LA", (1, 1), (0, 128)))).tolist() == [[[127, 127, 127]]]


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_grey_keeps_its_scale() -> None:
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert pixels(encoded(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255])],
)
def test_float_grey_is_scaled_by_its_range(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FA00000, 0x7F800000])  # a NaN, one that signals, infinity
def test_float_grey_that_is_not_finite_is_refused(bits: int) -> None:
    data = encoded(Image.fromarray(np.array([[0, bits]], np.uint32).view(np.float32)), "TIFF")
    with pytest.raises(ImageError, match="not finite"):
        pixels(data)


def test_cmyk_is_converted() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixels(data)[4, 4], [255, 0, 0], atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    """The corner that is stored for each orientation comes to lie at the top left."""
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(stored, exif=exif)), upright)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_cut_off_file_is_refused(random: np.random.Generator) -> None:
    data = encoded(Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        pixels(data[: len(data) // 2])


def test_pixel_limit_refuses_before_decoding() -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    with pytest.raises(ImageError, match="10,000|100 x 100"):
        pixels(data, ImageConfig((32, 32), pixel_limit=9_999))
    assert pixels(data, ImageConfig((32, 32), pixel_limit=10_000)).shape == (100, 100, 3)


@pytest.mark.parametrize("resize_name", ["pad", "crop", "crop0.5", "stretch"])
def test_very_thin_jpeg(resize_name: str) -> None:
    data = encoded(Image.new("RGB", (5000, 10), "green"), "JPEG")
    config = ImageConfig((32, 32), resize_name)
    assert resize(Image.fromarray(pixels(data, config)), config).shape == (32, 32, 3)


def test_no_other_program_is_asked() -> None:
    """Pillow would hand PostScript to Ghostscript."""
    data = encoded(Image.new("RGB", (8, 8), "green"), "EPS")
    with pytest.raises(ImageError, match="not an image in a format"):
        pixels(data)


def test_too_little_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.data.images._upright", exhausted)
    with pytest.raises(ImageError) as caught:
        pixels(encoded(Image.new("RGB", (8, 8))))
    assert not caught.value.lasting


class TestPixelLimit:
    def test_is_that_of_one_decode_whatever_the_process_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pillow's own limit would refuse all of them; tiles of a TIFF and frames of a GIF are checked by it again."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "ICO", "BMP"):
            data = encoded(Image.new("RGB", (64, 64), "green"), kind)
            assert pixels(data).shape == (64, 64, 3)
            assert describe(data, 64 * 64).width == 64
            for limit in (64 * 64 - 1, 5):
                with pytest.raises(ImageError, match="64 x 64 pixels, over the limit"):
                    describe(data, limit)
        assert Image.MAX_IMAGE_PIXELS == 5

    def test_threads_with_different_limits_are_not_in_each_others_way(self) -> None:
        before = Image.MAX_IMAGE_PIXELS
        data = encoded(Image.new("RGB", (60, 60)))

        def fits(number: int) -> bool:
            try:
                decode(data, ImageConfig((32, 32), pixel_limit=3600 if number % 2 else 1000 + number))
            except ImageError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fits, range(400))) == [bool(number % 2) for number in range(400)]
        assert before == Image.MAX_IMAGE_PIXELS

    def test_holds_wherever_pixels_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As fine-tuning from the images reads them, with nothing around it."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        data = encoded(Image.new("RGB", (64, 64), "green"))
        (tmp_path / "large.png").write_bytes(data)
        source = FileSource(["large.png"], tmp_path)
        assert read_pixels(source, 0, file_key(data), ImageConfig((32, 32))).shape == (32, 32, 3)
        with pytest.raises(ImageError, match="over the limit of 4,095"):
            read_pixels(source, 0, file_key(data), ImageConfig((32, 32), pixel_limit=4095))

    def test_of_pillow_still_holds_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(Image.new("RGB", (60, 60)))
        decode(data, FULL)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))

    def test_what_pillow_warns_of_is_decoded_without_a_word(self, tmp_path: Path) -> None:
        """Of more pixels than it holds for safe, and of odd metadata; also where every warning is an error."""
        Image.new("L", (9_500, 9_500)).save(tmp_path / "large.jpg")
        png = encoded(Image.new("RGB", (8, 8)))
        frames = b"acTL" + bytes(8)  # an animation of no frames
        chunk = struct.pack(">I", 8) + frames + struct.pack(">I", zlib.crc32(frames))
        (tmp_path / "odd.png").write_bytes(png[:33] + chunk + png[33:])
        code = """
import sys
from pathlib import Path
from pipeline.config import ImageConfig
from pipeline.data import FileSource, file_key
from pipeline.data.images import decode
for name in sys.argv[1:]:
    print(decode(Path(name).read_bytes(), ImageConfig((1187, 1187))).size)
"""
        names = [str(tmp_path / name) for name in ("large.jpg", "odd.png")]
        done = subprocess.run([sys.executable, "-W", "error", "-c", code, *names], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("(1188, 1188)\n(8, 8)\n", "")


class TestResize:
    """A picture of twice the width: left half black, right half white."""

    image = Image.fromarray(
        np.repeat(np.repeat([[0] * 20 + [255] * 20], 20, axis=0)[:, :, None], 3, axis=2).astype("u1")
    )

    def test_stretch_takes_all(self) -> None:
        result = resize(self.image, ImageConfig((10, 10), "stretch", "nearest"))
        assert result.shape == (10, 10, 3)
        assert result[0, :, 0].tolist() == [0] * 5 + [255] * 5

    def test_pad_keeps_the_shape_and_fills_with_white(self) -> None:
        result = resize(self.image, ImageConfig((20, 20), "pad", "nearest"))
        assert result[0, 0].tolist() == [255, 255, 255]
        assert result[10, 0].tolist() == [0, 0, 0]

    def test_crop_keeps_the_centre(self) -> None:
        result = resize(self.image, ImageConfig((20, 10), "crop", "nearest"))
        assert result[0, :, 0].tolist() == [0] * 5 + [255] * 5

    def test_crop_of_a_share_keeps_less(self) -> None:
        """As timm's crop_pct: half of the shorter side, here 10 of 20 rows and columns 15 to 24 of 40."""
        columns = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (20, 40, 3))
        result = resize(Image.fromarray(columns.copy()), ImageConfig((10, 10), "crop0.5", "nearest"))
        assert result[0, :, 0].tolist() == list(range(15, 25))

    @pytest.mark.parametrize("name", ["crop0", "crop0.0", "crop1.5", "crop2", "cropped"])
    def test_illegal_shares(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"--resize is '{name}'; it can be stretch, pad, crop"):
            ImageConfig((10, 10), name)

    def test_interpolations_differ(self, random: np.random.Generator) -> None:
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        results = [
            resize(image, ImageConfig((16, 16), "stretch", name))
            for name in ("bicubic", "bilinear", "nearest", "lanczos")
        ]
        assert len({result.tobytes() for result in results}) == 4

    def test_size_is_height_and_width(self) -> None:
        assert resize(self.image, ImageConfig((6, 9))).shape == (6, 9, 3)


def test_large_jpeg_is_shrunk_while_decoding_and_small_one_is_not() -> None:
    data = encoded(Image.new("RGB", (640, 480), "green"), "JPEG")
    assert pixels(data, ImageConfig((64, 64))).shape == (120, 160, 3)
    assert pixels(data, ImageConfig((241, 321))).shape == (480, 640, 3)


def test_shrinking_leaves_pixels_near(random: np.random.Generator) -> None:
    smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    data = encoded(smooth, "JPEG", quality=95)
    config = ImageConfig((64, 64))
    whole = resize(Image.fromarray(pixels(data)), config).astype(int)
    shrunk = resize(Image.fromarray(pixels(data, config)), config).astype(int)
    assert np.abs(whole - shrunk).mean() < 2


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    image = np.asarray(from_array(np.full(shape, 7, np.uint8)))
    assert image.shape == (4, 5, 3)
    assert (image == 7).all()


def test_array_with_alpha() -> None:
    assert np.asarray(from_array(np.zeros((1, 1, 4), np.uint8))).tolist() == [[[255, 255, 255]]]


@pytest.mark.data
class TestOddFiles:
    """Each file of the collection behaves as its manifest says a good reader should."""

    # Means of the upright pictures in RGB, taken with other readers of these formats or, for the family of one
    # photograph, from its uncompressed form.
    HOPPER = ("pil-hopper.webp", "pil-hopper.tif", "pil-hopper.avif", "pil-hopper.ppm", "pil-hopper_16bit_qtables.jpg")

    def test_refused_and_read(self, data: Path) -> None:
        folder = data / "odd-images"
        with (folder / "manifest.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 40
        for row in rows:
            good = row["pillow"].endswith("loads")
            try:
                pixels((folder / row["file"]).read_bytes())
            except ImageError as error:
                assert not good, (row["file"], error)
            else:
                assert good, row["file"]

    def test_one_photograph_in_many_formats(self, data: Path) -> None:
        folder = data / "odd-images"
        reference = pixels((folder / "pil-hopper.bmp").read_bytes()).astype(int)
        for name in self.HOPPER:
            found = pixels((folder / name).read_bytes()).astype(int)
            limit = 12 if "qtables" in name else 6  # that file is compressed coarsely
            assert np.abs(found - reference).mean() < limit, name

    def test_orientation_of_photographs(self, data: Path) -> None:
        folder = data / "odd-images"
        first, third = (pixels((folder / f"exif-Landscape_{n}.jpg").read_bytes()).astype(int) for n in (1, 3))
        assert first.shape == third.shape == (1200, 1800, 3)
        assert np.abs(first - third).mean() < 4
        upright = pixels((folder / "pil-hopper.bmp").read_bytes()).astype(int)
        turned = pixels((folder / "pil-hopper_orientation_8.jpg").read_bytes()).astype(int)
        assert np.abs(upright - turned).mean() < 6

    def test_sixteen_bit_ramp(self, data: Path) -> None:
        found = pixels((data / "odd-images" / "png-basn0g16.png").read_bytes())
        raw = np.asarray(Image.open(data / "odd-images" / "png-basn0g16.png")).astype(float)
        np.testing.assert_array_equal(found[:, :, 0], np.rint(raw / 257))

    def test_lab_is_near_white(self, data: Path) -> None:
        assert pixels((data / "odd-images" / "pil-lab.tif").read_bytes()).min() > 250
