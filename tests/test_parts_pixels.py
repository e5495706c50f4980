"""Conditioners of images: who may see whom, at any size; passes from pixel to pixel; what has to be refused."""

import pytest
import torch

from rosenblatt.conditioners import pixels
from rosenblatt.conditioners.pixelcnn import PixelCNN
from rosenblatt.conditioners.transformer import Transformer
from rosenblatt.core.errors import OptionError
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.conditional import Conditional
from rosenblatt.testing.measures import forbidden_influence
from rosenblatt.testing.tables import disturbed, seeded

SHAPES = [(1, 4, 4), (2, 2, 4), (2, 3, 3), (3, 2, 5), (1, 5, 2), (2, 1, 6), (1, 6, 1), (4, 1, 1)]


def nets(shape, params=2):
    for options in ({}, {"stages": 2, "heads": 2}, {"stages": 3, "blocks": 2, "context": 2, "dropout": 0.3}):
        yield disturbed(seeded(lambda options=options: PixelCNN(shape, params, filters=4, **options)), 0.3).double()
    for options in ({}, {"context": 2, "dropout": 0.3}):
        yield disturbed(
            seeded(lambda options=options: Transformer(shape, params, hidden=4, heads=2, blocks=1, **options)), 0.3
        ).double()
    if shape[1] % 2 == shape[2] % 2 == 0:
        yield disturbed(seeded(lambda: PixelCNN(shape, params, filters=4, stages=2, heads=2, patch=2)), 0.3).double()
        yield disturbed(seeded(lambda: Transformer(shape, params, hidden=4, heads=2, blocks=1, patch=2)), 0.3).double()


def rows_for(net, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, net.features, generator=generator, dtype=torch.float64)
    given = torch.randn(count, net.context, generator=generator, dtype=torch.float64) if net.context else None
    return x, given


def test_levels_are_pixels_in_the_order_of_reading_with_their_channels():
    assert [level.item() for level in PixelCNN((2, 1, 3), 1, filters=2).levels] == [0, 3, 1, 4, 2, 5]


def test_levels_of_patches_are_squares_in_the_order_of_reading():
    order = [level.item() for level in PixelCNN((2, 2, 4), 1, filters=2, patch=2).levels]
    first = [0, 8, 1, 9, 4, 12, 5, 13]  # pixels (0, 0), (0, 1), (1, 0), (1, 1), each with both channels
    assert order == [*first, *(number + 2 for number in first)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_against_the_order_in_both_modes_through_several_steps(shape):
    for net in nets(shape):
        x, given = rows_for(net, 3)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for training in (True, False):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(1)
                    assert forbidden_influence(net.train(training), x, given) == 0.0
            optimiser.zero_grad()
            with torch.random.fork_rng(devices=[]):
                net.train()(x, given).square().sum().backward()
            optimiser.step()


def test_every_earlier_number_reaches_the_last_one():
    """No blind spot: the derivative of the last theta in every number before it is not zero."""
    makes = (
        lambda: PixelCNN((2, 4, 4), 1, filters=6, blocks=2),
        lambda: Transformer((2, 4, 4), 1, hidden=6, heads=1),
    )
    for make in makes:
        net = disturbed(seeded(make), 0.3).double()
        x, _ = rows_for(net, 4)
        x.requires_grad_()
        last = net.order[-1]
        (grad,) = torch.autograd.grad(net(x)[:, last].sum(), x)
        seen = grad.abs().amax(dim=0)
        assert (seen[net.order[:-1]] > 0).all()
        assert seen[last] == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pass_from_pixel_to_pixel_is_the_network_and_never_looks_ahead(shape):
    for net in nets(shape):
        x, given = rows_for(net, 5)
        with torch.no_grad():
            whole = net(x, given)
            columns = torch.full_like(x.t(), torch.nan)  # what is not known yet poisons whatever touches it
            walk = net.column_walk(given, 5)
            for number, level in enumerate(net.levels):
                theta = walk.theta(number, columns)
                torch.testing.assert_close(theta, whole[:, level], rtol=1e-11, atol=1e-11)
                columns[number] = x[:, level.item()]


def test_thetas_come_in_parts_where_no_gradient_is_taken(monkeypatch):
    net = disturbed(seeded(lambda: PixelCNN((2, 3, 3), 5, filters=4)))
    x = torch.randn(4, 18, generator=torch.Generator().manual_seed(0))
    whole = net(x)
    monkeypatch.setattr(pixels, "NUMBERS_AT_ONCE", 100)
    with torch.no_grad():
        parts = list(net.parts(net.arrange(x)))
        assert [part.shape for part in parts] == [(4, 4, 5)] * 4 + [(4, 2, 5)]
        torch.testing.assert_close(net(x), whole)


def test_levels_have_to_come_in_order():
    walk = PixelCNN((1, 2, 2), 1, filters=2).walk()
    walk.theta(0, torch.zeros(1, 4))
    with pytest.raises(OptionError, match="one after the other"):
        walk.theta(2, torch.zeros(1, 4))


def test_gradients_through_a_pass_are_those_of_the_network():
    net = disturbed(seeded(lambda: PixelCNN((2, 2, 2), 2, filters=4, stages=2, heads=2)), 0.3).double()
    layer = Conditional(Affine(), net)
    z, _ = rows_for(net, 2, seed=3)
    assert torch.autograd.gradcheck(lambda z: layer.inverse(z).value, (z.requires_grad_(),), fast_mode=True)


def test_weights_are_normalised():
    net = seeded(lambda: PixelCNN((1, 3, 3), 1, filters=4))
    conv = net.vertical.down[0][0].first
    norms = torch.linalg.vector_norm(conv.weight().flatten(1), dim=1)
    torch.testing.assert_close(norms, conv.gain)
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    before = net(x)
    with torch.no_grad():
        conv.direction.mul_(7.0)
    torch.testing.assert_close(net(x), before)
    assert not [part for part in net.modules() if "Norm" in type(part).__name__ and hasattr(part, "running_mean")]


def test_activations_keep_their_size_at_the_start():
    """Units of the last layer have about unit variance for normal images, however deep the network is."""
    for options in ({}, {"blocks": 3, "stages": 3}):
        net = seeded(lambda options=options: PixelCNN((1, 8, 8), 4, filters=32, **options))
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        size = net.states(x.unsqueeze(-1), None).square().mean().sqrt()
        assert 0.3 < size < 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"filters": 0}, "filters"),
        ({"blocks": 0}, "blocks"),
        ({"stages": 0}, "stages"),
        ({"heads": 3}, "heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch": 0}, "patch"),
        ({"patch": 3}, "patch"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, match):
    with pytest.raises(OptionError, match=match):
        PixelCNN((1, 2, 2), 1, **{"filters": 4, **options})


def test_shapes_that_are_no_image_are_refused():
    for make in (PixelCNN, Transformer):
        with pytest.raises(OptionError, match="shape"):
            make((1, 0, 2), 1)
    for options, match in (({"heads": 3}, "heads"), ({"blocks": 0}, "blocks"), ({"dropout": -0.1}, "dropout")):
        with pytest.raises(OptionError, match=match):
            Transformer((1, 2, 2), 1, hidden=4, **{"heads": 2, **options})
