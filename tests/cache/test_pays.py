"""A front cache that saves no time switches itself off, by the clock."""

import pytest

from smartfrz_lightning.cache.pays import Pays


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def epoch(pays, clock, known, unknown, share=1.0, batches=20):
    """Batches of which ``share`` are known, with the seconds that either kind takes."""
    for number in range(batches):
        pays.batch_begins()
        hit = number < share * batches
        clock.now += known if hit else unknown
        if reason := pays.batch_ends(float(hit), not hit, full=False):
            return f"after {number + 1} batches {reason}"
    return pays.epoch_ends(full=False)


def test_what_saves_time_goes_on(clock):
    pays = Pays(clock)
    assert not epoch(pays, clock, 0.0, 1.0, share=0)
    for _ in range(3):
        assert not epoch(pays, clock, 0.6, 1.0)
    assert pays.seconds == pytest.approx(60 * 0.4)


def test_what_is_computed_as_fast_as_it_is_looked_up_stops_within_two_epochs(clock):
    pays = Pays(clock)
    assert not epoch(pays, clock, 0.0, 1.0, share=0)
    assert epoch(pays, clock, 0.99, 1.0) == "a step takes 990 ms with it and 1000 ms without"


def test_samples_that_do_not_come_again_stop_it_within_two_epochs(clock):
    pays = Pays(clock)
    pays.batches_per_epoch = 20
    assert not epoch(pays, clock, 0.0, 1.0, share=0)
    reason = epoch(pays, clock, 0, 1, share=0)
    assert reason.startswith("after 10 batches it knew 0% of the samples and 0% of the batches: random augmentation")


def test_epochs_in_which_the_front_changes_do_not_count(clock):
    pays = Pays(clock)
    for _ in range(5):
        pays.front_changed()
        assert not epoch(pays, clock, 0.0, 1.0, share=0)
