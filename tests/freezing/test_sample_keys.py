"""Keys tell samples apart: on a GPU by sums, which come out as the same integers on the CPU."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartfrz_lightning.freezing.sample_keys import row_digests, row_sums


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["uint8", "bool", "float32", "float16", "bfloat16", "int64", "float64"]),
    width=st.integers(1, 9),
    place=st.integers(0, 10**6),
    long=st.booleans(),
    round_numbers=st.booleans(),
)
def test_the_keys_that_a_gpu_sums_tell_rows_apart(kind, width, place, long, round_numbers):
    dtype, width = getattr(torch, kind), width + 5000 * long
    torch.manual_seed(place)
    rows = torch.rand(3, width, 2).mul(5)
    rows = (rows.round() if round_numbers else rows).to(dtype)
    rows[1] = rows[0]
    change = place % width
    rows[2] = rows[0]
    rows[2, change, 0] = ~rows[0, change, 0] if kind == "bool" else rows[0, change, 0] + 1
    one, same, other = row_sums(rows).tolist()
    assert one == same and one[0] != other[0] and one[1] != other[1]
    assert row_sums(rows[:1].flip(1)).tolist()[0] != one or torch.equal(rows[0], rows[0].flip(0))
    assert row_sums(rows.transpose(1, 2).contiguous().transpose(1, 2)).tolist()[0] == one  # values, not memory


def test_keys_summed_by_a_gpu_do_not_meet():
    rows = torch.cat([torch.eye(300), 2 * torch.eye(300), torch.zeros(1, 300), torch.rand(5000, 300)])
    sums = row_sums(rows)
    assert len({tuple(row) for row in sums.tolist()}) == len(rows)
    assert len(set(sums[:, 0].tolist())) == len(set(sums[:, 1].tolist())) == len(rows)


def test_complements_and_negatives_have_other_keys():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        rows = torch.randint(0, 120, (50, 64), generator=generator, dtype=dtype)
        black = torch.zeros(1, 64, dtype=dtype)
        everything = torch.cat([rows, ~rows, black, ~black, *([-rows, -rows - 1] if dtype != torch.uint8 else [])])
        assert len(set(map(tuple, row_sums(everything).tolist()))) == len(set(map(tuple, everything.tolist())))


def test_keys_of_values_that_do_not_lie_in_a_row():
    x = torch.rand(1, 6)
    for sums in (row_sums, lambda tensor: torch.tensor([list(key) for key in row_digests(tensor)])):
        assert torch.equal(sums(x.t()), sums(x.t().clone(memory_format=torch.contiguous_format)))
        assert torch.equal(sums(x[:, 2]), sums(x[:, 2].clone()))
    assert row_sums(torch.rand(0, 3)).shape == (0, 2) and row_digests(torch.rand(0, 3)) == []
