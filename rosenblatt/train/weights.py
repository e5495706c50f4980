"""All trained weights as one vector, so that a step is a handful of operations however many tensors there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

# The function behind torch.optim.AdamW, whose class imports the compiler, some seconds, when it is first made.
from torch.optim.adamw import adamw

ALIGNMENT = 16  # numbers: matrix products read tensors that start at odd places more slowly
FUSED = ("cpu", "cuda", "mps", "xpu")  # devices with the kernel that reads and writes everything once


class FlatWeights:
    """Parameters laid end to end in `vector`; they become views of it and stay the objects they are.

    All must have one dtype and one device. Nothing else may give a parameter new memory before `release`.

    >>> layer = nn.Linear(2, 1)
    >>> weights = FlatWeights(list(layer.parameters()))
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> [part.tolist() for part in weights.parts(weights.gradient())]
    [[[1.0, 1.0]], [1.0]]
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        self._sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        self.vector = torch.zeros(sum(self._sizes), dtype=first.dtype, device=first.device)
        self._gradient = torch.zeros_like(self.vector)
        self._gradients = self.parts(self._gradient)
        for parameter, view in zip(self.parameters, self.parts(self.vector), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = None

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector like `vector`, in the shapes of the parameters."""
        pieces = zip(vector.split(self._sizes), self.parameters, strict=True)
        return [piece[: parameter.numel()].view(parameter.shape) for piece, parameter in pieces]

    def gradient(self) -> Tensor:
        """The gradients as one vector, taken away from the parameters; zeros for a parameter without one.

        The next call writes to the same memory.
        """
        found = [parameter.grad for parameter in self.parameters]
        into = self._gradients
        if any(gradient is None for gradient in found):
            self._gradient.zero_()
            into = [view for view, gradient in zip(into, found, strict=True) if gradient is not None]
        if into:
            torch._foreach_copy_(into, [gradient for gradient in found if gradient is not None])
        for parameter in self.parameters:
            parameter.grad = None
        return self._gradient

    def changed(self) -> None:
        """Tell whoever keeps something computed from the parameters that `vector` was written to."""
        increment_version(self.parameters)

    def release(self) -> None:
        """Give every parameter memory of its own again."""
        for parameter in self.parameters:
            parameter.data = parameter.detach().clone()


class AdamW:
    """Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019) on `FlatWeights`.

    The same as `torch.optim.AdamW` with its usual decays (0.9, 0.999) and epsilon (1e-8).
    """

    def __init__(self, weights: FlatWeights, weight_decay: float) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        vector = weights.vector
        self.memory = {
            "mean": torch.zeros_like(vector),
            "square": torch.zeros_like(vector),
            "steps": torch.zeros((), dtype=torch.float32, device=vector.device),
        }
        self._fused = vector.device.type in FUSED

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the weights by one step of size `rate`."""
        adamw(
            [self.weights.vector],
            [gradient],
            [self.memory["mean"]],
            [self.memory["square"]],
            [],
            [self.memory["steps"]],
            foreach=False,
            fused=self._fused,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        self.weights.changed()

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Take up what `memory` held at another time."""
        for name, tensor in self.memory.items():
            tensor.copy_(memory[name])
