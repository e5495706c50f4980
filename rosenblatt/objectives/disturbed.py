"""Another objective on rows that are disturbed a little at every step, so that few rows are not learned by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.density import Density, Objective
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch


class Disturbed:
    """`loss(x + w U + s e, c + t e')`: rounded values spread over their cells, Gaussian noise on both sides.

    In training x (rows, features) moves within its cell of width w, U uniform on (-1/2, 1/2), and by noise of standard
    deviation s; its context by noise of standard deviation t, all in units of the columns and drawn afresh each time.
    Validation spreads over the cells alone. Noise on both sides is a penalty on the curvature of the density, the
    smaller the noise the weaker; noise that shrinks as rows^(-1 / (columns + 4)) leaves the fit consistent.
    Raises `OptionError` for a width or deviation that is negative or no number.
    References: Bishop, Training with Noise is Equivalent to Tikhonov Regularization, Neural Computation 1995; Rothfuss,
    Ferreira, Boehm, Walther, Ulrich, Asfour & Krause, Noise Regularization for Conditional Density Estimation, 2019;
    Theis, van den Oord & Bethge, A Note on the Evaluation of Generative Models, ICLR 2016 (cells).

    >>> from rosenblatt.bases import StandardNormal
    >>> from rosenblatt.objectives.likelihood import NLL
    >>> objective = Disturbed(NLL(), width=torch.tensor([0.1]), noise=torch.zeros(1))
    >>> loss = objective(StandardNormal(1), Batch(torch.zeros(2, 1)), torch.Generator().manual_seed(0))
    >>> bool((loss < 0.9189 + 0.05**2 / 2 + 1e-4).all())
    True
    """

    def __init__(
        self,
        objective: Objective,
        *,
        width: Tensor | None = None,
        noise: Tensor | None = None,
        context_noise: Tensor | None = None,
    ) -> None:
        sizes = {"width": width, "noise": noise, "context_noise": context_noise}
        for name, size in sizes.items():
            if size is not None and not bool((torch.isfinite(size) & (size >= 0)).all()):
                raise OptionError(f"{name}: {size.tolist()} came, finite numbers of at least 0 were expected.")
        self.objective = objective
        self.measure = str(getattr(objective, "measure", "minus loss"))
        self.width, self.noise, self.context_noise = width, noise, context_noise

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Losses of the disturbed rows; the noise comes from `generator`."""
        x, context, weight = batch
        if self.width is not None:
            uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
            x = x + self.width.to(x) * (uniform - 0.5)
        if model.training:
            if self.noise is not None:
                x = x + self.noise.to(x) * _normal(x, generator)
            if self.context_noise is not None and context is not None:
                context = context + self.context_noise.to(context) * _normal(context, generator)
        return self.objective(model, Batch(x, context, weight), generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
