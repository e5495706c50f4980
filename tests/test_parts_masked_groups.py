"""Blockwise autoregression: coordinates in K groups, each seeing the groups before it."""

import pytest
import torch
from test_parts_masked_fast import plainly

from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.errors import OptionError
from rosenblatt.models.maf import maf
from rosenblatt.models.nsf import nsf
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded

SIZES = [
    {"features": 7, "params": 3, "hidden": 40, "parts": 3},
    {"features": 40, "params": 2, "hidden": 130, "parts": 7},  # levels in several blocks of a column walk
    {"features": 6, "params": 80, "hidden": 64, "parts": 2},  # more numbers than a buffer keeps
    {"features": 12, "params": 30, "hidden": 4, "parts": 6},  # fewer units than levels
    {"features": 96, "params": 3, "hidden": 512, "parts": 2},  # groups that need no mask
]


def made(sizes, **options):
    return disturbed(seeded(lambda: Masked(**sizes, **options))).double()


def test_levels_are_runs_of_the_order_of_nearly_equal_length():
    levels = Masked(7, 1, hidden=8, parts=3, order=[6, 5, 4, 3, 2, 1, 0]).levels
    assert [level.tolist() for level in levels] == [[6, 5], [4, 3], [2, 1, 0]]
    assert len(Masked(2, 1, hidden=8, parts=5).levels) == 2
    for parts in range(1, 8):
        sizes = Masked(7, 1, hidden=8, parts=parts).sizes
        assert sum(sizes) == 7
        assert len(sizes) == parts
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("sizes", SIZES)
def test_passes_and_walks_are_the_masked_network(sizes, context, residual):
    net = made(sizes, context=context, residual=residual, order=[*range(1, sizes["features"]), 0])
    x = rows_like_data(33, net.features)
    given = rows_like_data(33, context, seed=5) if context else None
    expected = plainly(net, x, given)
    torch.testing.assert_close(net(x, given), expected, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        columns, filled = net.column_walk(given, 33), torch.full((net.features, 33), torch.nan, dtype=torch.float64)
        walk, start = net.walk(given), 0
        for number, level in enumerate(net.levels):
            stop = start + len(level)
            known = torch.where(torch.isin(torch.arange(net.features), net.order[:start]), x, torch.nan)
            for theta in (columns.theta(number, filled), walk.theta(number, known)):
                torch.testing.assert_close(theta.expand(33, -1, -1), expected.index_select(-2, level))
            filled[start:stop] = x.index_select(-1, level).t()
            start = stop


def test_a_coordinate_sees_every_earlier_group_and_nothing_else():
    net = made({"features": 7, "params": 1, "hidden": 64}, parts=3, order=[3, 1, 0, 6, 5, 2, 4])
    jacobian = torch.func.jacrev(lambda row: net(row).squeeze(-1))(rows_like_data(1, 7)[0])
    group = torch.zeros(7, dtype=torch.long)
    for number, level in enumerate(net.levels):
        group[level] = number
    assert torch.equal(jacobian != 0, group.unsqueeze(-1) > group)


def test_one_group_per_coordinate_is_the_autoregressive_network():
    whole, parts = (seeded(lambda count=count: Masked(5, 2, hidden=32, parts=count)) for count in (None, 5))
    x = rows_like_data(9, 5).float()
    assert torch.equal(whole(x), parts(x))


def test_the_inverse_takes_one_solve_for_each_part(monkeypatch):
    flow = seeded(lambda: maf(9, transforms=1, hidden=16, parts=3)).double()
    (layer,) = flow.transform.steps
    solved = []
    inverse = layer.elementwise.inverse

    def counted(y, theta):
        solved.append(y.shape[-1])
        return inverse(y, theta)

    monkeypatch.setattr(layer.elementwise, "inverse", counted)
    x = rows_like_data(5, 9)
    with torch.no_grad():
        assert torch.allclose(flow.transform.inverse(flow.transform(x).value).value, x, atol=1e-10)
    assert solved == [3, 3, 3]


def test_wrong_parts_are_refused():
    for parts in (0, True, 1.5):
        with pytest.raises(OptionError, match="parts"):
            Masked(3, 1, parts=parts)
    with pytest.raises(OptionError, match="parts: 2 came with coupling"):
        nsf(3, coupling=True, parts=2)
