"""The recurrent conditioner against torch's own cell, and the model made of it."""

import pytest
import torch

from rosenblatt.conditioners.recurrent import Recurrent
from rosenblatt.core.errors import OptionError
from rosenblatt.layers.conditional import Conditional
from rosenblatt.models.tan import tan
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded


@pytest.mark.parametrize("context", [0, 2])
def test_states_are_those_of_a_gru(context):
    order, hidden = [2, 0, 3, 1], 5
    net = disturbed(seeded(lambda: Recurrent(4, 3, hidden=hidden, context=context, order=order))).double()
    x, given = rows_like_data(6, 4), rows_like_data(6, 2, seed=4) if context else None
    cell = torch.nn.GRUCell(1, hidden).double()
    state = torch.zeros(6, hidden).double() if given is None else torch.tanh(net.context_in(given))
    theta = net(x, given)
    with torch.no_grad():
        for place, coordinate in enumerate(order):
            torch.testing.assert_close(theta[:, coordinate], state @ net.last.T + net.bias[place])
            cell.weight_ih.copy_(net.entering.unsqueeze(-1))
            cell.weight_hh.copy_(net.recurring)
            cell.bias_ih.copy_(net.offsets[place])
            cell.bias_hh.zero_()
            state = cell(x[:, coordinate : coordinate + 1], state)


def test_sampling_takes_one_step_of_the_network_for_each_coordinate(monkeypatch):
    flow = seeded(lambda: tan(5, transforms=0, state=4, components=2))
    net = flow.transform.steps[-1].conditioner
    places = []
    step = net.next_state

    def counted(state, x, place):
        places.append(place)
        return step(state, x, place)

    monkeypatch.setattr(net, "next_state", counted)
    flow.sample(3, generator=torch.Generator().manual_seed(0))
    assert places == [0, 1, 2, 3]


@pytest.mark.parametrize(("recurrence", "maps"), [("shift", "Additive"), ("leaky", "Stacked")])
@pytest.mark.parametrize(("conditionals", "net"), [("recurrent", "Recurrent"), ("masked", "Masked")])
def test_the_model_is_made_of_what_its_options_say(recurrence, maps, conditionals, net):
    flow = tan(3, transforms=2, recurrence=recurrence, conditionals=conditionals, state=4, hidden=8)
    layers = [step for step in flow.transform.steps if isinstance(step, Conditional)]
    assert [type(layer.elementwise).__name__ for layer in layers] == [maps, maps, "LogisticMixture"]
    assert [type(layer.conditioner).__name__ for layer in layers] == ["Recurrent", "Recurrent", net]


def test_wrong_options_are_refused():
    for options in ({"transforms": -1}, {"recurrence": "lstm"}, {"conditionals": "free"}, {"components": 0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            tan(2, **options)
    with pytest.raises(OptionError, match="hidden"):
        tan(2, state=0)
    for order in ([0, 0], [1, 2]):
        with pytest.raises(OptionError, match="permutation"):
            Recurrent(2, 1, order=order)
