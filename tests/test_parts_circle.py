"""Maps of the circle: density across the seam, and against scipy's wrapped Cauchy and quadrature."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.elementwise.circular import LARGEST_RADIUS, CircularSpline, Moebius

PI = math.pi
CIRCLES = {"spline": CircularSpline(6), "turned": CircularSpline(6, phase=True), "moebius": Moebius(4)}


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CIRCLES)
def test_the_density_at_minus_pi_is_that_at_pi(name):
    circle = CIRCLES[name]
    theta = circle.start().double() + normal(200, circle.spec.size, seed=1, scale=2.0)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        ends = torch.tensor([[-PI], [PI]], dtype=dtype)
        value, log_det = circle(ends, theta.to(dtype))
        assert (log_det[0] - log_det[1]).abs().max() <= limit
        assert (value - ends).abs().max() <= (1e-14 if dtype == torch.float64 else 2e-6)
        assert log_det.abs().max() > 0.5
    # And the limits from both sides are those numbers.
    ends = torch.tensor([[-PI], [PI]], dtype=torch.float64)
    assert (circle(ends * (1 - 1e-11), theta).log_det - circle(ends, theta).log_det).abs().max() <= 1e-5


def test_one_moebius_map_is_the_cdf_of_a_wrapped_cauchy():
    circle = Moebius(1)
    radius, angle = 0.7, 2.1
    raw = radius / LARGEST_RADIUS / math.sqrt(1 - (radius / LARGEST_RADIUS) ** 2)
    theta = torch.tensor([0.3, raw * math.cos(angle), raw * math.sin(angle)], dtype=torch.float64)
    x = torch.linspace(-PI, PI, 41, dtype=torch.float64)
    value, log_det = circle(x, theta)
    cauchy = scipy.stats.wrapcauchy(radius)
    density = 2 * PI * cauchy.pdf((x.numpy() - angle) % (2 * PI))
    assert torch.exp(log_det).numpy() == pytest.approx(density, rel=1e-12)
    area = [scipy.integrate.quad(lambda t: cauchy.pdf((t - angle) % (2 * PI)), -PI, end)[0] for end in x.tolist()]
    assert ((value + PI) / (2 * PI)).numpy() == pytest.approx(area, abs=1e-8)


def test_turning_the_centres_turns_the_density():
    circle, turn = Moebius(3), 1.3
    theta = normal(50, circle.spec.size, seed=2)
    cos, sin = math.cos(turn), math.sin(turn)
    turned = theta.clone()
    rotation = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    turned[:, 3:] = (theta[:, 3:].reshape(50, 3, 2) @ rotation).reshape(50, 6)
    x = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)
    back = torch.remainder(x - turn + PI, 2 * PI) - PI
    assert (circle(x, turned).log_det - circle(back, theta).log_det).abs().max() <= 1e-12


def test_centres_stay_inside_the_disk_for_any_parameter():
    circle = Moebius(2)
    theta = torch.tensor([0.0, 0.0, 1e6, 0.0, 0.0, -1e3], dtype=torch.float64)
    log_det = circle(torch.tensor([0.0, -PI / 2, PI], dtype=torch.float64), theta).log_det
    most = (1 + LARGEST_RADIUS) / (1 - LARGEST_RADIUS)
    assert log_det[0].exp().item() == pytest.approx(most / 2, rel=0.02)
    assert (log_det.exp() >= 1 / most).all()


def test_moebius_refuses_what_lies_outside():
    with pytest.raises(InverseError, match="outside"):
        Moebius(2).inverse(torch.tensor([0.0, 3.2]), torch.zeros(6))
    with pytest.raises(OptionError, match="components"):
        Moebius(0)
