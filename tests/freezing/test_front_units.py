"""A part of the front that changes is found, wherever in it that is."""

from torch import nn

from smartfrz_lightning.freezing.front_units import Unit


def test_a_weight_of_many_pieces_that_changes_is_found():
    unit = Unit("0", nn.Linear(1100, 600).requires_grad_(False))
    assert len(unit._pieces) == 4 and not unit.changed()
    for place in (5, 400_000, 659_999):
        unit.module.weight.data.view(-1)[place] += 1
        assert any(unit.changed() for _ in range(8))
        unit.look()
    assert not any(unit.changed() for _ in range(8))
