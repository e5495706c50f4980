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


def _check_sizes(dropout: float, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")


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
        _check_sizes(dropout, inputs=inputs, outputs=outputs, hidden=hidden, blocks=blocks)
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


class DenselyConnected(nn.Module):
    """A network (*batch, inputs) -> (*batch, outputs) whose every layer sees the input and all layers before it.

    `h_l = relu(W_l [x, h_1, .., h_(l-1)])` for `blocks` layers of `hidden` units, and `W [x, h_1, .., h_blocks]` in the
    end (Huang et al., Densely connected convolutional networks, CVPR 2017). Such a map has no inverse and a Jacobian
    without structure. Inputs saturate at +-1e6. Raises `OptionError` for sizes below 1.

    >>> DenselyConnected(2, 3, hidden=8)(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int = 128, blocks: int = 2) -> None:
        super().__init__()
        _check_sizes(0.0, inputs=inputs, outputs=outputs, hidden=hidden, blocks=blocks)
        self.layers = nn.ModuleList(nn.Linear(inputs + number * hidden, hidden) for number in range(blocks))
        self.last = nn.Linear(inputs + blocks * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        seen = limited(x)
        for layer in self.layers:
            seen = torch.cat([seen, activated(layer(seen))], dim=-1)
        return self.last(seen)  # type: ignore[no-any-return]

    def start_at(self, output: Tensor) -> None:
        """Emit `output` (outputs,) at first, disturbed by a hundredth of the usual last weights."""
        with torch.no_grad():
            self.last.weight.mul_(1e-2)
            self.last.bias.copy_(output)


class ConvNet(nn.Module):
    """A convolutional network (rows, inputs, H, W) -> (rows, outputs, H, W) that keeps the size of the image.

    3x3 convolutions in and out, `blocks` residual blocks `h + W2 drop(relu(W1 relu(h)))` between them, W1 3x3 and W2
    1x1, near zero at first (He et al. 2016). Plain (`residual=False`): `blocks` hidden layers, the later ones 1x1, so
    that `blocks=2` is the network of Glow (Kingma & Dhariwal 2018). A further plane of ones shows where the zeros
    beyond the border begin. A `side` of 1 is not convolved along. Inputs saturate at +-1e6.
    Raises `OptionError` for sizes below 1 or dropout outside [0, 1).

    >>> ConvNet(1, 3, hidden=8)(torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 3, 4, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        side: tuple[int, int] = (3, 3),
        hidden: int = 32,
        blocks: int = 2,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(dropout, inputs=inputs, outputs=outputs, hidden=hidden, blocks=blocks)
        height, width = (1 if length == 1 else 3 for length in side)
        size = (height, width)
        self.first = nn.Conv2d(inputs + 1, hidden, size, padding="same")
        self.blocks = nn.ModuleList(
            [_ConvBlock(hidden, size, dropout) for _ in range(blocks)]
            if residual
            else [_ConvLayer(hidden, dropout) for _ in range(blocks - 1)]
        )
        self.last = nn.Conv2d(hidden, outputs, size, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        ones = x.new_ones(1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[2:])  # len() would fix it in an exported graph
        hidden = self.first(torch.cat([limited(x), ones], dim=1))
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(activated(hidden))  # type: ignore[no-any-return]

    def start_at(self, output: Tensor) -> None:
        """Emit `output` (outputs,) at every pixel at first, disturbed by a hundredth of the usual last weights."""
        with torch.no_grad():
            self.last.weight.mul_(1e-2)
            self.last.bias.copy_(output)  # type: ignore[union-attr]


class _ConvBlock(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, hidden: int, size: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.before = nn.Conv2d(hidden, hidden, size, padding="same")
        self.after = nn.Conv2d(hidden, hidden, 1)
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():
            self.after.weight.mul_(1e-2)
            self.after.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.drop(activated(self.before(torch.relu(x)))))  # type: ignore[no-any-return]


class _ConvLayer(nn.Module):
    """A plain layer of every pixel."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Conv2d(hidden, hidden, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(activated(x)))  # type: ignore[no-any-return]
