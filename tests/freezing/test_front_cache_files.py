"""The front cache in files: found again, damaged, shared by two runs, on a full disk, left by a killed run."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_front_cache import Images, images, train

from smartfrz_lightning.freezing.front_cache import FrontCache
from smartfrz_lightning.freezing.sample_store import Budget, SampleStore


def run_with(folder, net, gigabytes=1.0):
    torch.manual_seed(0)
    cache = FrontCache(net, gigabytes, folder)
    losses = train(net, images(40), 2, cache, epochs=2, batch=5)
    cache.stop()
    return losses, cache.use


def made(seed=0):
    torch.manual_seed(seed)
    return Images()


def test_a_later_run_with_the_same_front_finds_what_an_earlier_one_kept(tmp_path):
    first, use = run_with(tmp_path, made())
    assert use.misses == 45
    again, later = run_with(tmp_path, made())
    assert again == first
    assert later.hits > use.hits and later.misses < 20
    _, other = run_with(tmp_path, made(seed=1))
    assert other.misses == 45  # other weights, another front


def test_damaged_files_are_computed_again(tmp_path):
    first, _ = run_with(tmp_path, made())
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        content = bytearray(path.read_bytes())
        if path.suffix == ".rows":
            content[len(content) // 3] ^= 255
            content = content if number % 2 else content[: len(content) // 2]
        else:
            content = content if number % 3 else content[:-7]
        path.write_bytes(content)
    assert run_with(tmp_path, made())[0] == first


def test_two_runs_in_one_folder(tmp_path):
    nets = [made(), made()]
    caches = [FrontCache(net, 1.0, tmp_path) for net in nets]
    plain = train(made(), images(20), 2)
    assert [train(net, images(20), 2, cache) for net, cache in zip(nets, caches, strict=True)] == [plain, plain]
    for cache in caches:
        cache.stop()
    assert run_with(tmp_path, made())[1].misses < 40


def test_a_full_disk_ends_the_cache_not_the_training(tmp_path, monkeypatch):
    plain = train(made(), images(20), 2)
    written = []

    def full(*args):
        written.append(args)
        if len(written) > 8:
            raise OSError(28, "No space left on device")
        return write(*args)

    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    net = made()
    cache = FrontCache(net, 1.0, tmp_path)
    assert train(net, images(20), 2, cache) == pytest.approx(plain, rel=1e-5)
    assert "No space left" in cache.use.stopped


def test_a_killed_run_leaves_what_it_had_noted(tmp_path):
    code = """
import os, sys, torch
sys.path.insert(0, sys.argv[2])
from test_front_cache_files import FrontCache, images, made, train
net = made()
cache = FrontCache(net, 1.0, sys.argv[1])
train(net, images(40), 2, cache, epochs=1, batch=5)
cache.flush()
os.kill(os.getpid(), 9)
"""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), here], capture_output=True)
    assert done.returncode == -9, done.stderr
    first, use = run_with(tmp_path, made())
    assert use.misses < 40 and first == train(made(), images(40), 2, epochs=2, batch=5)


def test_files_are_given_back_where_nothing_is_to_stay(tmp_path):
    store = SampleStore((3,), torch.float32, budget := Budget(1000), tmp_path, "name")
    store.put([b"k" * 16], torch.ones(1, 3))
    store.close(keep=False)
    assert not list(tmp_path.iterdir()) and budget.free == 1000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.booleans())
def test_a_store_gives_what_was_put(keys, on_disk):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = SampleStore((2, 2), torch.bfloat16, Budget(5 * 8), Path(folder) if on_disk else None, "name")
        kept = []
        for key in keys:
            name = json.dumps(key).encode() * 16
            store.put([name], torch.full((1, 2, 2), float(key)))
            kept += [key] if key not in kept and len(kept) < 5 else []
        for key in range(10):
            name = json.dumps(key).encode() * 16
            assert (name in store) == (key in kept)
            assert key not in kept or store.row(name).tolist() == [[key, key], [key, key]]
        store.close()
