"""Batch normalisation as a layer of a flow, with the statistics of all training rows where they count."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import DataError
from rosenblatt.core.laws import Law
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Likelihood, Mapped
from rosenblatt.layers.linear import require_features

EPSILON = 1e-5  # added to every variance
LOG_SCALE_BOUND = 7.0


class BatchNorm(Transform):
    """`y = exp(g) (x - m) / sqrt(v) + b` with m and v the mean and (biased) variance, plus 1e-5, of each column.

    `log_det = sum_i (g_i - log(v_i) / 2)`, g smoothly bounded to [-7, 7], g and b zero at first. While training, m and
    v are those of the batch, with gradients through them; what comes out is then no density but an estimate of one, for
    a row's value depends on the rows beside it (`likelihood` says so). A batch of one row has no variance and takes the
    stored statistics. In eval mode, and for the inverse always, m and v are stored numbers: `refresh` computes them
    from all rows given, exactly (no running averages); until then they are those of `initialise`, or 0 and 1.
    Weights of rows do not enter, since a batch in training knows none.
    Raises `OptionError` unless features >= 1.
    References: Dinh, Sohl-Dickstein & Bengio, ICLR 2017; as used by Papamakarios, Pavlakou & Murray, NeurIPS 2017.

    >>> layer = BatchNorm(1).eval()
    >>> layer.refresh([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])
    >>> layer.mean, layer.variance
    (tensor([2.]), tensor([0.6667]))
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    @property
    def likelihood(self) -> Likelihood:
        """Exact with stored statistics; an estimate with those of a batch."""
        return Likelihood.ESTIMATE if self.training else Likelihood.EXACT

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Store the statistics of the first rows."""
        self.refresh([x])

    def refresh(self, rows: Iterable[Tensor]) -> None:
        """Store mean and variance of all rows, given in parts (rows, features); summed in float64.

        Raises `DataError` when there is no row, or one that is not finite.
        """
        count, mean = 0, torch.zeros_like(self.mean, dtype=torch.float64)
        spread = torch.zeros_like(mean)
        with torch.no_grad():
            for part in rows:
                wide = part.reshape(-1, len(mean)).double()
                if len(wide) == 0:
                    continue
                # Joining means and sums of squares around them loses no digits, however far the columns are from 0.
                own = wide.mean(dim=0)
                step, count = own - mean, count + len(wide)
                share = len(wide) / count
                spread = spread + (wide - own).square().sum(dim=0) + step.square() * ((1 - share) * len(wide))
                mean = mean + step * share
            if count == 0 or not bool(torch.isfinite(mean + spread).all()):
                raise DataError(f"rows: {count} rows came, at least one and finite numbers were expected.")
            self.mean.copy_(mean)
            self.variance.copy_(spread / count + EPSILON)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Normalise, then scale and shift."""
        mean, variance = self.mean, self.variance
        if self.training and x[..., 0].numel() > 1:
            rows = x.reshape(-1, x.shape[-1])
            mean, variance = rows.mean(dim=0), rows.var(dim=0, correction=0) + EPSILON
        log_scale = self._log_scale(variance)
        value = (x - mean) * torch.exp(log_scale) + self.shift
        return Mapped(value, log_scale.sum().expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Undo shift and scale with the stored statistics."""
        log_scale = self._log_scale(self.variance)
        value = (y - self.shift) * torch.exp(-log_scale) + self.mean
        return Mapped(value, -log_scale.sum().expand(y.shape[:-1]))

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Undo shift and scale with the stored statistics, for one column; None with those of a batch."""
        if self.training or len(self.shift) != 1:
            return None
        scale = torch.exp(-self._log_scale(self.variance).double())
        return law.moved((self.mean.double() - self.shift * scale)[0], scale[0])

    def _log_scale(self, variance: Tensor) -> Tensor:
        return soft_bound(self.log_scale, LOG_SCALE_BOUND) - 0.5 * torch.log(variance)
