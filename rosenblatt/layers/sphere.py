"""Charts of spheres that keep areas, rotations in a chart, and densities of unit vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.fading import axis_distance
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.errors import DataError
from rosenblatt.core.roots import Increasing, find_root
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Batch, Likelihood, Mapped, Support

UNIT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of |x| - 1; rows are divided by |x|


def to_chart(x: Tensor) -> Tensor:
    """Chart coordinates (*batch, D) of vectors (*batch, D + 1) on the sphere S^D: D - 1 heights and a longitude.

    From the last axis on, `h_k = A_k(x_k / |(x_0 .. x_k)|)` for k = D .. 2, where A_k grows from -1 to 1 as the area of
    the cap of S^k below; on S^2, by Archimedes, A is the identity. The longitude is `atan2(x_1, x_0)` in [-pi, pi]. All
    of the sphere becomes the box [-1, 1]^(D-1) x [-pi, pi], and equal areas become equal volumes.

    >>> to_chart(torch.tensor([0.0, 1.0, 0.0]))
    tensor([0.0000, 1.5708])
    """
    heights = []
    for k in range(x.shape[-1] - 1, 1, -1):
        latitude = torch.atan2(x[..., k], torch.linalg.vector_norm(x[..., :k], dim=-1))
        heights.append(_area_below(latitude, k))
    return torch.stack([*heights, _longitude(x[..., 0], x[..., 1])], dim=-1)


def from_chart(chart: Tensor) -> Tensor:
    """Unit vectors (*batch, D + 1) of chart coordinates (*batch, D); the inverse of `to_chart`.

    >>> from_chart(torch.tensor([1.0, 0.3]))
    tensor([0., 0., 1.])
    """
    *heights, longitude = chart.unbind(dim=-1)
    x = torch.stack([torch.cos(longitude), torch.sin(longitude)], dim=-1)
    for k, height in enumerate(reversed(heights), start=2):
        if k == 2:
            sine, cosine = height, axis_distance(height)
        else:
            latitude = _latitude(height, k)
            sine, cosine = torch.sin(latitude), torch.cos(latitude)
        x = torch.cat([cosine.unsqueeze(-1) * x, sine.unsqueeze(-1)], dim=-1)
    return x


def from_degrees(latitude_longitude: Tensor) -> Tensor:
    """Unit vectors (*batch, 3) of latitude and longitude in degrees (*batch, 2).

    >>> from_degrees(torch.tensor([0.0, 180.0])).round().tolist()
    [-1.0, -0.0, 0.0]
    """
    latitude, longitude = torch.deg2rad(latitude_longitude).unbind(dim=-1)
    flat = torch.cos(latitude)
    return torch.stack([flat * torch.cos(longitude), flat * torch.sin(longitude), torch.sin(latitude)], dim=-1)


def to_degrees(x: Tensor) -> Tensor:
    """Latitude and longitude in degrees (*batch, 2) of vectors (*batch, 3)."""
    latitude = torch.atan2(x[..., 2], torch.linalg.vector_norm(x[..., :2], dim=-1))
    return torch.rad2deg(torch.stack([latitude, _longitude(x[..., 0], x[..., 1])], dim=-1))


class SphereRotation(Transform):
    """A trainable rotation of the sphere S^2 in its chart (height, longitude): `log_det = 0`, for areas stay.

    The matrix is that of a unit quaternion q / |q|, at first a random one. Outside the chart value = +-inf and
    log_det = -inf.

    >>> bool(SphereRotation()(torch.tensor([[0.2, 1.0]])).log_det == 0)
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.quaternion = nn.Parameter(torch.randn(4))

    @property
    def matrix(self) -> Tensor:
        """The rotation matrix (3, 3)."""
        w, x, y, z = (self.quaternion / torch.linalg.vector_norm(self.quaternion)).unbind()
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Rotate."""
        return self._turned(x, self.matrix)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Rotate back."""
        return self._turned(y, self.matrix.t())

    def _turned(self, chart: Tensor, matrix: Tensor) -> Mapped:
        ends = chart.new_tensor([1.0, math.pi])
        here = chart.clamp(-ends, ends)
        x, y, height = (from_chart(here) @ matrix.to(chart.dtype).t()).unbind(dim=-1)
        value = torch.stack([height.clamp(-1.0, 1.0), _longitude(x, y)], dim=-1)
        outside = chart.abs() > ends
        value = torch.where(outside, torch.copysign(torch.full_like(chart, torch.inf), chart), value)
        log_det = 0.0 * value.detach()[..., 0].clamp(-1.0, 1.0) + 0.0 * matrix.sum()
        return Mapped(value, torch.where(outside.any(dim=-1), -torch.inf, log_det))


class OnSphere(Density):
    """A density of unit vectors in R^(D+1) with respect to area on S^D, from a flow of chart coordinates.

    `log p(x) = log p_chart(to_chart(x)) + log(volume of the chart / area of the sphere)`; the constant is 0 on the
    circle and on S^2. Samples are unit vectors, differentiable once. Rows that are no unit vectors raise `DataError`, a
    row with NaN gives NaN.

    >>> from rosenblatt.bases import Box
    >>> from rosenblatt.core.transform import Identity
    >>> uniform = OnSphere(Flow(Identity(), Box(2, bound=[1.0, math.pi])))
    >>> round(float(uniform.log_prob(torch.tensor([0.6, 0.0, 0.8])).exp() * 4 * math.pi), 4)
    1.0
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.features, self.context = flow.features + 1, flow.context
        half = self.features / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        self.log_ratio = (flow.features - 1) * math.log(2) + math.log(2 * math.pi) - log_area

    @property
    def likelihood(self) -> Likelihood:
        """What the flow can claim."""
        return self.flow.likelihood

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats with respect to area."""
        self.check(x, context)
        error = (torch.linalg.vector_norm(x.detach(), dim=-1) - 1).abs()
        wrong = (error > UNIT_TOLERANCE[x.dtype]).reshape(-1).nonzero().squeeze(-1)
        if wrong.numel():
            raise DataError(
                f"x: rows {wrong[:5].tolist()} have another length than 1, unit vectors were expected; divide by |x|, "
                "or use from_degrees for latitudes and longitudes."
            )
        return self.flow.log_prob(to_chart(x), context) + self.log_ratio

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` unit vectors and their log-densities."""
        chart, log_prob = self.flow.sample_and_log_prob(n, context, generator=generator)
        return from_chart(chart), log_prob + self.log_ratio

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the flow start from the rows."""
        self.flow.initialise(to_chart(x), context, weight)

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Let the flow recompute its statistics from the rows."""
        self.flow.refresh(batch._replace(x=to_chart(batch.x)) for batch in batches)


def _longitude(x: Tensor, y: Tensor) -> Tensor:
    """`atan2(y, x)`; 0, with no gradient, where both vanish."""
    axis = (x == 0) & (y == 0)
    return torch.atan2(torch.where(axis, 0.0, y), torch.where(axis, 1.0, x))


def _integral(latitude: Tensor, power: int) -> Tensor:
    """The integral of `cos^power` from 0 to `latitude`, by its recursion."""
    sine, cosine = torch.sin(latitude), torch.cos(latitude)
    total = sine if power % 2 else latitude
    for m in range(3 if power % 2 else 2, power + 1, 2):
        total = (cosine ** (m - 1) * sine + (m - 1) * total) / m
    return total


def _area_below(latitude: Tensor, k: int) -> Tensor:
    """From -1 to 1, the area of S^k up to `latitude`: its circles have the area of `cos^(k-1)`."""
    return (_integral(latitude, k - 1) / _half_area(k)).clamp(-1.0, 1.0)


def _half_area(k: int) -> float:
    """The integral of `cos^(k-1)` from 0 to pi / 2."""
    return 0.5 * math.sqrt(math.pi) * math.exp(math.lgamma(k / 2) - math.lgamma((k + 1) / 2))


def _latitude(height: Tensor, k: int) -> Tensor:
    """Inverse of `_area_below` by root search, with a first derivative except at the poles."""
    with torch.no_grad():
        support = Support(-math.pi / 2, math.pi / 2)
        found = find_root(_Cap(k), height.double().reshape(-1), support, tolerance=2e-15).reshape(height.shape)
        slope = torch.cos(found) ** (k - 1) / _half_area(k)
        rate = torch.where(slope > 1e-6, 1 / slope, 0.0).to(height.dtype)
    return found.to(height.dtype) + rate * (height - height.detach())


class _Cap:
    """`_area_below` for the root search."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, x: Tensor) -> Tensor:
        return _area_below(x, self.k)

    def select(self, rows: Tensor) -> Increasing:
        return self
