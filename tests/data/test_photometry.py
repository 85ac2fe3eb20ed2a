"""Colours and blur of the views, compared with torchvision's and detectron2's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from detectron2.projects.point_rend import ColorAugSSDTransform
from skimage import data
from torchvision.transforms import v2

from dearli_d2.data import photometry
from dearli_d2.data.photometry import ColorAugmentation, StrongPhotometry
from dearli_d2.data.streams import seeded

F = v2.functional
PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:200, 100:320])
IMAGES = {
    "photograph": PHOTOGRAPH,
    "pale photograph": PHOTOGRAPH // 4 + 60,
    "noise": np.random.default_rng(0).integers(0, 256, (150, 160, 3), dtype=np.uint8),
    "grey": np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2),
}
# largest and mean difference in grey levels
OPERATIONS = {
    "greyscale": (photometry.greyscale, lambda x: F.rgb_to_grayscale(x, 3), 1, 0.001, [()]),
    "brightness": (photometry.brightness, F.adjust_brightness, 0, 0, [(0.2,), (1.0,), (1.8,)]),
    "contrast": (photometry.contrast, F.adjust_contrast, 1, 0.05, [(0.2,), (1.0,), (1.8,)]),
    "saturation": (photometry.saturation, F.adjust_saturation, 1, 0.03, [(0.23,), (1.0,), (1.7351,)]),
    "hue": (photometry.hue, F.adjust_hue, 1, 0.001, [(-0.5,), (-0.2,), (0.0,), (0.13,)]),
    "blur": (
        lambda x, sigma: photometry.blur(x, sigma, 6),
        lambda x, sigma: F.gaussian_blur(x, [13, 13], [sigma, sigma]),
        2, 0.2, [(0.1,), (1.0,), (2.0,)],
    ),
}  # fmt: skip


def torchvision(function, image):
    return function(torch.from_numpy(image.transpose(2, 0, 1).copy())).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_within_its_tolerance_of_torchvision(name):
    own, theirs, most, mean, amounts = OPERATIONS[name]
    for kind, image in IMAGES.items():
        before = image.copy()
        for amount in amounts:
            ours, expected = own(image, *amount), torchvision(lambda x, a=amount: theirs(x, *a), image)
            assert ours.dtype == np.uint8
            difference = np.abs(ours.astype(int) - expected)
            assert difference.max() <= most, (kind, amount)
            assert difference.mean() <= mean, (kind, amount)
        assert np.array_equal(image, before)


@pytest.mark.parametrize("probability", [1.0, 0.8])
def test_a_seed_gives_the_strong_view_that_torchvision_would_give(probability):
    colors = v2.ColorJitter(0.8, 0.8, 0.8, 0.2)
    reference = v2.Compose(
        [
            colors if probability == 1 else v2.RandomApply([colors], probability),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        ]
    )
    own = StrongPhotometry(jitter_probability=probability)
    for kind, mean in (("photograph", 0.1), ("noise", 0.5)):
        for seed in range(20):
            with seeded(seed):
                ours = own(IMAGES[kind])
                state = torch.get_rng_state()
            with seeded(seed):
                difference = np.abs(ours.astype(int) - torchvision(reference, IMAGES[kind]))
                assert torch.equal(torch.get_rng_state(), state)  # as many draws
            assert difference.mean() <= mean, (kind, seed)
            assert difference.max() <= 6, (kind, seed)


def test_colours_of_labelled_images_are_detectron2s_to_the_last_bit():
    reference, own = ColorAugSSDTransform(img_format="RGB"), ColorAugmentation()
    results = set()
    for seed in range(48):
        for image in (IMAGES["photograph"], IMAGES["noise"]):
            random.seed(seed)
            expected, state = reference.apply_image(image), random.getstate()
            random.seed(seed)
            ours = own(image)
            assert np.array_equal(ours, expected)
            assert random.getstate() == state
        results.add(ours.tobytes())
    assert len(results) > 40
