"""What the wrappers of several processes need when it changes what trains: DDP is built anew, FSDP2 reshards."""

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smartfrz_lightning.private.pytorch import bucket_megabytes, communication_hooks, module_hooks


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of DDP, of ``torch.compile`` or of Fabric's wrapper; one that is not wrapped as it is."""
    while True:
        inner = getattr(model, "_original_module", None) or getattr(model, "_orig_mod", None)  # Fabric, torch.compile
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def reshard(model: nn.Module) -> None:
    """Put FSDP2's modules back to their sharded parameters, which are those that freeze. Call it on every rank."""
    for module in model.modules():
        if callable(again := getattr(module, "reshard", None)):
            again()


def rebuild_ddp(model: nn.Module) -> None:
    """Build every DDP wrapper in a model anew, in place, so that what is frozen takes no part in the all-reduce.

    Its settings, its communication hooks and the hooks on it as a module stay. Call it on every rank, between steps.
    """
    # What it was made with, it keeps under the same names.
    names = set(inspect.signature(DistributedDataParallel.__init__).parameters) - {"self", "module", "init_sync"}
    for wrapper in [module for module in model.modules() if isinstance(module, DistributedDataParallel)]:
        settings: dict[str, Any] = {name: getattr(wrapper, name) for name in sorted(names) if hasattr(wrapper, name)}
        if "forward_sync_buffers" in settings:
            settings.pop("broadcast_buffers", None)  # its older name
        if settings.get("device_mesh") is not None:
            del settings["process_group"]  # it comes from the mesh
        settings["bucket_cap_mb"] = bucket_megabytes(wrapper)
        hooks = module_hooks(wrapper)
        communication, training, module = communication_hooks(wrapper), wrapper.training, wrapper.module
        wrapper.__init__(module, init_sync=False, **settings)  # all ranks hold the same weights already
        wrapper.training = training
        for name, kept in hooks.items():
            getattr(wrapper, name).update(kept)
        for hook, state in communication:
            for name in ("error_dict", "p_memory_dict", "q_memory_dict"):  # PowerSGD's, by bucket: those are others
                getattr(state, name, {}).clear()
            wrapper.register_comm_hook(state, hook)
