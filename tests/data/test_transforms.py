"""Joints stay on the pixels that they mark, whatever is cut and mirrored; the published readers' mistakes are theirs alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from posegen.data.on_disk.transforms import TRANSFORMS, Corrected, PublishedCrop, Transform, View, transform_of
from posegen.poses.topology import COCO_FLIP
from tests.data.trees import people

SIZES = [
    ((300, 220), (64, 64)),
    ((220, 300), (64, 64)),
    ((97, 131), (64, 48)),
    ((40, 50), (64, 64)),
    ((64, 64), (64, 64)),
]
NO_AREAS = np.full(1, np.nan)


def dotted(stored: tuple[int, int], x: float, y: float) -> np.ndarray:
    """A black picture with a soft white dot."""
    image = np.zeros((*stored, 3), np.uint8)
    image[round(y), round(x)] = 255
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(1.0, min(stored) / 40))
    return (255 * blurred / blurred.max()).round().astype(np.uint8)


def found(image: np.ndarray) -> np.ndarray:
    """Where the dot is: the centre of its brightness."""
    light = image[..., 0].astype(float)
    rows, columns = np.indices(light.shape)
    return np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()


@pytest.mark.parametrize(("stored", "size"), SIZES)
@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [
        (Corrected(), 0.3),
        (Corrected(mirror=1.0), 0.3),
        (PublishedCrop(), 0.8),
        (PublishedCrop(horizontal=1.0), 0.8),
        (PublishedCrop(vertical=1.0), 0.8),
    ],
    ids=["corrected", "mirrored", "reference", "reference mirrored", "reference upturned"],
)
def test_joints_stay_on_their_pixels(
    stored: tuple[int, int], size: tuple[int, int], transform: Transform, tolerance: float
) -> None:
    view = transform.view("some id", 3, stored, size)
    checked = 0
    for x, y in np.random.default_rng(0).uniform(0.1, 0.9, (40, 2)) * (stored[1], stored[0]):
        keypoints = np.zeros((1, 17, 3), np.float32)
        keypoints[0, 5] = round(x), round(y), 2
        joints, _, there = transform.people(keypoints, NO_AREAS, view)
        image = view.pixels(dotted(stored, x, y))
        assert image.shape == (*size, 3)
        if there[0]:
            joint = COCO_FLIP[5] if view.mirrored and isinstance(transform, Corrected) else 5
            place = joints[0, joint]
            assert place[2] == 2 and not np.delete(joints[0], joint, 0).any()
            if (np.minimum(place[:2], np.array(size[::-1]) - 1 - place[:2]) > 8).all():  # the whole dot is seen
                np.testing.assert_allclose(place[:2], found(image), atol=tolerance)
                checked += 1
    assert checked >= 3


def test_corrected_takes_the_middle_and_knows_what_it_cut() -> None:
    view = Corrected().view("any", 5, (100, 300), (64, 64))
    assert view == Corrected().view("other", 0, (100, 300), (64, 64))
    assert view.crop == {"left": 100.0, "top": 0.0, "width": 100.0, "height": 100.0}
    keypoints = np.zeros((3, 17, 3), np.float32)
    keypoints[0, :3] = (99.0, 50, 2), (101, 50, 1), (150, 50, 2)  # the first is just outside
    keypoints[1, 0] = 50, 50, 2  # outside with all of him
    keypoints[2, :2] = (120, 20, 0.01), (160, 60, 0.5)  # detected; the first too unsure
    joints, areas, there = Corrected().people(keypoints, np.array([400.0, 400.0, np.nan]), view)
    assert there.tolist() == [True, False, True]
    assert joints[0, :3, 2].tolist() == [0, 1, 2] and joints[1, :2, 2].tolist() == [0, 0.5]
    assert not joints[0, 0].any()  # a missing joint is zero
    assert areas.tolist() == pytest.approx([400 * 0.64**2, 1.0])


def test_areas_nobody_measured_are_boxes_of_seen_joints() -> None:
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, :3] = (0, 0, 2), (110, 10, 2), (190, 50, 2)
    view = Corrected().view("any", 0, (100, 300), (100, 100))
    assert Corrected().people(keypoints, NO_AREAS, view)[1].tolist() == pytest.approx([80 * 40])


def test_mirroring_swaps_left_and_right_where_it_is_right() -> None:
    keypoints = people(np.random.default_rng(1), 2, (64, 64))
    size = (64, 64)
    plain = Corrected().people(keypoints, NO_AREAS.repeat(2), Corrected().view("a", 0, size, size))[0]
    right = Corrected(1.0).people(keypoints, NO_AREAS.repeat(2), Corrected(1.0).view("a", 0, size, size))[0]
    wrong = PublishedCrop(1.0).people(keypoints, NO_AREAS.repeat(2), PublishedCrop(1.0).view("a", 0, size, size))[0]
    np.testing.assert_allclose(right[..., 0], 63 - plain[:, COCO_FLIP, 0], atol=1e-4)
    np.testing.assert_allclose(wrong[..., 0], 63 - plain[..., 0], atol=1e-4)


def test_reference_reads_as_published() -> None:
    """Random parts, a joint outside the picture in its corner, ten people at most, unsure joints dropped."""
    size = (64, 64)
    keypoints = people(np.random.default_rng(0), 12, size)
    keypoints[0, 9] = 70, 30, 0.9  # outside
    keypoints[1, 9, 2] = 0.02
    reference = PublishedCrop()
    joints, _, there = reference.people(keypoints, NO_AREAS.repeat(12), reference.view("a", 0, size, size))
    assert len(joints) == 10 and there.tolist() == [True] * 10 + [False] * 2
    assert joints[0, 9].tolist() == pytest.approx([0, 0, 0.9])
    assert joints[1, 9].tolist() == [0, 0, 0]
    assert len(Corrected().people(keypoints, NO_AREAS.repeat(12), Corrected().view("a", 0, size, size))[0]) == 12


def test_random_parts_are_functions_of_id_and_visit() -> None:
    reference = TRANSFORMS["humansd"]
    views = [reference.view(f"id {i}", visit, (64, 200), (64, 64)) for i in range(60) for visit in range(2)]
    again = [reference.view(f"id {i}", visit, (64, 200), (64, 64)) for i in range(60) for visit in range(2)]
    assert views == again
    lefts = np.array([view.left for view in views])
    assert lefts.min() < 15 and lefts.max() > 120 and len(set(lefts)) > 60 and not any(view.top for view in views)
    assert (
        0.1 < np.mean([view.mirrored for view in views]) < 0.32
        and 0.02 < np.mean([view.upturned for view in views]) < 0.2
    )
    assert reference.varies and not TRANSFORMS["corrected"].varies and Corrected(0.5).varies


def test_the_record_of_a_mirrored_cut_is_in_the_stored_picture() -> None:
    view = View((100, 300), (100, 300), 0, 20, (100, 100), mirrored=True)
    image = np.arange(300, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2)
    left = int(view.crop["left"])
    np.testing.assert_array_equal(view.pixels(image), image[:, left : left + 100][:, ::-1])
    assert view.crop["mirrored"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match="transform='centre': expected one of corrected, stretch, reference, stable_pose, humansd"
    ):
        transform_of("centre")
