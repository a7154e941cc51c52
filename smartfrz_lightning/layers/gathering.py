"""Gather the parameters of a model into layers, from what one training step showed."""

from collections import defaultdict
from dataclasses import replace
from itertools import takewhile

from torch import nn

from smartfrz_lightning.layers.graph import StepUse
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import Convolution, RunningNorm, SpectralNorm, module_hooks

# An embedding this much smaller than the largest of its siblings (token types, positions) is light.
_LIGHT_EMBEDDING = 0.05


def gather_layers(model: nn.Module, facts: StepUse) -> list[Layer]:
    """Gather all trainable parameters of a model into layers, in forward order, those that took no part last."""
    modules = dict(model.named_modules(remove_duplicate=False))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("the model has no trainable parameter: set requires_grad=True on what is to be trained")
    owners = _owners(model)
    heavy = _heavy(facts, trainable, owners, modules)
    ran = {name: [facts.ran[owner] for owner in owners[name] if owner in facts.ran] for name in trainable}
    time = {name: facts.first.get(name, min(ran[name], default=None)) for name in trainable}

    # Weights that one module of torch.nn owns, or that two modules share, are one layer.
    layer_of: dict[str, str] = {}
    key_of_module: dict[str, str] = {}
    for name in sorted((name for name in trainable if name in heavy), key=lambda name: _order(time[name])):
        homes = [owner for owner in owners[name] if _is_stock(modules[owner])]
        known = [key_of_module[owner] for owner in homes if owner in key_of_module]
        key = known[0] if known else name
        layer_of[name] = key
        key_of_module.update({owner: key for owner in homes})
    keys = sorted(set(layer_of.values()), key=lambda key: _order(time[key]))

    # What is light goes, module by module, to the layer that feeds it or else to the nearest relative next to it.
    stateful = {name for name in facts.changed if name in modules and _keeps_statistics(name, modules[name])}
    units = defaultdict(list)
    for name in trainable:
        if name not in heavy:
            owner = owners[name][0]
            units[owner if _is_stock(modules[owner]) or owner in stateful else name].append(name)
    home = {}
    for unit in [*units, *sorted(stateful - units.keys())]:
        home[unit] = _home(facts, unit, units.get(unit, []), owners, keys, layer_of, key_of_module, time)
        if home[unit] is None and units.get(unit):  # nothing heavy trains: the light ones are the layers
            home[unit] = units[unit][0]
    members = defaultdict(list)
    for name in trainable:
        owner = owners[name][0]
        members[layer_of.get(name) or home.get(owner if owner in units else name)].append(name)
    states = defaultdict(list)
    for module in stateful:
        # A BatchNorm of a layer that the user froze before training is the user's affair.
        if home.get(module) in members:
            states[home[module]].append(module)

    weights = defaultdict(list)
    for name, key in layer_of.items():
        weights[key].append(name)
    named = _names(members, weights, owners)
    found = [
        Layer(
            name=named[key],
            parameters=tuple(names),
            weights=tuple(weights[key] or names),
            stateful=tuple(sorted(states[key])),
            size=sum(trainable[name].numel() for name in names),
        )
        for key, names in members.items()
    ]
    return _ordered(facts, found, time)


def _common(a: str, b: str) -> int:
    """Number of leading modules that two names share."""
    pairs = zip(a.split("."), b.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _owners(model: nn.Module) -> dict[str, list[str]]:
    """The modules that own each parameter; several for a tied one."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return {first: [name.rpartition(".")[0] for name in aliases] for first, aliases in names.items()}


def _order(time: int | None) -> float:
    return float("inf") if time is None else time


def _is_stock(module: nn.Module) -> bool:
    """Whether the module's own parameters belong together, as those of a stock layer or a subclass of one do."""
    homes = {kind.__module__ for kind in type(module).__mro__}
    homes -= {"torch.nn.modules.module", "torch.nn.modules.container"}
    return any(home.startswith("torch.nn.modules.") for home in homes)


def _keeps_statistics(name: str, module: nn.Module) -> bool:
    """Whether buffers of a module that moved are statistics of a layer, which stop with it.

    Norms and parametrisations have such; an EMA, a codebook or a running mean that the user keeps in a block or in the
    whole model is the user's, and so is that module's training mode.
    """
    if isinstance(module, RunningNorm):
        return True
    hooks = module_hooks(module)["_forward_pre_hooks"].values()
    spectral = any(isinstance(hook, SpectralNorm) for hook in hooks)
    kept = spectral or ".parametrizations." in f".{name}." or "Norm" in type(module).__name__
    return kept and not any(True for _ in module.children())


def _heavy(facts: StepUse, trainable: dict, owners: dict, modules: dict) -> set[str]:
    """The parameters that make a layer of their own: matrices, kernels and tables, as they are used."""
    heavy = set()
    for name, parameter in trainable.items():
        kind = modules[owners[name][0]]
        # A convolution or linear layer with a single output counts, a scale of shape [C, 1, 1] does not.
        least = 0 if isinstance(kind, nn.Linear | Convolution) else 2
        if parameter.ndim < 2 or sum(size > 1 for size in parameter.shape) < least:
            continue
        unseen = name not in facts.first
        if name in facts.in_product or (unseen and "Norm" not in type(kind).__name__ and parameter.shape[0] > 1):
            heavy.add(name)
    # Token-type and position tables next to a large embedding.
    tables = defaultdict(list)
    for name in heavy:
        if isinstance(modules[owners[name][0]], nn.Embedding):
            tables[owners[name][0].rpartition(".")[0]].append(name)
    for siblings in tables.values():
        largest = max(trainable[name].numel() for name in siblings)
        heavy -= {name for name in siblings if trainable[name].numel() < _LIGHT_EMBEDDING * largest}
    return heavy


def _home(
    facts: StepUse,
    unit: str,
    names: list[str],
    owners: dict,
    keys: list[str],
    layer_of: dict,
    key_of_module: dict,
    time: dict,
) -> str | None:
    """The layer that a light parameter or a stateful module joins."""
    for owner in [unit, *(owner for name in names for owner in owners[name])]:
        if owner in key_of_module:  # the bias of a module whose weight is heavy
            return key_of_module[owner]
    for name in names:
        feeders = [layer_of[feeder] for feeder in sorted(facts.fed_by.get(name, ())) if feeder in layer_of]
        if feeders:
            return feeders[0]
    moments = [facts.first[name] for name in names if name in facts.first]
    moment = _order(min(moments, default=facts.ran.get(unit)))
    used = [key for key in keys if time[key] is not None] or keys
    before = [key for key in used if _order(time[key]) <= moment][-1:]
    after = [key for key in used if _order(time[key]) > moment][:1]
    return max([*before, *after], key=lambda key: _common(unit, key), default=None)


def _names(members: dict, weights: dict, owners: dict) -> dict[str, str]:
    """A layer is called as its module, or as its parameter where the module has several layers."""
    modules = {key: owners[(weights[key] or members[key])[0]][0].partition(".parametrizations.")[0] for key in members}
    taken = list(modules.values())
    return {key: module if module and taken.count(module) == 1 else key for key, module in modules.items()}


def _ordered(facts: StepUse, layers: list[Layer], time: dict) -> list[Layer]:
    """Order the layers and mark those that always train."""

    def start(layer: Layer) -> float:
        return min(_order(time[name]) for name in layer.weights)

    def end(layer: Layer) -> float:
        return max(facts.last.get(name, _order(time[name])) for name in layer.weights)

    layers = sorted(layers, key=start)
    used = [layer for layer in layers if start(layer) < float("inf")]
    ends = [layer for layer in used if facts.heads.intersection(layer.parameters)]
    ends = ends or [max(used or layers, key=end)]
    why = {layer.name: "output" if layer in ends else "" if layer in used else "unused" for layer in layers}
    return [replace(layer, always_trains=why[layer.name]) for layer in layers]
