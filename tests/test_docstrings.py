"""Every public class and function shows an example, which the doctests run."""

import importlib
import inspect
import pkgutil

import smartfrz_lightning

# They take minutes, and one needs processes that torchrun started.
EXEMPT = {"smartfrz_lightning.benchmark.ddp_step.main", "smartfrz_lightning.benchmark.overhead.main"}
EXEMPT |= {
    f"smartfrz_lightning.benchmark.{name}"
    for name in ("freeze_shock.main", "front.main", "front.measure", "probe_trace.main")
}
EXEMPT |= {"smartfrz_lightning.experiments.film_reviews.main"}
EXEMPT |= {f"smartfrz_lightning.outcomes.look_again.{name}" for name in ("look_again", "main")}
EXEMPT |= {f"smartfrz_lightning.outcomes.let_go.{name}" for name in ("let_go", "main")}
EXEMPT |= {"smartfrz_lightning.outcomes.setup.set_up", "smartfrz_lightning.outcomes.probe_again.probe_again"}
EXEMPT |= {f"smartfrz_lightning.outcomes.record.{name}" for name in ("record_case", "record_to")}
EXEMPT |= {
    f"smartfrz_lightning.outcomes.{name}.main"
    for name in ("__main__", "pretrain", "condense", "judge", "learn", "extend", "ablation", "probe_again")
}


def public():
    """Qualified name and docstring of what the package's modules define themselves."""
    for found in pkgutil.walk_packages(smartfrz_lightning.__path__, "smartfrz_lightning."):
        for name, entry in vars(importlib.import_module(found.name)).items():
            own = getattr(entry, "__module__", None) == found.name
            if own and not name.startswith("_") and (inspect.isclass(entry) or inspect.isfunction(entry)):
                yield f"{found.name}.{name}", entry.__doc__ or ""


def test_every_public_name_has_an_example():
    docstrings = dict(public())
    assert set(docstrings) >= EXEMPT
    missing = sorted(name for name, text in docstrings.items() if ">>>" not in text and name not in EXEMPT)
    assert not missing, f"no example (>>>) in the docstring of {', '.join(missing)}"
