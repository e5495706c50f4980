"""One pass of a masked ReLU network and its gradient, written out.

A tape of small operations spends much of a step on moving hidden units through memory and on bookkeeping. Here
activations are taken in place, the backward pass goes through two buffers, and nothing behind a mask is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosenblatt.conditioners.staircase import (
    REACH_STEP,
    Groups,
    MaskedLinear,
    input_gradient,
    outputs,
    weight_gradient,
    without_masked,
)


class Plan(NamedTuple):
    """A masked network: its layers from first to last, the parts its output comes in, and how it is wired."""

    layers: Sequence[MaskedLinear]
    parts: Sequence[Groups]
    residual: bool
    dropout: float  # in force now: 0 in eval mode

    def run(self, x: Tensor, shift: Tensor | None) -> Iterable[Tensor]:
        """Outputs (batch, rows) of each part from `x` (batch, inputs); `shift` (batch, hidden) joins the first."""
        parameters = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        tensors = [x, *parameters] if shift is None else [x, shift, *parameters]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Pass.apply(self, x, shift, *parameters)  # type: ignore[no-any-return, no-untyped-call]
        visible = without_masked(self.layers, parameters[::2])
        hidden, _ = self._last_hidden(x, shift, visible)
        return self._outputs(hidden, visible[-1])  # one part after the other, each used while it is in the cache

    def _outputs(self, hidden: Tensor, visible: Tensor) -> Iterator[Tensor]:
        last = self.layers[-1]
        for part in self.parts:
            yield outputs(hidden, visible, last.bias, last.groups_for(len(hidden), part))

    def _last_hidden(self, x: Tensor, shift: Tensor | None, visible: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The activated units that the last layer sees, and those that every layer between sees."""
        hidden = self._through(0, x, visible)
        if shift is not None:
            hidden += shift
        fed: list[Tensor] = []
        if not self.residual:
            for number in range(1, len(self.layers) - 1):
                fed.append(self._dropped(hidden.relu_()))
                hidden = self._through(number, fed[-1], visible)
            return hidden.relu_(), fed
        for number in range(1, len(self.layers) - 1, 2):
            fed.append(torch.relu(hidden))
            fed.append(self._dropped(self._through(number, fed[-1], visible).relu_()))
            hidden += self._through(number + 1, fed[-1], visible)
        return hidden.relu_(), fed

    def _through(self, number: int, x: Tensor, visible: Sequence[Tensor]) -> Tensor:
        layer = self.layers[number]
        return outputs(x, visible[number], layer.bias, layer.groups_for(len(x), layer.groups))

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout in place."""
        if not self.dropout:
            return x
        return x.mul_(torch.empty_like(x).bernoulli_(1 - self.dropout).div_(1 - self.dropout))

    def scales(self) -> list[float]:
        """The factor by which dropout raised the units that each layer between sees."""
        dropped = [False, True] if self.residual else [True]
        count = len(self.layers) - 2
        return [1 / (1 - self.dropout) if self.dropout and dropped[i % len(dropped)] else 1.0 for i in range(count)]


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, shift: Tensor | None, *parameters: Tensor) -> tuple[Tensor, ...]:
        visible = without_masked(plan.layers, parameters[::2])
        hidden, fed = plan._last_hidden(x, shift, visible)
        ctx.plan = plan
        ctx.save_for_backward(x, shift, hidden, *fed, *visible, *parameters)
        return tuple(plan._outputs(hidden, visible[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        x, shift, hidden, *saved = ctx.saved_tensors
        layers = len(plan.layers)
        fed, visible, parameters = saved[: layers - 2], saved[layers - 2 : 2 * layers - 2], saved[2 * layers - 2 :]
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(ctx, (x, shift, *parameters), [hidden, *fed], grads)
        back = _Backward(plan, x, ctx.needs_input_grad[1], visible)
        grad = back.last(hidden, grads)
        if plan.residual:
            _rectify(grad, hidden)
            for number in range(len(plan.layers) - 2, 0, -2):
                branch = back.layer(number, grad, fed[number - 1])
                _rectify(branch, fed[number - 1], plan.scales()[number - 1])
                entering = back.layer(number - 1, branch, fed[number - 2])
                grad += _rectify(entering, fed[number - 2])
        else:
            _rectify(grad, hidden)
            for number in range(len(plan.layers) - 2, 0, -1):
                grad = back.layer(number, grad, fed[number - 1])
                _rectify(grad, fed[number - 1], plan.scales()[number - 1])
        return None, back.first(grad), grad if ctx.needs_input_grad[2] else None, *back.finished()


def _rectify(grad: Tensor, activated: Tensor, scale: float = 1.0) -> Tensor:
    """Take a gradient back through the ReLU and dropout that gave `activated`, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)
    return grad.mul_(scale) if scale != 1.0 else grad


class _Backward:
    """The gradients of each layer's weights, filled in from the last layer to the first."""

    def __init__(self, plan: Plan, x: Tensor, wants_x: bool, visible: Sequence[Tensor]) -> None:
        self.plan, self.x, self.wants_x = plan, x, wants_x
        self.visible = visible  # of the forward pass, which the modules may no longer hold
        self.weights = [
            torch.empty_like(weight) if layer.exact else torch.zeros_like(weight)
            for layer, weight in zip(plan.layers, visible, strict=True)
        ]
        self.biases: list[Tensor | None] = [None] * len(visible)

    def finished(self) -> list[Tensor | None]:
        """Gradients of the weight and the bias of each layer in turn."""
        masked = without_masked(self.plan.layers, self.weights)
        return [gradient for pair in zip(masked, self.biases, strict=True) for gradient in pair]

    def last(self, hidden: Tensor, grads: Sequence[Tensor]) -> Tensor:
        """From the gradients of the parts to that in the units the last layer sees."""
        layer, result = self.plan.layers[-1], torch.empty_like(hidden)
        for place, (part, grad) in enumerate(zip(reversed(self.plan.parts), reversed(grads), strict=True)):
            groups = layer.groups_for(len(hidden), part)
            input_gradient(grad, self.visible[-1], groups, result, fresh=place == 0)
            weight_gradient(grad, hidden, groups, self.weights[-1], blank=not layer.exact)
        sums = [grad.sum(dim=0) for grad in grads]
        self.biases[-1] = sums[0] if len(sums) == 1 else torch.cat(sums)
        return result

    def layer(self, number: int, grad: Tensor, fed: Tensor) -> Tensor:
        """From the gradient in a layer's outputs to that in the units it sees."""
        groups = self._own(number, grad, fed)
        result = torch.empty_like(fed)
        input_gradient(grad, self.visible[number], groups, result, fresh=True)
        return result

    def first(self, grad: Tensor) -> Tensor | None:
        """From the gradient in the first hidden units to that in the inputs."""
        self._own(0, grad, self.x)
        if not self.wants_x:
            return None
        layer, visible = self.plan.layers[0], self.visible[0]
        if layer.exact:  # then nothing has been masked, and this product is not cut into groups
            visible = visible * layer.mask
        if self.x.shape[1] % REACH_STEP:  # the turned product is faster for few or odd columns
            return torch.mm(visible.t(), grad.t()).t()
        return torch.mm(grad, visible)

    def _own(self, number: int, grad: Tensor, fed: Tensor) -> Groups:
        """Fill in the gradients of a layer's own numbers; return the groups it is cut into."""
        layer = self.plan.layers[number]
        groups = layer.groups_for(len(fed), layer.groups)
        weight_gradient(grad, fed, groups, self.weights[number], blank=not layer.exact)
        self.biases[number] = grad.sum(dim=0)
        return groups


def _differentiable_gradients(
    ctx: Any, inputs: Sequence[Tensor | None], activated: Sequence[Tensor], grads: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """The same gradients with a tape of their own, for second derivatives.

    Between its kinks the network is linear, so its gates are constants: what was positive passes.
    """
    plan: Plan = ctx.plan
    wanted = ctx.needs_input_grad[1:]
    with torch.enable_grad():
        # Aliases keep the partial derivatives apart.
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, shift, *weights = aliases
        scales = [1.0, *plan.scales()]
        gates = [(units > 0).to(units.dtype) * scale for units, scale in zip(activated, scales, strict=True)]
        found = _gated(plan, x, shift, weights, gates)  # type: ignore[arg-type]
        sought = [tensor for tensor, want in zip(aliases, wanted, strict=True) if want and tensor is not None]
        gradients = iter(torch.autograd.grad(found, sought, torch.cat(grads, dim=-1), create_graph=True))
    return [next(gradients) if want else None for want in wanted]


def _gated(plan: Plan, x: Tensor, shift: Tensor | None, weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """The pass as a linear map with fixed gates, by differentiable operations."""
    top, *between = gates
    linears = [
        (weight * layer.mask, bias)
        for layer, weight, bias in zip(plan.layers, weights[::2], weights[1::2], strict=True)
    ]

    def through(number: int, units: Tensor) -> Tensor:
        return torch.nn.functional.linear(units, *linears[number])

    hidden = through(0, x) if shift is None else through(0, x) + shift
    if plan.residual:
        for number in range(1, len(linears) - 1, 2):
            branch = through(number, hidden * between[number - 1])
            hidden = hidden + through(number + 1, branch * between[number])
    else:
        for number in range(1, len(linears) - 1):
            hidden = through(number, hidden * between[number - 1])
    return through(len(linears) - 1, hidden * top)
