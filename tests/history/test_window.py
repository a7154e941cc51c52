import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smartfrz_lightning.history.sampling import WeightSampler, sample_indices
from smartfrz_lightning.history.window import WeightHistory, snapshot_spacing
from smartfrz_lightning.layers.finder import find_layers


def net_and_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4), nn.Linear(4, 2))
    return net, find_layers(net, torch.rand(1, 3, 8, 8))


@given(size=st.integers(1, 5000), sample=st.integers(1, 600), seed=st.integers(0, 5))
def test_sample_is_fixed_in_range_and_without_repeats_where_it_can_be(size, sample, seed):
    first = sample_indices(size, sample, seed, "a")
    assert len(first) == sample and first.min() >= 0 and first.max() < size
    assert torch.equal(first, sample_indices(size, sample, seed, "a"))
    if sample <= size:
        assert len(first.unique()) == sample


def test_samples_are_those_weights_in_any_memory_format_and_precision():
    net, layers = net_and_layers()
    conv = net[0].weight.detach()
    expected = conv.flatten()[sample_indices(conv.numel(), 32, 0, layers[0].name)]
    for variant in (net, net.to(memory_format=torch.channels_last), net.bfloat16()):
        row = WeightSampler(variant, layers, 32)(torch.empty(3, 32))[0]
        torch.testing.assert_close(row, expected, rtol=1e-2, atol=1e-2)


@settings(max_examples=40, deadline=None)
@given(window=st.integers(2, 5), records=st.integers(0, 12), gone=st.integers(0, 12), back=st.integers(0, 12))
def test_the_ring_holds_the_latest_snapshots_in_order(window, records, gone, back):
    """A layer leaves and may come back: all windows then begin again, in the order of the model."""
    net, layers = net_and_layers()
    history = WeightHistory(net, layers, window, sample_size=8)
    for step in range(records):
        if step == gone:
            history.watch(layers[1:])
        if step == back:
            history.watch(layers)
        with torch.no_grad():
            net[2].weight.fill_(step)
            net[0].weight.fill_(-step)
        history.record(step)
    returned = gone <= back < records
    expected = list(range(back if returned else 0, records))[-window:]
    assert history.steps == expected
    assert history.names == (["2", "3"] if gone < records and not returned else ["0", "2", "3"])
    assert history.windows().shape == (len(history.names), len(expected), 8)
    for name, sign in (("0", -1), ("2", 1)):
        if name in history.names:
            assert (sign * history.windows()[history.names.index(name), :, 0]).tolist() == expected
    again = WeightHistory(net, [one for one in layers if one.name in history.names], window, sample_size=8)
    again.load_state_dict(history.state_dict())
    assert torch.equal(again.windows(), history.windows()) and again.names == history.names


def test_spacing_covers_one_to_two_epochs():
    for epoch in (20, 100, 391, 5000):
        assert 1 <= snapshot_spacing(epoch) * 30 / epoch <= 2
