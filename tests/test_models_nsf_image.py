"""NSF of images: its skeleton, its mass over all images of two levels, its samples, and a fit of digits."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.core import registry
from rosenblatt.core.errors import OptionError
from rosenblatt.data import digits
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.eval.bits import bits_per_dimension
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.shape import FactorOut, Squeeze
from rosenblatt.models.dequantised import dequantised
from rosenblatt.models.nsf_image import paper_config
from rosenblatt.testing.tables import disturbed, seeded
from rosenblatt.train import FitConfig, Fitter

SMALL = {"transforms": 2, "hidden": 6, "blocks": 1}


def flattened(steps):
    """All steps in the order in which a row meets them, what goes on behind a leaving half included."""
    for step in steps:
        if isinstance(step, FactorOut):
            yield step
            yield from flattened(step.rest.steps)
        else:
            yield step


def build(levels, **options):
    options = {"image": [3, 8, 8], "levels": levels, **SMALL, **options}
    return list(flattened(registry.build("nsf_image", 192, options=options, seed=0).transform.steps))


@pytest.mark.parametrize("multi_scale", [True, False])
def test_scales_squeeze_and_halves_leave_or_stay(multi_scale):
    steps = build(3, multi_scale=multi_scale)
    after = [step.after for step in steps if isinstance(step, Squeeze)]
    assert after == ([(12, 4, 4), (24, 2, 2), (48, 1, 1)] if multi_scale else [(12, 4, 4), (48, 2, 2), (192, 1, 1)])
    assert [step.staying for step in steps if isinstance(step, FactorOut)] == ([96, 48] if multi_scale else [])
    couplings = [step for step in steps if isinstance(step, Conditional)]
    assert len(couplings) == (3 * 2 + 2 if multi_scale else 3 * 2)  # two leave behind a spline of their own


def test_splines_are_conditional_alone():
    """The first half of the channels passes as it is, and every number that is emitted is one of 3 bins - 1."""
    for step in build(2, bins=5, bound=2.0):
        if isinstance(step, Conditional):
            assert isinstance(step.elementwise, RationalQuadraticSpline)
            disturbed(step, 0.5)
            features = step.conditioner.features
            x = 4 * torch.randn(7, features, generator=torch.Generator().manual_seed(1))
            y = step(x).value
            assert torch.equal(y[:, : features // 2], x[:, : features // 2])
            inside = x[:, features // 2 :].abs() < 2
            assert ((y != x)[:, features // 2 :] == inside).all()
            channels = step.conditioner.net.last.out_channels
            pixels = math.prod(step.conditioner.size)
            assert channels * pixels == features // 2 * (3 * 5 - 1)


def test_published_settings_build():
    for dataset in ("cifar10_5bit", "cifar10_8bit", "imagenet64_5bit", "imagenet64_8bit"):
        config = paper_config(dataset)
        FitConfig.from_dict(config["fit"])
        small = {"hidden": 2, "blocks": 1, "transforms": 1}
        image = config["model"]["image"]
        model = registry.build("nsf_image", math.prod(image), options={**config["model"], **small})
        leaving = [step for step in model.transform.steps if isinstance(step, FactorOut)]
        assert len(leaving) == (1 if dataset.startswith("imagenet") else 0)
    assert paper_config("cifar10_8bit")["model"]["bins"] == 4
    assert paper_config("imagenet64_5bit")["data"] == {"bits": 5, "flip": False}
    with pytest.raises(OptionError, match="cifar10_8bit"):
        paper_config("mnist")


def test_masses_of_all_images_of_two_levels_are_those_of_the_sampler():
    """All 16 images of 2 x 2 pixels: averages of the density over their cubes are what the sampler draws into them."""
    options = {"image": [1, 2, 2], "levels": 2, **SMALL, "bins": 3}
    model = seeded(lambda: dequantised(4, levels=2, model="nsf_image", options=options))
    rows = torch.randint(2, (400, 4), generator=torch.Generator().manual_seed(1)).float()
    model.initialise(rows)
    model = disturbed(model, 0.07).double()
    images = torch.cartesian_prod(*[torch.arange(2.0)] * 4).double()
    draws, drawn = 6000, 60_000
    with torch.no_grad():
        log_weight = model.bound(images.repeat(draws, 1), generator=torch.Generator().manual_seed(2))
        points = model.density.sample(drawn, generator=torch.Generator().manual_seed(3))
    weight = log_weight.reshape(draws, 16).exp().numpy()
    inside = (points.abs() < 1).all(dim=1)
    cells = (points[inside] >= 0).long() @ torch.tensor([8, 4, 2, 1])
    share = np.bincount(cells.numpy(), minlength=16) / drawn
    error = np.sqrt(weight.var(axis=0) / draws + share * (1 - share) / drawn)
    limit = stats.norm.isf(1e-6 / 34)  # 16 cells and their sum, two-sided
    assert (np.abs(weight.mean(axis=0) - share) <= limit * error).all()
    mass, mass_error = weight.mean(axis=0).sum(), np.sqrt((weight.var(axis=0) / draws).sum())
    assert share.sum() > 0.3
    assert share.max() > 2 * share.min() > 0.004  # cells that differ, none of them empty
    assert mass <= 1 + limit * mass_error
    assert abs(mass - share.sum()) <= limit * math.hypot(mass_error, math.sqrt(share.sum() * (1 - share.sum()) / drawn))
    # One noise an image is a bound of its mass on average, below the mass itself.
    assert log_weight.exp().reshape(draws, 16).log().mean(dim=0).exp().sum() < mass


def test_a_short_fit_of_digits_beats_independent_pixels():
    images = digits()
    fit, test = images.split((0.8, 0.2), torch.Generator().manual_seed(0))
    train, rows = fit.rows().x, test.rows().x
    counts = torch.stack([(train == level).sum(dim=0) for level in range(17)]) + 1.0
    pixels = torch.log(counts / counts.sum(dim=0)).gather(0, rows.long()).sum(dim=1)
    options = {"image": [1, 8, 8], "levels": 2, "transforms": 2, "hidden": 32, "blocks": 1}
    model = seeded(lambda: dequantised(64, levels=17, model="nsf_image", options=options))
    config = FitConfig(max_steps=200, batch_size=64, learning_rate=1e-2, validation_fraction=0.05, validate_every=200)
    start = seeded(lambda: dequantised(64, levels=17, model="nsf_image", options=options))
    start.initialise(train)
    Fitter(config).fit(model, fit)
    with torch.no_grad():
        bits, before, of_pixels = (
            float(bits_per_dimension(log_prob.mean(), 64))
            for log_prob in (model.eval().log_prob(rows), start.eval().log_prob(rows), pixels)
        )
    assert bits < of_pixels
    assert bits < before - 0.3
