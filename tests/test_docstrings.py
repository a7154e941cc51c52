"""Every public class and function of the package says what it does."""

import importlib
import inspect
import pkgutil

import pytest

import smartfrz_lightning


def public():
    """Qualified name and object of what the package's modules define themselves."""
    for found in pkgutil.walk_packages(smartfrz_lightning.__path__, "smartfrz_lightning."):
        for name, entry in vars(importlib.import_module(found.name)).items():
            own = getattr(entry, "__module__", None) == found.name
            if own and not name.startswith("_") and (inspect.isclass(entry) or inspect.isfunction(entry)):
                yield f"{found.name}.{name}", entry


def test_every_public_name_has_a_docstring():
    missing = [name for name, entry in public() if not (entry.__doc__ or "").strip()]
    assert not missing, f"no docstring: {', '.join(missing)}"


@pytest.mark.parametrize("name", smartfrz_lightning.__all__)
def test_what_users_call_shows_an_example(name):
    entry = getattr(smartfrz_lightning, name)
    assert not inspect.isclass(entry) or ">>>" in (entry.__doc__ or "")
