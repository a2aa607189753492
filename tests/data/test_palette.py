from __future__ import annotations

from pmm_ray.data.palette import voc_palette


def test_the_first_colours_and_the_last_are_those_of_voc():
    colours = voc_palette()
    assert len(colours) == 256
    assert colours[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert colours[20] == (0, 64, 128)  # tvmonitor
    assert colours[255] == (224, 224, 192)


def test_all_256_colours_differ():
    assert len(set(voc_palette())) == 256


def test_the_masks_of_real_photos_have_this_palette(shared):
    from PIL import Image

    with Image.open(sorted((shared / "minivoc" / "SegmentationClass").glob("*.png"))[0]) as image:
        stored = image.getpalette()
    ours = [channel for colour in voc_palette(len(stored) // 3) for channel in colour]
    assert stored == ours
