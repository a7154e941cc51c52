"""What a front cache saves, by a clock that is moved by hand."""

import pytest

from smartfrz_lightning.freezing.savings import Savings


@pytest.fixture
def savings(monkeypatch):
    savings = Savings()
    savings.now = 0.0
    monkeypatch.setattr(savings, "clock", lambda: savings.now)
    return savings


def compute(savings, seconds):
    with savings.computing():
        savings.now += seconds


def spend(savings, seconds):
    with savings.spending():
        savings.now += seconds


def test_parts_of_batches_that_cost_as_much_as_whole_ones_save_nothing(savings):
    for _ in range(5):
        compute(savings, 8.0)
        savings.batch_done(known=0, batch=4)
    assert savings.end_epoch() == savings.seconds == 0.0
    for _ in range(5):  # half is known, the other half takes no less
        spend(savings, 1.0)
        compute(savings, 8.0)
        savings.batch_done(known=2, batch=4)
    assert savings.end_epoch() == savings.seconds == -5.0
    for _ in range(5):
        spend(savings, 1.0)
        savings.batch_done(known=4, batch=4)
    assert savings.end_epoch() == 35.0 and savings.seconds == 30.0


def test_what_is_inside_of_each_other_counts_once(savings):
    with savings.computing():
        savings.now += 3.0
        compute(savings, 2.0)
        spend(savings, 10.0)
    with savings.spending():
        savings.now += 1.0
        compute(savings, 5.0)
    savings.batch_done(known=0, batch=2)
    assert savings.seconds == 2 * 5.0 - 10.0 - 11.0


def test_a_front_that_grows_takes_no_less_and_changes_nothing_that_was(savings):
    for _ in range(3):
        compute(savings, 8.0)
        savings.batch_done(known=0, batch=4)
    savings.batch_done(known=4, batch=4)
    assert savings.seconds == 8.0
    savings.front_grew()
    assert savings.seconds == 8.0
    compute(savings, 1.0)  # carried on from what is kept
    savings.batch_done(known=0, batch=4)
    assert savings.seconds == 8.0 + 4 * 2.0 - 1.0
    savings.front_grew()
    compute(savings, 80.0)
    savings.batch_done(known=0, batch=4)
    assert savings.seconds == 15.0
    savings.front_shrank()
    assert savings.seconds == 15.0 and not savings.known
    compute(savings, 4.0)
    savings.batch_done(known=0, batch=4)
    assert savings.seconds == 15.0 and savings.end_epoch() == 15.0 and savings.end_epoch() == 0.0


def test_a_batch_in_which_nothing_is_looked_up_does_not_count(savings):
    compute(savings, 8.0)
    savings.batch_unknown()
    compute(savings, 4.0)
    savings.batch_done(known=0, batch=4)
    savings.batch_done(known=4, batch=4)
    assert savings.seconds == 4.0
