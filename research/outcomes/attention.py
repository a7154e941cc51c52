"""The paper's attention over the window of snapshots, on the question of the later stage, on networks left out.

python -m research.outcomes.attention research/results/moments.jsonl research/results/later_attention.json
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from research.outcomes.branches import Branch
from research.outcomes.later import SCORES, out_of_family, scores, show
from research.outcomes.later_examples import Example, recordings
from smartfrz_lightning.predictor.later import INPUTS
from smartfrz_lightning.predictor.network import AttentionPredictor


class WithAttention(nn.Module):
    """The paper's attention over the window (Eq. 1 to 4), and a line through the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AttentionPredictor(2, hidden=16, features=4, decision_hidden=8, representation="raw")
        self.line = nn.Linear(len(INPUTS), 1)

    def forward(self, window: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        """Log-odds ``[examples]`` from ``[examples, snapshots, 2]``, ``[examples]`` and ``[examples, inputs]``."""
        scores = self.attention(2 * window, lengths)
        return scores[:, 1] - scores[:, 0] + self.line(inputs)[:, 0]


def by_attention(decay: float, steps: int = 600) -> Callable:
    """p(safe) by the attention, trained with a weight decay."""

    def packed(chosen: Sequence[Branch]) -> tuple[Tensor, Tensor, Tensor]:
        lengths = torch.tensor([len(branch.window) for branch in chosen])
        window = pad_sequence([branch.window for branch in chosen], batch_first=True)
        return window, lengths, torch.stack([branch.inputs for branch in chosen])

    def said(train: list[Example], over: list[Branch], test: list[Example]) -> Tensor:
        known = [one.branch for one in train] + over
        torch.manual_seed(1)
        net, safe = WithAttention(), torch.tensor([float(branch.safe) for branch in known])
        optimizer = torch.optim.Adam(net.parameters(), 0.01, weight_decay=decay)
        window = packed(known)
        for _ in range(steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(*window), safe).backward()
            optimizer.step()
        with torch.no_grad():
            return net(*packed([one.branch for one in test])).sigmoid()

    return said


def with_attention(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """The same for the attention, with three weight decays; takes a minute, and differs a little between machines."""
    rows = []
    for decay in (0.0, 0.003, 0.02):
        found = out_of_family(data, over, by_attention(decay))
        rows.append([f"loss, attention over the window, weight decay {decay:g}", *scores(data, found)])
    return rows


def main(recorded: str, write: str) -> None:
    """Train it, print how it does, and write that down.

    Args:
        recorded: File of recorded runs, a line of JSON each.
        write: File of the rows.
    """
    torch.set_num_threads(1)
    rows = with_attention(*recordings(recorded))
    show("the paper's attention, networks left out", ["inputs", *SCORES], rows)
    Path(write).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
