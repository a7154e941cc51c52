import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartfrz_lightning.similarity.cka import linear_cka


def by_formula(x, y):
    """Eq. 5, feature by feature."""
    x, y = (t.flatten(1).double() for t in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(3, 20), shape=st.sampled_from([(4,), (3, 2, 2), (50,)]))
def test_equals_the_formula(seed, n, shape):
    torch.manual_seed(seed)
    x, y = torch.randn(n, *shape), torch.randn(n, 7)
    assert torch.isclose(linear_cka(x, y), by_formula(x, y), rtol=1e-8)


def test_rotation_and_scale_do_not_matter_but_content_does():
    torch.manual_seed(0)
    x = torch.randn(30, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert torch.isclose(linear_cka(x, 3 * x @ rotation + 1), torch.tensor(1.0).double(), atol=1e-6)
    assert linear_cka(x, torch.randn(30, 8)) < 0.6
    assert linear_cka(x, torch.ones(30, 8)) == 0


def test_too_few_or_different_examples():
    with pytest.raises(ValueError, match="same examples"):
        linear_cka(torch.rand(3, 2), torch.rand(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        linear_cka(torch.rand(1, 2), torch.rand(1, 2))
