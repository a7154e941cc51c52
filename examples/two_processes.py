"""DDP in two processes on one machine's CPU; on GPUs, leave accelerator out and give their number.

python examples/two_processes.py
"""

import argparse

from lightning import Trainer, seed_everything
from own_cli import Digits, SmallNetwork

from smartfrz_lightning import StaticFreezeCallback


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()

    seed_everything(1)
    trainer = Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        callbacks=[StaticFreezeCallback(layers=1)],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(SmallNetwork(), datamodule=Digits())
    if trainer.is_global_zero:
        print(f"accuracy {trainer.callback_metrics['val_accuracy']:.1%}")


if __name__ == "__main__":
    main()
