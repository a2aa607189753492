from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pmm_ray.data.images import ImageError, check_same_size, image_size, read_image, read_label, write_label
from pmm_ray.data.palette import voc_palette
from pmm_ray.errors import UserError

RGB = np.zeros((3, 4, 3), np.uint8)
RGB[0, 0] = (200, 10, 20)
RGB[:, 3] = (5, 250, 90)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_an_rgb_png_comes_back_exactly_and_writable(tmp_path):
    found = read_image(save(tmp_path / "x.png", Image.fromarray(RGB)))
    np.testing.assert_array_equal(found, RGB)
    found[0, 0] = 0


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    found = read_image(save(tmp_path / "x.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    found = read_image(save(tmp_path / f"x.{suffix}", Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0, 1, 100, 255]


def test_16_bit_grey_that_is_dark_stays_dark(tmp_path):
    found = read_image(save(tmp_path / "x.png", Image.fromarray(np.full((2, 2), 200, np.uint16))))
    assert found.max() == 1


def test_float_tiff_is_taken_as_0_to_1_and_undefined_values_as_black(tmp_path):
    values = np.array([[0, 0.5, 1.0, np.nan]], np.float32)
    found = read_image(save(tmp_path / "x.tif", Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0, 128, 255, 0]


def test_32_bit_integers_use_the_smallest_usual_range_that_holds_them(tmp_path):
    found = read_image(save(tmp_path / "x.tif", Image.fromarray(np.array([[0, 100, 255]], np.int32))))
    assert found[0, :, 0].tolist() == [0, 100, 255]
    found = read_image(save(tmp_path / "y.tif", Image.fromarray(np.array([[0, 50_000, 100_000]], np.int32))))
    assert found[0, :, 0].tolist() == [0, 128, 255]


def test_a_palette_image_gives_its_colours_not_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 8, 7, 200, 100, 50])
    assert read_image(save(tmp_path / "x.png", image)).tolist() == [[[9, 8, 7], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_and_opaque_ones_keep_their_colour(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (40, 40, 40, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        flat = Image.fromarray(np.array([[0, 1]], np.uint8))
        flat.putpalette([40, 40, 40, 0, 0, 0])
        path = save(tmp_path / "x.png", flat, transparency=1)
    else:
        path = save(tmp_path / "x.png", image.convert(mode))
    assert read_image(path).tolist() == [[[40, 40, 40], [255, 255, 255]]]


def test_half_transparent_is_half_way_to_white(tmp_path):
    found = read_image(save(tmp_path / "x.png", Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert found[0, 0].tolist() == [127, 127, 127]


def test_cmyk_jpeg_has_the_right_colours(tmp_path):
    path = save(tmp_path / "x.jpg", Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK"), quality=95)
    assert np.abs(read_image(path).astype(int) - (220, 30, 40)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_rotated_photos_come_upright_and_their_size_agrees(tmp_path, orientation, suffix):
    upright = RGB
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == (3, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_plain_grey_tiff_comes_upright_as_a_compressed_one_does(tmp_path, orientation):
    stored, exif = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)), Image.Exif()
    exif[0x0112] = orientation
    plain, packed = (
        save(tmp_path / f"{name}.tif", stored, exif=exif, compression=name) for name in ("raw", "tiff_deflate")
    )
    np.testing.assert_array_equal(read_image(plain), read_image(packed))
    np.testing.assert_array_equal(read_label(plain), read_label(packed))
    assert read_image(plain).shape[:2] == image_size(plain)


def test_the_size_of_a_rotated_jpeg_agrees_with_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", Image.fromarray(RGB), exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == (4, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    path = save(tmp_path / "x.jpg", Image.fromarray(RGB), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path).shape == (3, 4, 3)
    assert image_size(path) == (3, 4)


def test_only_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "x.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def test_a_wrong_suffix_is_no_obstacle(tmp_path):
    path = save(tmp_path / "x.jpg", Image.fromarray(RGB), format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB)


def broken_files():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    png = buffer.getvalue()
    return {
        "empty": b"",
        "text": b"this is no image",
        "html": b"<html>404</html>",
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[: len(png) // 2],
        "header only": png[:30],
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_file_is_one_line_with_its_name(tmp_path, kind):
    path = tmp_path / "bad image.jpg"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(ImageError, match=r"bad image\.jpg") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError | ValueError)


def test_a_missing_file_and_a_folder_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match=r"cannot be decoded"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    for reader in (read_image, image_size, read_label):
        with pytest.raises(ImageError, match="million pixels"):
            reader(path)


def test_a_line_break_in_a_file_name_does_not_break_the_message(tmp_path):
    path = tmp_path / "a\nb.jpg"
    path.write_bytes(b"no")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_written_mask_reads_back_and_has_colours(tmp_path):
    ids = np.array([[0, 1, 2], [20, 255, 0]], np.uint8)
    path = tmp_path / "folder" / "m.png"
    write_label(path, ids, voc_palette(3))
    np.testing.assert_array_equal(read_label(path), ids)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
        assert image.convert("RGB").getpixel((1, 1)) == (224, 224, 192)
    assert [p.name for p in path.parent.iterdir()] == ["m.png"]


def test_a_mask_keeps_palette_indices_however_few_bits_it_has(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])
    assert read_label(save(tmp_path / "m.png", image, bits=1)).tolist() == [[0, 1, 1]]


def test_grey_and_16_bit_masks_are_ids(tmp_path):
    ids = np.array([[0, 7, 255]], np.uint8)
    assert read_label(save(tmp_path / "g.png", Image.fromarray(ids))).tolist() == ids.tolist()
    assert read_label(save(tmp_path / "w.png", Image.fromarray(ids.astype(np.uint16)))).tolist() == ids.tolist()


def test_masks_that_lost_their_ids_are_refused(tmp_path):
    with pytest.raises(ImageError, match="palette or grey"):
        read_label(save(tmp_path / "c.png", Image.fromarray(RGB)))
    with pytest.raises(ImageError, match=r"c\.jpg"):
        read_label(save(tmp_path / "c.jpg", Image.fromarray(RGB[..., 0])))
    with pytest.raises(ImageError, match=r"0\.\.255"):
        read_label(save(tmp_path / "big.png", Image.fromarray(np.full((2, 2), 1000, np.uint16))))


def test_write_label_refuses_what_is_no_mask(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_label(tmp_path / "m.png", np.zeros((2, 2), np.int64), voc_palette(2))


def test_a_mask_of_another_size_is_named_with_both_sizes():
    check_same_size(np.zeros((3, 4), np.uint8), (3, 4), path="m.png")
    with pytest.raises(ImageError, match=r"m\.png.* 4 x 3 .* 5 x 3"):
        check_same_size(np.zeros((3, 4), np.uint8), (3, 5), path="m.png")


def test_a_phone_s_multi_picture_jpeg_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    path = save(tmp_path / "x.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(path).min() == 255
