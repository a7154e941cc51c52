"""Run by torchrun in the tests: fits under FSDP2."""

from ddp_worker import Sized, freezing, plain_net
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from two_processes import run_cases


class Sharded(Sized):
    def configure_model(self):
        for module in self.net:
            if isinstance(module, nn.Linear):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def fit(settings, folder):
    model = Sharded(plain_net(), 64, 8)
    freezer = freezing(settings)
    saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = Trainer(
        callbacks=[freezer, saved] if "sharded" in settings else [freezer],
        strategy=ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=settings.get("sharded", True),
            process_group_backend="gloo",
        ),
        accelerator="cpu",
        devices=2,
        max_epochs=3,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing="sharded" in settings,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, ckpt_path=settings.get("resume"))
    weights = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.state_dict().items()}
    history = freezer.state_dict()["method"].get("history")
    return {
        "weights": weights,
        "frozen": freezer.frozen,
        "events": [(event.layer, event.kind, event.step) for event in freezer.timeline.events],
        "layers": [layer.name for layer in freezer.layers],
        "losses": model.losses,
        "saved": freezer.timeline.saved,
        "windows": history["ring"] if history else None,
        "notes": freezer.timeline.notes,
    }


if __name__ == "__main__":
    run_cases(fit)
