import numpy as np
import pytest

from pmm_ray.data.dataset import Classes
from pmm_ray.report.overlays import colour_map, common_aspect, contact_sheet, heat_overlay, mask_overlay, overlay_sheet

CLASSES = Classes(("background", "cat", "dog"), ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
CAM = np.random.default_rng(1).random((2, 30, 40), dtype=np.float32)
MASK = np.zeros((30, 40), np.uint8)
MASK[10:20, 10:30] = 1


def contains(sheet: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((sheet == np.array(colour, np.uint8)).all(axis=2).any())


def test_the_colour_map_grows_lighter_all_the_way():
    lightness = colour_map(np.linspace(0, 1, 200)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_colours_between_two_anchors_are_their_mean():
    np.testing.assert_allclose(colour_map(np.array(0.1)), [45, 16, 79], atol=1e-3)


def test_a_heat_map_takes_values_outside_its_range_and_nan():
    heat = np.array([[-1, 0], [2, np.nan]])
    expected = heat_overlay(np.zeros((2, 2, 3), np.uint8), np.array([[0, 0], [1, 0]]))
    np.testing.assert_array_equal(heat_overlay(np.zeros((2, 2, 3), np.uint8), heat), expected)


def test_a_mask_is_its_class_colour_over_grey_inside_and_white_at_its_edge():
    grey = np.full((30, 40, 3), 100, np.uint8)
    shown = mask_overlay(grey, MASK, classes=CLASSES)
    assert tuple(shown[15, 20]) == (170, 30, 30)  # 0.3 x 100 + 0.7 x (200, 0, 0)
    assert tuple(shown[0, 0]) == (70, 70, 70)
    assert tuple(shown[10, 15]) == tuple(shown[9, 15]) == (255, 255, 255)
    assert tuple(shown[11, 15]) == (170, 30, 30) and tuple(shown[8, 15]) == (70, 70, 70)


def test_ignored_pixels_and_unknown_ids_look_alike():
    ignored, unknown = (mask_overlay(IMAGE, np.full((30, 40), value), classes=CLASSES) for value in (255, 77))
    np.testing.assert_array_equal(ignored, unknown)


def test_a_sheet_has_a_panel_for_each_thing_given():
    one = overlay_sheet(IMAGE, classes=CLASSES, height=60)
    four = overlay_sheet(IMAGE, classes=CLASSES, cam=CAM, class_ids=(1, 2), mask=MASK, truth=MASK, height=60)
    six = overlay_sheet(IMAGE, classes=CLASSES, cam=CAM, trimap=MASK, mattes=CAM, mask=MASK, truth=MASK, height=60)
    margin = 4
    assert one.shape[1] == 80 + 2 * margin and four.shape[1] == 4 * 80 + 5 * margin
    assert six.shape[1] == 6 * 80 + 7 * margin
    assert four.dtype == np.uint8 and four.shape[2] == 3


def test_the_legend_names_labels_and_what_the_masks_hold_but_not_the_background():
    plain = overlay_sheet(IMAGE // 4, classes=CLASSES, height=60)
    labelled = overlay_sheet(IMAGE // 4, classes=CLASSES, class_ids=(2,), height=60)
    assert not contains(plain, (0, 0, 200)) and contains(labelled, (0, 0, 200))
    masked = overlay_sheet(IMAGE // 4, classes=CLASSES, mask=MASK, height=60)
    assert contains(masked, (200, 0, 0)) and not contains(masked, (0, 0, 200))


def test_a_long_legend_wraps_and_stays_on_the_sheet():
    names = ("background", *(f"class number {i}" for i in range(40)))
    classes = Classes(names, tuple((i, 255 - i, 7) for i in range(41)))
    sheet = overlay_sheet(IMAGE, classes=classes, class_ids=range(1, 41), height=100)
    short = overlay_sheet(IMAGE, classes=classes, class_ids=(1,), height=100)
    assert sheet.shape[0] > short.shape[0] and sheet.shape[1] == short.shape[1]
    assert all(contains(sheet, colour) for colour in classes.palette[1:])


def test_the_same_input_gives_the_same_picture_and_nothing_is_changed():
    cam, mask = CAM.copy(), MASK.copy()
    first = overlay_sheet(IMAGE, classes=CLASSES, cam=CAM, class_ids=(1, 2), mask=MASK, caption="x")
    second = overlay_sheet(IMAGE, classes=CLASSES, cam=CAM, class_ids=(1, 2), mask=MASK, caption="x")
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(CAM, cam)
    np.testing.assert_array_equal(MASK, mask)


@pytest.mark.parametrize("size", [(1, 1), (500, 20), (20, 500)])
def test_images_of_any_shape_fit_their_box(size):
    image = np.zeros((*size, 3), np.uint8)
    sheet = overlay_sheet(image, classes=CLASSES, cam=np.zeros((0, *size)), mask=np.zeros(size, int), height=60)
    assert 60 < sheet.shape[0] <= 100


def test_one_aspect_lines_sheets_up_in_a_contact_sheet():
    images = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]
    aspect = common_aspect(image.shape[:2] for image in images)
    assert aspect == 1.5
    sheets = [overlay_sheet(image, classes=CLASSES, aspect=aspect, height=60) for image in images]
    together = contact_sheet(sheets)
    assert together.shape == (sum(s.shape[0] for s in sheets) + 1, sheets[0].shape[1], 3)


def test_a_contact_sheet_is_padded_with_white_and_needs_a_sheet():
    together = contact_sheet([np.zeros((5, 8, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])
    assert together.shape == (11, 8, 3) and (together[6:, 4:] == 255).all() and (together[:5] == 0).all()
    with pytest.raises(ValueError, match="no sheets"):
        contact_sheet([])
