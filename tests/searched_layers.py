"""What every layer owes whose inverse is a search over whole vectors."""

import math

import torch


def answers_rows_that_are_not_finite(layer, y):
    """Both directions: a NaN stays NaN, an infinity infinite, and the other rows are as without them."""
    y = y.clone()
    y[1, 0], y[2, 2] = math.nan, -math.inf
    clean = y.nan_to_num(0, 0, 0)
    for run in (layer, layer.inverse):
        value = run(y).value
        assert torch.isnan(value[1]).any()
        assert torch.isinf(value[2]).any()
        assert torch.equal(value[[0, 3]], run(clean).value[[0, 3]])
