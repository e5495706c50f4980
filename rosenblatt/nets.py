"""Plain networks that conditioners are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, hardtanh, silu

from rosenblatt.core.errors import OptionError

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": silu, "elu": elu}
INPUT_LIMIT = 1e6  # the net saturates here, so that one outlier of 1e30 cannot overflow its row


def limited(x: Tensor) -> Tensor:
    """Saturate what enters a network at +-`INPUT_LIMIT`; the backward pass of `hardtanh` is half that of `clamp`."""
    return hardtanh(x, -INPUT_LIMIT, INPUT_LIMIT)


def activated(x: Tensor, activation: str = "relu") -> Tensor:
    """Apply an activation to a value that nothing else needs: in place where no gradient is taken."""
    if activation == "relu" and not torch.is_grad_enabled():
        return torch.relu_(x)
    return ACTIVATIONS[activation](x)


class MLP(nn.Module):
    """A network (*batch, inputs) -> (*batch, outputs) of `blocks` blocks, each residual or one plain layer.

    Residual (He et al. 2016): each block is `h + W2 drop(relu(W1 relu(h)))`; W2 starts near zero, so that a deep net
    starts as a shallow one. Plain: `blocks` hidden layers `relu(W h)`, so `blocks=2` has one hidden-to-hidden layer.
    Inputs saturate at +-1e6. Raises `OptionError` for sizes below 1 or dropout outside [0, 1).

    >>> MLP(2, 3, hidden=8)(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 128,
        blocks: int = 2,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "outputs": outputs, "hidden": hidden, "blocks": blocks}
        for name, value in sizes.items():
            if value < 1:
                raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
        if not 0 <= dropout < 1:
            raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")
        self.first = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            [_Block(hidden, dropout) for _ in range(blocks)]
            if residual
            else [_Layer(hidden, dropout) for _ in range(blocks - 1)]
        )
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        hidden = self.first(limited(x))
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(activated(hidden))  # type: ignore[no-any-return]

    def start_at(self, output: Tensor) -> None:
        """Emit `output` (outputs,) at first, disturbed by a hundredth of the usual last weights."""
        with torch.no_grad():
            self.last.weight.mul_(1e-2)
            self.last.bias.copy_(output)


class _Block(nn.Module):
    """A residual block."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Linear(hidden, hidden)
        self.after = nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():
            self.after.weight.mul_(1e-2)
            self.after.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.drop(activated(self.before(torch.relu(x)))))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """A plain layer."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(activated(x)))  # type: ignore[no-any-return]
