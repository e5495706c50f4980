"""Fields that carry points through time: dz/dt = v(z, t, context), and what they do to tangents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from rosenblatt.core.errors import OptionError
from rosenblatt.nets import INPUT_LIMIT, limited

Time = float | Tensor


class Velocity(nn.Module, ABC):
    """A velocity v(z, t, context) of points, smooth in z.

    Shapes: `z` and v (*batch, features), `time` a number or (*batch,), `context` (*batch, context) or None.
    """

    @abstractmethod
    def forward(self, z: Tensor, time: Time, context: Tensor | None = None) -> Tensor:
        """Velocity of each point."""

    def push(self, z: Tensor, tangents: Tensor, time: Time, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Velocity, and its derivatives `J t_k` along `tangents` (*batch, k, features)."""

        value, back = torch.func.vjp(lambda z: self(z, time, context), z)[:2]
        # `back` is linear, u -> J^T u, so what turns it around again is J. (Forward mode proper would do it in one pass
        # fewer, but PyTorch's warns where warnings are errors.)
        along = torch.func.vjp(lambda u: back(u)[0], torch.zeros_like(value))[1]
        (pushed,) = torch.func.vmap(along, in_dims=-2, out_dims=-2)(tangents)
        return value, pushed


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(x)
    return value, 1 - value.square()


def _softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(x), torch.sigmoid(x)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.sigmoid(x)
    return x * share, share * (1 + x * (1 - share))


# Smooth ones only, with their slopes: a kink would be a jump in the log-density.
SMOOTH: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"tanh": _tanh, "softplus": _softplus, "silu": _silu}


class VelocityNet(Velocity):
    """A plain network of the point and the context; every layer sees the time too, as one more input.

    `v = W_L h_L + t u_L + b_L`, `h_l+1 = a(W_l h_l + t u_l + b_l)`, `h_1 = (z, context)` saturated at +-1e6. Starts a
    hundredth of the usual size, so that the flow starts near the identity. Tangents are carried through the layers
    along with the values: k tangents cost k passes. Raises `OptionError` for sizes or names that make no network.
    Reference: Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD, ICLR 2019.

    >>> VelocityNet(2, hidden=8)(torch.zeros(5, 2), 0.5).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, features: int, context: int = 0, *, hidden: int = 64, layers: int = 2, activation: str = "tanh"
    ) -> None:
        super().__init__()
        for name, value in {"features": features, "hidden": hidden, "layers": layers}.items():
            if value < 1:
                raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
        if activation not in SMOOTH:
            raise OptionError(f"activation: '{activation}' came, one of {', '.join(SMOOTH)} was expected.")
        self.features = features
        self.activation = activation
        sizes = [features + context, *[hidden] * layers, features]
        self.layers = nn.ModuleList(_TimedLinear(*ends) for ends in pairwise(sizes))
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(1e-2)

    def forward(self, z: Tensor, time: Time, context: Tensor | None = None) -> Tensor:
        """Run the network."""
        hidden = limited(z if context is None else torch.cat([z, context], dim=-1))
        for number, layer in enumerate(self.layers):
            hidden = layer(SMOOTH[self.activation](hidden)[0] if number else hidden, time)
        return hidden

    def push(self, z: Tensor, tangents: Tensor, time: Time, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the network on the point and on its tangents together."""
        hidden = limited(z if context is None else torch.cat([z, context], dim=-1))
        pushed = tangents * (z.abs() < INPUT_LIMIT).unsqueeze(-2)
        layer: Any
        for number, layer in enumerate(self.layers):
            if number:
                hidden, slope = SMOOTH[self.activation](hidden)
                pushed = pushed * slope.unsqueeze(-2)
            # The context does not move with the point: its columns of the first layer see no tangent.
            weight = layer.weight if number else layer.weight[:, : self.features]
            hidden, pushed = layer(hidden, time), linear(pushed, weight)
        return hidden, pushed


class _TimedLinear(nn.Linear):
    """A linear layer with the time as one more input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        bound = (inputs + 1) ** -0.5
        self.drift = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, time: Time) -> Tensor:  # type: ignore[override]
        if isinstance(time, Tensor):
            return linear(x, self.weight, self.bias) + time.unsqueeze(-1) * self.drift
        return linear(x, self.weight, self.bias + time * self.drift)
