"""Work in several processes: all of it is done, late decisions are asked for, failures are handed back."""

import math
import os

import pytest

from smartfrz_lightning.private.workers import in_processes


def process(number):
    if number == 3:
        raise ValueError("three")
    return os.getpid()


def test_items_are_shared_and_failures_handed_back():
    done = dict(in_processes(process, range(8), jobs=2))
    assert sorted(done) == list(range(8)) and str(done.pop(3)) == "three"
    assert 1 <= len(set(done.values())) <= 2 and os.getpid() not in done.values()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_waits_for_others_is_asked_for_again(jobs):
    roots: dict[int, float] = {}
    asked = []

    def due():
        for number in (16, 4, 2):  # each is the root of the one before
            while number != 16 and number not in roots.values():
                asked.append(number)
                yield None
            yield number

    for number, root in in_processes(math.sqrt, due(), jobs):
        roots[number] = root
    assert roots == {16: 4.0, 4: 2.0, 2: math.sqrt(2)} and asked == ([] if jobs == 1 else [4, 2])


def test_nothing_is_due_and_nothing_under_way():
    assert list(in_processes(math.sqrt, iter([None, 9]), jobs=2)) == []
    with pytest.raises(ValueError, match="jobs=0"):
        list(in_processes(math.sqrt, [4], jobs=0))
