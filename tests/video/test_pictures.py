"""A still picture of any kind is upright 8-bit RGB or refused, and a folder's pictures have one stated order."""

import io
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from clips import number, numbers, picture
from hookedvid.errors import VideoError
from hookedvid.video.frames import read_frames
from hookedvid.video.pictures import TURNS, upright_rgb

ORIENTATION = 0x0112


def bands():
    """A 16-bit grey picture, black at the left, three quarters of white at the right."""
    return np.repeat(np.arange(4, dtype=np.uint16) * 65 * 257, 8)[None].repeat(16, 0)


def wheel():
    """A picture that is another one however it is turned, mirrored or transposed."""
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def from_list(image, tmp_path):
    return read_frames([image], 1)[0]


def from_folder(image, tmp_path):
    exif = image.getexif()
    (tmp_path / "frames").mkdir()
    image.save(tmp_path / "frames" / "0.png", exif=exif)
    return read_frames(tmp_path / "frames", 1)[0]


def from_zip(image, tmp_path):
    from_folder(image, tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "frames" / "0.png", "frames/0.png")
    return read_frames(f"{tmp_path / 'a.zip'}::frames", 1)[0]


WAYS = pytest.mark.parametrize("way", [from_list, from_folder, from_zip])


@WAYS
def test_16_bit_grey_keeps_its_shades(way, tmp_path):
    shades = way(Image.fromarray(bands()), tmp_path)
    assert shades[0, ::8].tolist() == [[v] * 3 for v in (0, 65, 130, 195)]


@pytest.mark.parametrize("mode", ["I;16B", "I;16L", "I;16N"])
def test_16_bits_in_any_order_of_bytes(mode):
    order = {"B": ">u2", "L": "<u2", "N": "=u2"}[mode[-1]]
    image = Image.frombytes(mode, bands().shape[::-1], bands().astype(order).tobytes())
    assert upright_rgb(image, "x")[0, ::8, 0].tolist() == [0, 65, 130, 195]


def test_16_bit_grey_in_a_wide_mode():
    # PGM opens as 32-bit integers, in every Pillow; PNG did in Pillow 10.
    data = b"P5 32 16 65535\n" + bands().astype(">u2").tobytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I"
        assert upright_rgb(image, "x")[0, ::8, 0].tolist() == [0, 65, 130, 195]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_no_known_range_are_refused(mode):
    with pytest.raises(VideoError, match=f"image 0 of a list of 1: the image is of mode {mode}, .* 8-bit RGB image"):
        read_frames([Image.new(mode, (4, 4), 200)], 1)


@WAYS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(way, tmp_path, orientation):
    image = Image.fromarray(wheel())
    image.getexif()[ORIENTATION] = orientation
    assert np.array_equal(way(image, tmp_path), np.asarray(ImageOps.exif_transpose(image)))


def test_16_bit_pictures_are_turned_too(tmp_path):
    image = Image.fromarray(bands())
    image.getexif()[ORIENTATION] = 6
    assert from_folder(image, tmp_path)[::8, 0, 0].tolist() == [0, 65, 130, 195]
    assert len(TURNS) == 7


def test_pictures_of_any_mode_become_rgb(tmp_path):
    colours = Image.fromarray(wheel())
    grey = colours.convert("L")
    for mode in ("RGBA", "RGBX", "YCbCr", "HSV", "CMYK"):
        # The last three are other coordinates, in whole numbers.
        assert np.abs(upright_rgb(colours.convert(mode), "x").astype(int) - wheel()).max() <= 6, mode
    for mode in ("LA", "RGBA", "P"):
        assert np.array_equal(upright_rgb(grey.convert(mode), "x"), np.asarray(grey.convert("RGB"))), mode
    assert set(np.unique(upright_rgb(grey.convert("1"), "x"))) <= {0, 255}


@WAYS
@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255])])
def test_palettes_with_transparency_keep_their_colours(way, tmp_path, transparency):
    image = Image.fromarray(wheel()).quantize(8)
    colours = np.asarray(image.convert("RGB"))
    image.info["transparency"] = transparency
    assert np.array_equal(way(image, tmp_path), colours)


def test_16_bit_colours_are_their_upper_bits(tmp_path):
    deep = (wheel().astype(np.uint16) << 8) + 77
    frame = av.VideoFrame.from_ndarray(deep, format="rgb48be")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 9, 6, "rgb48be", Fraction(1)
    (tmp_path / "0.png").write_bytes(b"".join(bytes(packet) for packet in encoder.encode(frame)))
    assert np.array_equal(read_frames(tmp_path, 1)[0], wheel())


def test_damaged_pictures_in_lists_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(wheel().repeat(9, 0).repeat(9, 1)).save(file, "JPEG")
    image = Image.open(io.BytesIO(file.getvalue()[:-200]))
    with pytest.raises(VideoError, match="image 0 of a list of 1: the image cannot be read"):
        read_frames([image], 1)


def in_a_folder(path, names):
    """A folder whose pictures carry the numbers of their names' places."""
    path.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(picture(i)).save(path / name)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "1.25.png", "1.5.png", "2.0.png", "10.0.png"],
        ["frame_2.png", "frame_10.png", "frame_100.png"],
        ["a_0.25.jpg", "a_0.5.png", "a_0.75.bmp", "a_1.0.jpg", "b_0.1.png"],
        ["01.png", "1.png", "001.5.png", "2.png"],
        ["shot1.09.png", "shot1.10.png", "shot2.01.png"],
        ["1.50.png", "1.75.png", "10.00.png", "10.25.png"],
        ["00.01.15.png", "00.01.16.png", "00.02.00.png"],
        ["a.png", "b.png", "b1.png"],
        ["9" * 200 + ".png", "1" + "0" * 200 + ".png"],
    ],
)
def test_a_folders_frames_are_ordered_by_the_numbers_in_their_names(tmp_path, names):
    assert numbers(read_frames(in_a_folder(tmp_path / "f", names), len(names))) == list(range(len(names)))


def test_names_that_can_be_read_in_two_orders_are_refused(tmp_path):
    folder = in_a_folder(tmp_path / "f", ["1.9.png", "1.10.png"])
    with pytest.raises(VideoError, match=r"names like 1\.10\.png may be decimals or count .* as many digits"):
        read_frames(folder, 2)
    (folder / "1.9.png").rename(folder / "1.09.png")
    assert [number(frame) for frame in read_frames(folder, 2)] == [0, 1]
