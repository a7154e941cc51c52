"""Keys tell samples apart by their values, however these lie in memory."""

import pytest
import torch

from smartfrz_lightning.cache.rows import row_digests


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.int64])
def test_rows_with_the_same_values_have_the_same_key(dtype):
    rows = torch.randint(0, 2, (3, 40, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[1], rows[2] = rows[0], rows[0]
    rows[2, 7, 1] = 1 - rows[0, 7, 1].int()
    one, same, other = row_digests(rows)
    assert one == same != other
    assert row_digests(rows.transpose(1, 2).contiguous().transpose(1, 2)) == [one, same, other]


def test_rows_that_do_not_lie_in_one_piece():
    x = torch.rand(1, 6)
    assert row_digests(x.t()) == row_digests(x.t().clone(memory_format=torch.contiguous_format))
    assert row_digests(x[:, 2]) == row_digests(x[:, 2].clone()) and row_digests(torch.rand(0, 3)) == []
