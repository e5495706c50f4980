"""Mixtures of logistic CDFs, alone (a logistic mixture) or stacked (deep sigmoidal flow)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import OptionError
from rosenblatt.core.laws import Law, LogisticLaw
from rosenblatt.core.logspace import log_one_minus_exp, soft_bound
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise, UnitElementwise

LOG_SLOPE_BOUND = 7.0
# Beyond, the map is constant: times the steepest slope it would overflow. A search in float64 for what float32 can hold
# needs a longer line.
LARGEST_INPUT, LARGEST_WIDE_INPUT = 1e30, 1e60
START_SPREAD = 0.6  # share of the logistic's quantiles over which components start


class LogisticMixture(UnitElementwise):
    """A mixture of logistics: `F(x) = sum_k w_k s(a_k (x - m_k))`, carried as `value = logit F`.

    `log_det = log F' - log F - log(1 - F)`; every sum is a logsumexp, and w sums to one because it is a softmax, so no
    tail is lost. `log a_k` is smoothly bounded to [-7, 7]. theta = 0 is the standard logistic CDF, `value = x`.
    The conditionals of MADE with mixtures (Germain et al. 2015) and PixelCNN++ (Salimans et al. 2017).
    Raises `OptionError` unless components >= 1.

    >>> mixture = LogisticMixture(components=3)
    >>> mixture.cdf(torch.zeros(1), torch.zeros(1, mixture.spec.size))
    tensor([0.5000])
    """

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        _require_units("components", components)
        self.components = components
        self.spec = ParamSpec(logits=(components,), locations=(components,), log_scales=(components,))

    def start(self) -> Tensor:
        """Components spread over the standard logistic's quantiles; F within 0.02 of the standard logistic."""
        locations, raw = _spread(self.components)
        return self.spec.join(logits=torch.zeros(self.components), locations=locations, log_scales=raw)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """logit F and its log-derivative."""
        log_weight, location, log_slope = self._decode(theta.to(x.dtype))
        z = torch.exp(log_slope) * (_bounded(x).unsqueeze(-1) - location)
        return _logit_mixture(z, log_weight, log_slope)

    def closed_law(self, law: Law, theta: Tensor) -> Law | None:
        """The mixture itself, in front of the standard logistic."""
        if not (isinstance(law, LogisticLaw) and law.standard):
            return None
        log_weight, location, log_slope = self._decode(theta.double())
        return LogisticLaw(torch.exp(log_weight), location, torch.exp(-log_slope))

    def bind(self, theta: Tensor) -> _BoundMixtures:
        """Decode once for a root search."""
        log_weight, location, log_slope = self._decode(theta)
        slope = torch.exp(log_slope)
        return _BoundMixtures([(log_weight, slope, -slope * location)])

    def interval_log_prob(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        """log(F(upper) - F(lower)) for lower < upper, infinite ends included; see `UnitElementwise`."""
        return self._log_interval(_bounded(lower), _bounded(upper), theta)

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        log_weight, location, log_slope = self._decode(theta.to(lower.dtype))
        slope = torch.exp(log_slope)
        below = slope * (_bounded(lower).unsqueeze(-1) - location)
        above = slope * (_bounded(upper).unsqueeze(-1) - location)
        # The width is taken before the location is subtracted, so that a narrow interval keeps its digits.
        log_width = torch.log(upper - lower).unsqueeze(-1) + log_slope
        parts = logsigmoid(above) + logsigmoid(-below) + log_one_minus_exp(log_width)
        return torch.logsumexp(log_weight + parts, dim=-1)

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.spec.split(theta)
        log_weight = torch.log_softmax(parts["logits"], dim=-1)
        return log_weight, parts["locations"], soft_bound(parts["log_scales"], LOG_SLOPE_BOUND)


class DeepSigmoid(Elementwise):
    """Deep sigmoidal flow: layers of `y = logit(sum_k w_k s(a_k x + b_k))`, each from R onto R (Huang et al. 2018).

    `log a_k` is smoothly bounded to [-7, 7]; theta = 0 is the identity. The inverse is a root search.
    Raises `OptionError` unless units and layers are >= 1.

    >>> flow = DeepSigmoid(units=4, layers=2)
    >>> flow(torch.tensor([2.0]), torch.zeros(1, flow.spec.size)).value
    tensor([2.])
    """

    def __init__(self, units: int = 16, layers: int = 2) -> None:
        super().__init__()
        _require_units("units", units)
        _require_units("layers", layers)
        self.units = units
        self.layers = layers
        self.spec = ParamSpec(logits=(layers, units), shifts=(layers, units), log_slopes=(layers, units))

    def start(self) -> Tensor:
        """Units of each layer spread as in `LogisticMixture.start`, so that each layer is nearly the identity."""
        locations, raw = _spread(self.units)
        shifts = -locations * torch.exp(soft_bound(raw, LOG_SLOPE_BOUND))
        return self.spec.join(
            logits=torch.zeros(self.layers, self.units),
            shifts=shifts.expand(self.layers, -1),
            log_slopes=raw.expand(self.layers, -1),
        )

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Run the layers and add their log-derivatives."""
        value, log_det = x, torch.zeros_like(x)
        for log_weight, log_slope, shift in self._decode(theta.to(x.dtype)):
            z = torch.exp(log_slope) * _bounded(value).unsqueeze(-1) + shift
            value, layer_log_det = _logit_mixture(z, log_weight, log_slope)
            log_det = log_det + layer_log_det
        return Mapped(value, log_det)

    def bind(self, theta: Tensor) -> _BoundMixtures:
        """Decode once for a root search."""
        layers = self._decode(theta)
        return _BoundMixtures([(log_weight, torch.exp(log_slope), shift) for log_weight, log_slope, shift in layers])

    def _decode(self, theta: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        parts = self.spec.split(theta)
        log_weight = torch.log_softmax(parts["logits"], dim=-1)
        log_slope = soft_bound(parts["log_slopes"], LOG_SLOPE_BOUND)
        return list(zip(log_weight.unbind(-2), log_slope.unbind(-2), parts["shifts"].unbind(-2), strict=True))


class _BoundMixtures:
    """Values only, of layers of (log-weight, slope, shift) decoded for each row."""

    def __init__(self, layers: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        for log_weight, slope, shift in self.layers:
            z = slope * _bounded(x).unsqueeze(-1) + shift
            below = logsigmoid(z)
            x = torch.logsumexp(log_weight + below, dim=-1) - torch.logsumexp(log_weight + below - z, dim=-1)
        return x

    def select(self, rows: Tensor) -> _BoundMixtures:
        return _BoundMixtures([(a[rows], b[rows], c[rows]) for a, b, c in self.layers])


def _logit_mixture(z: Tensor, log_weight: Tensor, log_slope: Tensor) -> Mapped:
    """Logit of `sum_k w_k s(z_k)` and the log of its derivative in x, where dz_k/dx = exp(log_slope_k)."""
    below = logsigmoid(z)
    above = below - z  # log s(-z)
    log_low = torch.logsumexp(log_weight + below, dim=-1)
    log_high = torch.logsumexp(log_weight + above, dim=-1)
    log_density = torch.logsumexp(log_weight + log_slope + below + above, dim=-1)
    return Mapped(log_low - log_high, log_density - log_low - log_high)


def _bounded(x: Tensor) -> Tensor:
    largest = LARGEST_WIDE_INPUT if x.dtype is torch.float64 else LARGEST_INPUT
    return x.clamp(-largest, largest)


def _spread(count: int) -> tuple[Tensor, Tensor]:
    """Locations over the logistic's quantiles, and the raw log-slope that restores its variance."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    locations = START_SPREAD * torch.logit(levels)
    within = 1 - locations.square().mean() / (math.pi**2 / 3)
    log_slope = -0.5 * torch.log(within)
    raw = LOG_SLOPE_BOUND * torch.atanh(log_slope / LOG_SLOPE_BOUND)
    default = torch.get_default_dtype()
    return locations.to(default), raw.expand(count).to(default)


def _require_units(name: str, value: int) -> None:
    if value < 1:
        raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
