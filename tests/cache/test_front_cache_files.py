"""The front cache in files: found again, damaged, shared by two runs, on a full disk, left by a killed run."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cached import Images, cache_of, images, train, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from smartfrz_lightning.cache.rows import Budget, Rows, checksum


def made(seed=0):
    torch.manual_seed(seed)
    return Images()


def run_with(folder, net, cache=None, epochs=3):
    cache = cache or cache_of(net, 1.0, folder)
    losses = train(net, images(40), 2, cache, epochs=epochs, batch=5)
    cache.stop()
    return losses, cache.use


PLAIN = train(made(), images(40), 2, epochs=3, batch=5)


def test_a_later_run_with_the_same_front_finds_what_an_earlier_one_kept(tmp_path):
    first, use = run_with(tmp_path, made())
    assert first == PLAIN
    again, later = run_with(tmp_path, made())
    assert again == first and later.hits > use.hits and later.misses < use.misses - 20
    _, other = run_with(tmp_path, made(seed=1))
    assert other.misses == use.misses  # other weights, another front


@pytest.mark.parametrize("how", ["a byte", "cut short", "empty"])
def test_damaged_files_are_computed_again(tmp_path, how):
    run_with(tmp_path, made())
    files = sorted(tmp_path.iterdir())
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes({"a byte": content, "cut short": content[: len(content) // 2], "empty": b""}[how])
    assert run_with(tmp_path, made())[0] == PLAIN


def test_rows_that_another_code_wrote_are_not_used(tmp_path):
    run_with(tmp_path, made())
    for path in tmp_path.iterdir():  # whole and under the right key, with other values
        rows = load_file(path)
        rows["0"] = rows["0"] + 1
        save_file(rows, path, {"sum": checksum(rows)})
    losses, use = run_with(tmp_path, made())
    assert losses == PLAIN and "gives something else than what was kept" in use.stopped


WIDTH = [6]


class Narrow(nn.Linear):
    """Its code is another in the next run."""

    def forward(self, x):
        return super().forward(x)[:, : WIDTH[0]] * 1


def test_files_of_code_that_gave_another_shape_are_other_files(tmp_path):
    for width in (6, 4):
        WIDTH[0] = width
        torch.manual_seed(0)
        net = nn.Sequential(Narrow(6, 6).requires_grad_(False), nn.Linear(width, 3))
        cache = cache_of(net, folder=tmp_path)
        for _ in range(4):
            cache.open()
            net(vectors())
            cache.close()
            cache.end_epoch()
        assert cache.on and cache.use.hits > 0
        cache.stop()


def test_two_runs_in_one_folder(tmp_path):
    nets = [made(), made()]
    caches = [cache_of(net, 1.0, tmp_path) for net in nets]
    for net, cache in zip(nets, caches, strict=True):
        assert train(net, images(40), 2, cache, epochs=3, batch=5) == PLAIN
    for cache in caches:
        cache.stop()
    assert run_with(tmp_path, made())[0] == PLAIN


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    net, folder = made(), tmp_path / "rows"
    cache = cache_of(net, 1.0, folder)
    losses = train(net, images(40), 2, cache, epochs=2, batch=5)
    shutil.rmtree(folder)
    assert losses == PLAIN[:16]
    run_with(folder, made())
    assert list(folder.iterdir())


def test_a_folder_that_cannot_be_written_ends_the_files_not_the_training(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    losses, use = run_with(blocked / "rows", made())
    assert losses == PLAIN and "nothing more is written" in use.problem and use.hits > 0


HERE = str(Path(__file__).parent)
HELPERS = str(Path(__file__).parent.parent / "helpers")
RUN = """
import os, sys
sys.path[:0] = sys.argv[2:]
from cached import cache_of, images, train
from test_front_cache_files import PLAIN, made
net = made()
cache = cache_of(net, 1.0, sys.argv[1])
"""


def in_process(code, folder, **how):
    return subprocess.run([sys.executable, "-c", RUN + code, str(folder), HERE, HELPERS], capture_output=True, **how)


def test_a_full_disk_ends_the_files_not_the_training(tmp_path):
    code = "assert train(net, images(40), 2, cache, epochs=3, batch=5) == PLAIN; "
    code += "assert 'nothing more is written' in cache.use.problem"

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a disk with room for no more

    done = in_process(
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + code, tmp_path, preexec_fn=small
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert not list(tmp_path.glob("*.part"))


def test_a_full_tmpfs(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("a small tmpfs can be mounted by root alone")
    try:
        (tmp_path / "rest").write_bytes(b"0" * 60_000)
        losses, use = run_with(tmp_path / "rows", made())
        assert losses == PLAIN and "nothing more is written" in use.problem
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_killed_run_leaves_what_its_epochs_gave(tmp_path):
    code = "train(net, images(40), 2, cache, epochs=1, batch=5)\nos.kill(os.getpid(), 9)"
    assert in_process(code, tmp_path).returncode == -9
    (tmp_path / "half.part").write_bytes(b"0" * 100)  # killed while it wrote
    losses, use = run_with(tmp_path, made())
    assert losses == PLAIN and use.hits > run_with(None, made())[1].hits


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=10), st.booleans())
def test_rows_are_read_as_they_were_kept(batches, on_disk):
    from tempfile import TemporaryDirectory

    def key(number):
        return number.to_bytes(16, "little")

    def values(numbers):
        return [torch.tensor(numbers, dtype=torch.float).view(-1, 1, 1, 1).expand(-1, 2, 2, 2).contiguous()]

    with TemporaryDirectory() as folder:
        where = (Budget(10**6), Path(folder) if on_disk else None, "name", torch.device("cpu"))
        rows = Rows(*where)
        for numbers in batches:
            rows.put([key(number) for number in numbers], values(numbers))
        rows.save()
        known = sorted({number for numbers in batches for number in numbers})
        for store in [rows, *([Rows(*where)] if on_disk else [])]:
            assert store.find([key(number) for number in range(10)]) is None or known == list(range(10))
            places = store.find([key(number) for number in known])
            assert places is not None
            assert not known or torch.equal(store.read(places)[0], values(known)[0])
        assert not on_disk or any(Path(folder).iterdir()) == bool(known)
