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
    Group,
    MaskedLinear,
    input_gradient,
    outputs,
    weight_gradient,
)


class Plan(NamedTuple):
    """A masked network: its layers from first to last, the parts its output comes in, and how it is wired."""

    layers: Sequence[MaskedLinear]
    parts: Sequence[Sequence[Group]]
    residual: bool
    dropout: float  # in force now: 0 in eval mode

    def run(self, x: Tensor, shift: Tensor | None) -> Iterable[Tensor]:
        """Outputs (batch, rows) of each part from `x` (batch, inputs); `shift` (batch, hidden) joins the first."""
        weights = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        tensors = [x, *weights] if shift is None else [x, shift, *weights]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Pass.apply(self, x, shift, *weights)  # type: ignore[no-any-return, no-untyped-call]
        hidden, _ = self._last_hidden(x, shift)
        return self._outputs(hidden)  # one part after the other, each used while it is in the cache

    def _outputs(self, hidden: Tensor) -> Iterator[Tensor]:
        last = self.layers[-1]
        visible = last.visible(last.weight)
        for part in self.parts:
            yield outputs(hidden, visible, last.bias, last.groups_for(len(hidden), part))

    def _last_hidden(self, x: Tensor, shift: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The activated units that the last layer sees, and those that every layer between sees."""
        hidden = self._through(self.layers[0], x)
        if shift is not None:
            hidden += shift
        fed: list[Tensor] = []
        if not self.residual:
            for layer in self.layers[1:-1]:
                fed.append(self._dropped(hidden.relu_()))
                hidden = self._through(layer, fed[-1])
            return hidden.relu_(), fed
        for before, after in zip(self.layers[1:-1:2], self.layers[2:-1:2], strict=True):
            fed.append(torch.relu(hidden))
            fed.append(self._dropped(self._through(before, fed[-1]).relu_()))
            hidden += self._through(after, fed[-1])
        return hidden.relu_(), fed

    def _through(self, layer: MaskedLinear, x: Tensor) -> Tensor:
        return outputs(x, layer.visible(layer.weight), layer.bias, layer.groups_for(len(x), layer.groups))

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
    def forward(ctx: Any, plan: Plan, x: Tensor, shift: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        hidden, fed = plan._last_hidden(x, shift)
        ctx.plan = plan
        ctx.save_for_backward(x, shift, hidden, *fed, *weights)
        return tuple(plan._outputs(hidden))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        x, shift, hidden, *saved = ctx.saved_tensors
        fed, weights = saved[: len(plan.layers) - 2], saved[len(plan.layers) - 2 :]
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(ctx, (x, shift, *weights), [hidden, *fed], grads)
        back = _Backward(plan, x, ctx.needs_input_grad[1], weights)
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
        return None, back.first(grad), grad if ctx.needs_input_grad[2] else None, *back.gradients


def _rectify(grad: Tensor, activated: Tensor, scale: float = 1.0) -> Tensor:
    """Take a gradient back through the ReLU and dropout that gave `activated`, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)
    return grad.mul_(scale) if scale != 1.0 else grad


class _Backward:
    """The gradients of each layer's weights, filled in from the last layer to the first."""

    def __init__(self, plan: Plan, x: Tensor, wants_x: bool, weights: Sequence[Tensor]) -> None:
        self.plan, self.x, self.wants_x = plan, x, wants_x
        # The weights of the forward pass, which the modules may no longer hold.
        self.weights = weights[::2]
        self.gradients: list[Tensor | None] = [None] * len(weights)

    def last(self, hidden: Tensor, grads: Sequence[Tensor]) -> Tensor:
        """From the gradients of the parts to that in the units the last layer sees."""
        layer, number = self.plan.layers[-1], len(self.plan.layers) - 1
        visible, result = self._visible(number), torch.empty_like(hidden)
        weight = torch.empty_like(layer.weight)
        for place, (part, grad) in enumerate(zip(reversed(self.plan.parts), reversed(grads), strict=True)):
            groups = layer.groups_for(len(hidden), part)
            input_gradient(grad, visible, groups, result, fresh=place == 0)
            weight_gradient(grad, hidden, groups, weight)
        self._keep(number, weight, torch.cat([grad.sum(dim=0) for grad in grads]))
        return result

    def layer(self, number: int, grad: Tensor, fed: Tensor) -> Tensor:
        """From the gradient in a layer's outputs to that in the units it sees."""
        layer = self.plan.layers[number]
        groups = layer.groups_for(len(fed), layer.groups)
        self._weights(number, grad, fed, groups)
        result = torch.empty_like(fed)
        input_gradient(grad, self._visible(number), groups, result, fresh=True)
        return result

    def first(self, grad: Tensor) -> Tensor | None:
        """From the gradient in the first hidden units to that in the inputs."""
        layer = self.plan.layers[0]
        self._weights(0, grad, self.x, layer.groups_for(len(grad), layer.groups))
        if not self.wants_x:
            return None
        visible = self.weights[0] * layer.mask
        if self.x.shape[1] % REACH_STEP:  # the turned product is faster for few or odd columns
            return torch.mm(visible.t(), grad.t()).t()
        return torch.mm(grad, visible)

    def _visible(self, number: int) -> Tensor:
        return self.plan.layers[number].visible(self.weights[number])

    def _weights(self, number: int, grad: Tensor, fed: Tensor, groups: Sequence[Group]) -> None:
        weight = torch.empty_like(self.plan.layers[number].weight)
        weight_gradient(grad, fed, groups, weight)
        self._keep(number, weight, grad.sum(dim=0))

    def _keep(self, number: int, weight: Tensor, bias: Tensor) -> None:
        layer = self.plan.layers[number]
        if not layer.exact:
            weight.mul_(layer.mask)
        self.gradients[2 * number], self.gradients[2 * number + 1] = weight, bias


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
