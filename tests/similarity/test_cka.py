import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartfrz_lightning.similarity.cka import gram_cka, unbiased_gram


def unbiased(x, y):
    return gram_cka(unbiased_gram(x), unbiased_gram(y))


def hsic_by_formula(x, y):
    """Song et al. 2012, Eq. 5."""
    n, one = len(x), torch.ones(len(x)).double()
    x, y = x - x.diag().diag(), y - y.diag().diag()
    parts = (x @ y).trace(), one @ x @ one * (one @ y @ one) / ((n - 1) * (n - 2)), one @ x @ y @ one / (n - 2)
    return (parts[0] + parts[1] - 2 * parts[2]) / (n * (n - 3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(4, 20), width=st.sampled_from([1, 4, 50]))
def test_unbiased_grams_give_the_formula(seed, n, width):
    torch.manual_seed(seed)
    x, y = torch.randn(n, width, 2).add(3).double(), torch.randn(n, 7).double()
    flat = x.flatten(1)
    hsic = (unbiased_gram(x) * unbiased_gram(y)).sum()
    assert torch.isclose(hsic, hsic_by_formula(flat @ flat.T, y @ y.T), rtol=1e-6, atol=1e-9)


def test_unbiased_cka_of_unrelated_features_is_zero_on_average():
    torch.manual_seed(0)
    pairs = [[torch.randn(16, 200) for _ in range(2)] for _ in range(40)]
    x, y = (torch.cat([unbiased_gram(pair[side]).flatten() for pair in pairs]) for side in (0, 1))
    assert abs(gram_cka(x, y)) < 0.05 and gram_cka(x, x) == pytest.approx(1)


def test_rotation_and_scale_do_not_matter_but_content_does():
    torch.manual_seed(0)
    x = torch.randn(30, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert torch.isclose(unbiased(x, 3 * x @ rotation + 1), torch.tensor(1.0).double(), atol=1e-6)
    assert unbiased(x, torch.randn(30, 8)).abs() < 0.3
    assert unbiased(x, torch.ones(30, 8)) == 0


def test_too_few_examples():
    with pytest.raises(ValueError, match="at least 4"):
        unbiased_gram(torch.rand(3, 2))
