"""Optional dependencies."""

from importlib.util import find_spec


def require(package: str, extra: str) -> None:
    """Raise an ``ImportError`` that names the extra if a package is not installed."""
    if find_spec(package) is None:
        raise ImportError(f"this needs {package}: pip install 'smartfrz-lightning[{extra}]'")
