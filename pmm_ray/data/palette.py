"""Colours of class ids: the palette of PASCAL VOC, which most tools know."""

from __future__ import annotations

Colour = tuple[int, int, int]


def voc_palette(count: int = 256) -> tuple[Colour, ...]:
    """The first `count` colours (r, g, b), each 0..255, of VOC's palette; id 255 (ignore) is cream.

    The bits of an id, lowest first, are dealt to red, green, blue in turn, and fill each from its highest bit down.
    """
    return tuple(_colour(index) for index in range(count))


def _colour(index: int) -> Colour:
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]
