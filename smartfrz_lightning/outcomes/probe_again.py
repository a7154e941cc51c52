r"""What probes of other lengths and samples would have seen of recorded cases.

    python -m smartfrz_lightning.outcomes.probe_again '[configs/outcomes/results/held_out.jsonl]' \
        --output probes.jsonl

Started again, it goes on with the cases that are missing. Needs the extra ``benchmark``.
"""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from smartfrz_lightning.engine.probed_start import LEAST, probe_length
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.fronts import Fronts, load_fronts
from smartfrz_lightning.outcomes.line_by_line import record_lines
from smartfrz_lightning.outcomes.probe import probe_gradients
from smartfrz_lightning.outcomes.setup import set_up
from smartfrz_lightning.predictor.start_inputs import INPUTS, start_inputs

SAMPLES, LENGTHS = (16, 64, 256, 1024, 4096), (2, 5, 10, 20, 30)
"""Sampled weights a layer, in a probe of the usual length; and lengths, with 1,024 of them."""

SEEN = ("front_to_all", "largest_to_all", "front", "front_agrees", "back_agrees")
"""Inputs that come from the gradients."""


def probe_again(fronts: Fronts, data: str | Path, weights: str | Path) -> dict[str, Any]:
    """Probe a case with other samples, and for other lengths.

    Args:
        fronts: The case, with the fronts of which something is known.
        data: Folder of the images or sentences.
        weights: Folder of the weights.

    Returns:
        The case; ``depths`` of the fronts; and ``samples`` and ``lengths``, by their number, with the inputs
        ``[fronts, 5]`` that :data:`SEEN` names.
    """
    case, rows = fronts.case, [depth - 1 for depth in fronts.depths]
    usual = max(LEAST, probe_length(case.steps))
    found: dict[str, Any] = {"case": case.asdict(), "depths": fronts.depths, "samples": {}, "lengths": {}}
    for size in SAMPLES:
        setup = set_up(case, data, weights)  # anew, as a probe moves the head
        body = slice(len(setup.layers) - 1)
        own = WeightSampler(setup.net, setup.layers, size)(torch.empty(len(setup.layers), size))[body]
        steps = max(LENGTHS) if size == 1024 else usual
        probe = probe_gradients(case, setup.net, setup.layers, setup.data, steps, True, size)
        seen = probe["gradients"][:, body]
        found["samples"][str(size)] = _inputs(case, seen[:usual], own, rows)
        if size == 1024:
            found["lengths"] = {str(length): _inputs(case, seen[:length], own, rows) for length in LENGTHS}
    return found


def _inputs(case: Case, gradients: Tensor, weights: Tensor, rows: list[int]) -> list[list[float]]:
    count = gradients.shape[1]  # neither costs nor sizes are asked for
    inputs = start_inputs(gradients, weights, torch.ones(count), torch.ones(count + 1), case.steps)
    columns = [INPUTS.index(name) for name in SEEN]
    return [[float(f"{value:.6g}") for value in inputs[row, columns]] for row in rows]


def main(cases: list[str], data: str = "data", weights: str = "data/weights", output: str = "probes.jsonl") -> None:
    """Record probes.

    Args:
        cases: Condensed files, or files of second looks; of a case that is in several of them, the fronts of the first.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: File of the probes, a line each.
    """
    known = {one.case: one for file in reversed(cases) for one in load_fronts(file)}
    record_lines(list(known), output, lambda case: probe_again(known[case], data, weights))


if __name__ == "__main__":
    auto_cli(main)
