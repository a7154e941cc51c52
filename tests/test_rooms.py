"""The rooms of the package: imports go down only, every room says what it is for, and nothing lies loose."""

import ast
from pathlib import Path

import pytest

import smartfrz_lightning

PACKAGE = Path(smartfrz_lightning.__file__).parent

# Each room may import those before it.
ROOMS = [
    "version",
    "extras",
    "private",
    "layers",
    "freezing",
    "history",
    "similarity",
    "predictor",
    "cost",
    "report",
    "engine",
]
ROOMS += ["stages", "callbacks", "experiments", "benchmark", "cli"]
# What works on plain modules and tensors.
PLAIN = ["layers", "freezing", "history", "similarity", "cost", "report", "engine", "stages"]


def room_of(module):
    """The room in ``smartfrz_lightning.room.file``; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            yield node.module


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.as_posix() != "__init__.py" and place.parts[0] != "predictor_weights":
            yield place, path


@pytest.mark.parametrize(("place", "path"), list(files()), ids=lambda value: value.as_posix() if value else "")
def test_imports_go_down_only(place, path):
    room = place.parts[0].removesuffix(".py")
    for module in imports(path):
        assert room == "private" or not any(part.startswith("_") for part in module.split(".")), f"{place}: {module}"
        if module.split(".")[0] == "smartfrz_lightning" and (room, room_of(module)) != ("cli", ""):
            assert room_of(module), f"{place} imports the whole package"
            assert ROOMS.index(room_of(module)) <= ROOMS.index(room), f"{place} imports {module}, from a higher room"


def test_nothing_lies_loose():
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "cli.py", "extras.py", "version.py"}


@pytest.mark.parametrize("room", PLAIN)
def test_plain_rooms_do_without_lightning(room):
    for path in (PACKAGE / room).glob("*.py"):
        used = [module for module in imports(path) if module.startswith(("lightning", "pytorch_lightning"))]
        assert not used and "smartfrz_lightning.private.trainer" not in imports(path), path
