"""The gradient of the monotone net's sums, from what `Chunk.run` left behind.

A difference of sigmoids is a product here, so the gradient in the logarithm of a column is the gradient in those of its
factors, and `d log s(z) = s(-z) dz`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.elementwise.monotone_kernel import Chunk, Plan, chunks


def gradients_at(plan: Plan, x: Tensor, theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (k, n) in `x` and (n, size) in `theta` of `sum(weights * sums_at(plan, x, theta))`."""
    grad_x, grad_theta = torch.empty_like(x), theta.new_empty(theta.shape)
    for chunk, rows, columns in chunks(plan, x, theta, keep=True):
        chunk.run(x[rows, columns])
        whole = rows.start == 0  # the first points at these vectors
        part = grad_theta[columns] if whole else torch.empty_like(grad_theta[columns])
        grad_x[rows, columns] = _gradients(chunk, weights[:, rows, columns], part.t())
        if not whole:
            grad_theta[columns] += part
    return grad_x, grad_theta


def _gradients(chunk: Chunk, weights: Tensor, grad_theta: Tensor) -> Tensor:
    """Gradient (k, n) in the points that ran, and that in theta written to `grad_theta` (size, n)."""
    plan = chunk.plan
    last = chunk.columns[plan.layers]
    seed = torch.mul(chunk.share, weights.unsqueeze(2), out=chunk.memory.take(*last.shape))
    grad_share = torch.mul(last, seed, out=chunk.memory.take(*last.shape)).sum(dim=(0, 1))
    torch.addcmul(grad_share, chunk.share, grad_share.sum(dim=0), value=-1, out=grad_theta[plan.places["mixture"]])
    grad_left: Tensor | None = None
    for layer in range(plan.layers, 1, -1):
        seed, grad_left = _hidden(chunk, layer, seed, grad_left, grad_theta)
    if plan.support.bounded:
        grad_x = _first_interval(chunk, seed, grad_left, grad_theta)
    else:
        grad_x = _first_line(chunk, seed, grad_theta)
    if plan.epsilon:
        grad_x.add_(_rates(chunk, weights), alpha=plan.epsilon)
    return grad_x


def _rates(chunk: Chunk, weights: Tensor) -> Tensor:
    low, high, slope = weights
    if chunk.plan.support.bounded:
        return low - high  # type: ignore[no-any-return]
    below, above, rate = chunk.rates()
    return rate * (low - high + slope * (above - below))  # type: ignore[no-any-return]


def _over_points(values: Tensor) -> Tensor:
    """Sum (k, unit, n) over the points of each vector."""
    return values[0] if len(values) == 1 else values.sum(dim=0)


def _hidden(
    chunk: Chunk, layer: int, seed: Tensor, grad_left: Tensor | None, grad_theta: Tensor
) -> tuple[Tensor, Tensor | None]:
    """From the gradient in a layer's columns and left ends to that in what entered it; writes that of its theta."""
    rises, middle, ends = _step(chunk, layer, seed, grad_left)
    low, high = ends
    # high = middle + rises[1], middle = low + rises[0], low = carried - offset * mean
    middle += high
    rises[1] += high
    rises[0] += middle
    total = _over_points(low.add_(middle))
    torch.mul(total, chunk.means[layer], out=grad_theta[chunk.plan.places[f"offset_{layer}"]]).neg_()
    return _pull(chunk, layer, rises, total, grad_theta)


def _step(chunk: Chunk, layer: int, seed: Tensor, grad_left: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient in a step's columns to that in its rises, in its middle, and in its low and high end."""
    step, memory = chunk.steps[layer], chunk.memory
    middle, beyond, start, _ = step.sigmoids
    _, k, units, n = seed.shape
    logs = torch.mul(seed, chunk.columns[layer], out=memory.take(3, k, units, n))
    rises = memory.take(3, k, units, n, spare=2 * units * n)
    torch.mul(seed[:2], step.sigmoids[:2], out=rises[:2]).mul_(step.sigmoids[2:]).sub_(logs[:2])
    torch.mul(seed[2], middle, out=rises[2]).mul_(beyond)
    ends = torch.addcmul(logs[:2], logs[:2], step.sigmoids[2:], value=-1, out=memory.take(2, k, units, n))
    ends[0].neg_()
    if grad_left is not None and step.left is not None:
        ends[0, 0].addcmul_(grad_left * step.left, start[0])
    logs[:2] += logs[2]
    grad_middle = torch.mul(logs[0], beyond, out=logs[2]).addcmul_(logs[1], middle, value=-1)
    return rises, grad_middle, ends


def _pull(chunk: Chunk, layer: int, rises: Tensor, low: Tensor, grad_theta: Tensor) -> tuple[Tensor, Tensor | None]:
    """The adjoint of `Chunk._push`: from gradients in the products to those in columns, left ends and weights."""
    memory, n, k = chunk.memory, chunk.n, rises.shape[1]
    weight, offset, entered = chunk.weight(layer), chunk.offset(layer), chunk.columns[layer - 1]
    left = chunk.steps[layer - 1].left if layer - 1 in chunk.steps else None
    outputs, inputs = chunk.plan.shapes[layer - 1]
    place = chunk.plan.places[f"slope_{layer}"]
    if not memory.units_inside:
        product, columns = memory.take(*weight.shape), memory.take(3, 1, inputs, n)
        for rise, column in zip(rises, columns, strict=True):
            torch.sum(torch.mul(weight, rise[0].unsqueeze(1), out=product), dim=0, out=column[0])
        grad_weight = torch.mul(rises[0, 0].unsqueeze(1), entered[0], out=product)
        grad_weight.addcmul_(rises[1, 0].unsqueeze(1), entered[1]).addcmul_(rises[2, 0].unsqueeze(1), entered[2])
        grad_weight.sub_((low * offset).unsqueeze(1), alpha=1 / inputs)
        if left is not None:
            grad_weight.addcmul_(low.unsqueeze(1), left)
        torch.mul(grad_weight.flatten(0, 1), chunk.slopes[place], out=grad_theta[place])
        return columns, None if left is None else (weight * low.unsqueeze(1)).sum(dim=0)
    rows = 3 * k + 1 + (left is not None)
    leaving = rises.as_strided((n, rows, outputs), (outputs, n * outputs, 1))
    entering = entered.as_strided((n, rows, inputs), (inputs, n * inputs, 1))
    torch.mul(low.t(), offset.t(), out=leaving[:, 3 * k]).neg_()
    if left is not None:
        leaving[:, 3 * k + 1] = low.t()
    pulled = memory.take(rows, inputs, n).as_strided((n, rows, inputs), (rows * inputs, inputs, 1))
    torch.bmm(leaving, weight.permute(2, 0, 1), out=pulled)
    grad_weight = memory.take(outputs * inputs, n)  # a product into rows of grad_theta itself would be slow
    torch.bmm(leaving.transpose(1, 2), entering, out=grad_weight.t().unflatten(1, (outputs, inputs)))
    torch.mul(grad_weight, chunk.slopes[place], out=grad_theta[place])
    columns = pulled.as_strided((3, k, inputs, n), (k * inputs, inputs, 1, rows * inputs))
    return columns, None if left is None else pulled[:, 3 * k + 1].t()


def _first_line(chunk: Chunk, seed: Tensor, grad_theta: Tensor) -> Tensor:
    weight, offset = chunk.weights[chunk.plan.places["slope_1"]], chunk.offset(1)
    below, above, tangent = chunk.columns[1]
    # tangent = weight * rate, and z = weight * (x - offset) moves below by rate and above by -rate.
    rate = below * above
    grad_z = (seed[0] - seed[1]).mul_(rate).addcmul_(seed[2] * tangent, above - below)
    grad_weight = rate.mul_(seed[2]).addcmul_(grad_z, chunk.x.unsqueeze(1) - offset)
    place = chunk.plan.places["slope_1"]
    torch.mul(_over_points(grad_weight), chunk.slopes[place], out=grad_theta[place])
    grad_z.mul_(weight)
    torch.neg(_over_points(grad_z), out=grad_theta[chunk.plan.places["offset_1"]])
    return grad_z.sum(dim=1)


def _first_interval(chunk: Chunk, seed: Tensor, grad_left: Tensor | None, grad_theta: Tensor) -> Tensor:
    weight, offset, x = chunk.weights[chunk.plan.places["slope_1"]], chunk.offset(1), chunk.x.unsqueeze(1)
    lower, upper = chunk.plan.support.lower, chunk.plan.support.upper
    rises, middle, (low, high) = _step(chunk, 1, seed, grad_left)
    grad_weight = middle * (x - offset) + rises[0] * (x - lower) + rises[1] * (upper - x) + rises[2]
    grad_weight += high * (upper - offset) + low * (lower - offset)
    place = chunk.plan.places["slope_1"]
    torch.mul(_over_points(grad_weight), chunk.slopes[place], out=grad_theta[place])
    grad_theta[chunk.plan.places["offset_1"]] = _over_points(middle + low + high).mul_(weight).neg_()
    return ((middle + rises[0] - rises[1]) * weight).sum(dim=1)
