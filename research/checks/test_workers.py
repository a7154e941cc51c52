"""Work in several processes: all of it is done, late decisions are asked for, failures are handed back."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.workers import in_processes


def process(number):
    if number == 3:
        raise ValueError("three")
    return os.getpid()


def test_items_are_shared_and_failures_handed_back():
    done = dict(in_processes(process, range(8), jobs=2))
    assert sorted(done) == list(range(8)) and str(done.pop(3)) == "ValueError: three"
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


class Strange(Exception):
    """Cannot be made from its own arguments in another process."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def dies(number):
    if number == 2:
        os._exit(9)
    if number == 5:
        raise Strange(1, 2)
    return number


@pytest.mark.slow
def test_a_process_that_dies_takes_nothing_else_with_it():
    done = dict(in_processes(dies, range(7), jobs=2))
    assert {number: value for number, value in done.items() if value == number} == {n: n for n in (0, 1, 3, 4, 6)}
    assert "its process died" in str(done[2]) and str(done[5]) == "Strange: 1 and 2"


SLEEPER = """
import sys, time
from research.workers import in_processes
sys.path.insert(0, {folder!r})
from test_workers import sleeps
if __name__ == "__main__":
    list(in_processes(sleeps, [{mark!r}, {mark!r}], jobs=2))
"""


def sleeps(mark):
    with Path(mark).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


@pytest.mark.slow
def test_processes_end_with_the_one_that_began_them(tmp_path):
    mark, script = tmp_path / "pids", tmp_path / "script.py"
    script.write_text(SLEEPER.format(folder=str(Path(__file__).parent), mark=str(mark)))
    main = subprocess.Popen([sys.executable, str(script)])
    wait_until(lambda: mark.exists() and len(mark.read_text().split()) == 2)
    pids = [int(pid) for pid in mark.read_text().split()]
    main.kill()
    main.wait()
    wait_until(lambda: not any(map(alive, pids)))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)
