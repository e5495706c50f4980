"""Invertible convolutions: 1x1, emerging (two triangles in opposite orders) and periodic (solved by frequency)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.layers.linear import LOG_DIAGONAL_BOUND, Permutation, Reverse
from rosenblatt.layers.orthogonal import mixing
from rosenblatt.layers.shape import PerPixel, image_shape

CONVOLUTIONS = ("1x1", "emerging", "periodic")
DEVIATION_BOUND = 0.9  # of a periodic convolution from the identity, as a norm: its condition number is below 19


class MaskedConvolution(Transform):
    """Autoregressive convolution: a pixel takes from those before it (rows above, then left), never from later ones.

    `y[c, i, j] = e^{s_c} x[c, i, j] + sum over earlier (c', i', j') within the kernel of w x[c', i', j']`, zeros beyond
    the border. Triangular in the order row, column, channel, so `log_det = H W sum_c s_c`, s smoothly bounded to
    [-7, 7]; the inverse is substitution, pixel by pixel, in float64. Starts as the identity.
    Raises `OptionError` unless `kernel` is odd and >= 1; `InverseError` when a substitution overflows, which large
    weights can make it do on a large image.
    Reference: Hoogeboom, van den Berg & Welling, Emerging Convolutions for Generative Normalizing Flows, ICML 2019.

    >>> MaskedConvolution((1, 2, 2))(torch.arange(4.0)).value
    tensor([0., 1., 2., 3.], grad_fn=<...>)
    """

    mask: Tensor

    def __init__(self, shape: Sequence[int], kernel: int = 3) -> None:
        super().__init__()
        self.shape = image_shape(shape)
        _require_odd(kernel)
        self.reach = reach = kernel // 2
        channels = self.shape[0]
        self.weight = nn.Parameter(torch.zeros(channels, channels, reach + 1, kernel))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))
        mask = torch.ones(channels, channels, reach + 1, kernel, dtype=torch.bool)
        mask[:, :, reach, reach + 1 :] = False
        mask[:, :, reach, reach] = torch.ones(channels, channels, dtype=torch.bool).tril(-1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Convolve."""
        kernel, log_det = self._kernel(x.dtype)
        device = "cpu" if x.is_meta else x.device.type  # the meta device knows no autocast
        with torch.autocast(device, enabled=False):  # it would round the data to half precision
            usable = ~torch.isinf(x)
            images = torch.where(usable, x, 0.0).reshape(-1, *self.shape)
            value = conv2d(pad(images, (self.reach, self.reach, self.reach, 0)), kernel).reshape(x.shape)
        value = torch.where(usable.all(dim=-1, keepdim=True), value, torch.inf)
        return Mapped(value, log_det.expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Substitute pixel after pixel."""
        kernel, log_det = self._kernel(torch.float64)
        images = y.double().reshape(-1, *self.shape)
        solved: list[Tensor] = []  # the rows of pixels so far
        for i in range(self.shape[1]):
            row = images[:, :, i]
            if i and self.reach:
                above = torch.stack(solved[-self.reach :], dim=2)
                weights = kernel[:, :, self.reach - above.shape[2] : self.reach]
                row = row - conv2d(pad(above, (self.reach, self.reach)), weights)[:, :, 0]
            solved.append(self._solve_row(row, kernel[:, :, self.reach]))
        x = torch.stack(solved, dim=2).reshape(y.shape).to(y.dtype)
        failed = torch.isfinite(y).all(dim=-1) & ~torch.isfinite(x).all(dim=-1)
        if bool(failed.any()):
            raise InverseError(
                "overflow in the substitution of a masked convolution", failed.reshape(-1).nonzero().flatten().tolist()
            )
        return Mapped(x, -log_det.to(y.dtype).expand(y.shape[:-1]))

    def _solve_row(self, row: Tensor, kernel: Tensor) -> Tensor:
        """Solve a row of pixels (rows, C, W) from left to right; `kernel` (C, C, size) is the kernel's last row."""
        centre = kernel[:, :, self.reach].mT
        solved: list[Tensor] = []
        for j in range(row.shape[-1]):
            target = row[:, :, j]
            for offset in range(1, min(self.reach, j) + 1):
                target = target - solved[j - offset] @ kernel[:, :, self.reach - offset].mT
            solved.append(torch.linalg.solve_triangular(centre, target, upper=True, left=False))
        return torch.stack(solved, dim=-1)

    def _kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The kernel (C, C, reach + 1, 2 reach + 1), rows above first, and the log-determinant."""
        log_diagonal = soft_bound(self.log_diagonal.to(dtype), LOG_DIAGONAL_BOUND)
        centre = torch.diag(torch.exp(log_diagonal))
        kernel = torch.where(self.mask, self.weight.to(dtype), 0.0)
        around = (self.reach, self.reach, self.reach, 0)
        kernel = kernel + pad(centre[..., None, None], around)
        return kernel, self.shape[1] * self.shape[2] * log_diagonal.sum()


class PeriodicConvolution(Transform):
    """Convolution on a torus, `y = x + k * x`: each frequency has a matrix of channels, `y^(f) = (1 + k^(f)) x^(f)`.

    `log_det = sum_f log|det(1 + k^(f))|`; the inverse solves for the channels frequency by frequency in float64. Two
    borders of the image meet. The published kernel is free and can become singular; here `k = g / sqrt(1 + n^2 / 0.81)`
    with n the largest Frobenius norm of g^(f), so `|k^(f)| < 0.9` and every weight gives an invertible map; larger
    scales are the business of a 1x1 convolution beside it. Starts as the identity.
    Raises `OptionError` unless `kernel` is odd and >= 1.
    Reference: Hoogeboom, van den Berg & Welling, Emerging Convolutions for Generative Normalizing Flows, ICML 2019.

    >>> PeriodicConvolution((1, 2, 2))(torch.zeros(4)).value
    tensor([0., 0., 0., 0.], grad_fn=<...>)
    """

    rows: Tensor
    columns: Tensor
    times: Tensor

    def __init__(self, shape: Sequence[int], kernel: int = 3) -> None:
        super().__init__()
        self.shape = image_shape(shape)
        _require_odd(kernel)
        channels, height, width = self.shape
        self.size, reach = kernel, kernel // 2
        self.weight = nn.Parameter(torch.zeros(channels, channels, kernel, kernel))
        self.register_buffer("rows", torch.arange(-reach, height + reach) % height, persistent=False)
        self.register_buffer("columns", torch.arange(-reach, width + reach) % width, persistent=False)
        # A real signal has its frequencies in conjugate pairs, of which one is kept; column 0 (and the middle one of an
        # even width) is its own partner.
        times = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
        times[0] = 1.0
        if width % 2 == 0:
            times[-1] = 1.0
        self.register_buffer("times", times, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Convolve the image with its borders repeated."""
        shrink, matrices = self._frequencies()
        kernel = (shrink * self.weight.double()).to(x.dtype)
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):
            usable = ~torch.isinf(x)
            images = torch.where(usable, x, 0.0).reshape(-1, *self.shape)
            around = images.index_select(-2, self.rows).index_select(-1, self.columns)
            value = (images + conv2d(around, kernel)).reshape(x.shape)
        value = torch.where(usable.all(dim=-1, keepdim=True), value, torch.inf)
        return Mapped(value, self._log_det(matrices).to(x.dtype).expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Solve each frequency."""
        matrices = self._frequencies()[1]
        value = y
        if y.numel():  # the Fourier transform refuses to do nothing
            waves = torch.fft.rfft2(y.double().reshape(-1, *self.shape)).permute(2, 3, 1, 0)
            waves = torch.linalg.solve(matrices, waves).permute(3, 2, 0, 1)
            value = torch.fft.irfft2(waves, s=self.shape[1:]).reshape(y.shape).to(y.dtype)
        return Mapped(value, -self._log_det(matrices).to(y.dtype).expand(y.shape[:-1]))

    def _frequencies(self) -> tuple[Tensor, Tensor]:
        """How much the weights shrink, and the matrices `1 + k^(f)` (H, W // 2 + 1, C, C), in double precision."""
        channels, height, width = self.shape
        places = (self.rows[: self.size].unsqueeze(-1) * width + self.columns[: self.size]).flatten()
        kernel = self.weight.new_zeros(channels, channels, height * width, dtype=torch.float64)
        kernel = kernel.index_add(-1, places, self.weight.double().flatten(-2)).unflatten(-1, (height, width))
        waves = torch.fft.rfft2(kernel).conj().permute(2, 3, 0, 1)
        largest = (waves.real.square() + waves.imag.square()).sum(dim=(-2, -1)).amax()
        shrink = 1 / torch.sqrt(1 + largest / DEVIATION_BOUND**2)
        return shrink, shrink * waves + torch.eye(channels, dtype=torch.float64, device=waves.device)

    def _log_det(self, matrices: Tensor) -> Tensor:
        log_dets: Tensor = torch.linalg.slogdet(matrices).logabsdet
        total: Tensor = (self.times.to(log_dets.dtype) * log_dets).sum()
        return total


def convolution_steps(kind: str, shape: Sequence[int], linear: str = "plu", kernel: int = 3) -> list[Transform]:
    """Steps of an invertible convolution of images of `shape` by name; it starts as a map of the channels alone.

    "1x1" is the map `linear` of the channels at every pixel (see `mixing`); "emerging" a random order of the channels
    and two masked convolutions in opposite orders; "periodic" the map `linear` and a periodic convolution.
    Raises `OptionError` for another name.

    >>> [type(step).__name__ for step in convolution_steps("emerging", (2, 4, 4))]
    ['PerPixel', 'MaskedConvolution', 'Reverse', 'MaskedConvolution', 'Reverse']
    """
    channels, height, width = image_shape(shape)
    if kind not in CONVOLUTIONS:
        raise OptionError(f"convolution: '{kind}' came; choose one of {', '.join(CONVOLUTIONS)}.")
    if kind == "emerging":
        features = channels * height * width
        order = PerPixel(Permutation(torch.randperm(channels).tolist()), shape)
        there, back = MaskedConvolution(shape, kernel), MaskedConvolution(shape, kernel)
        return [order, there, Reverse(features), back, Reverse(features)]
    steps: list[Transform] = [PerPixel(step, shape) for step in mixing(linear, channels)]
    return [*steps, PeriodicConvolution(shape, kernel)] if kind == "periodic" else steps


def _require_odd(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel: {kernel} came, an odd number >= 1 was expected.")
