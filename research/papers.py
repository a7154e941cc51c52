"""Rows in the form of the paper's tables: what it reports (``configs/paper/``), and what is measured here."""

from pathlib import Path
from statistics import fmean

import yaml

from research.runs import Runs, spread

CONFIGS = Path(__file__).parents[1] / "configs" / "paper"
REPORTED = ("", "full", "SmartFRZ", "AutoFreeze", "linear freezing")
MEASURED = ("", "full", "the default", "half by hand", "one after another", "shortened")
CASES = {
    "resnet32_paper_length": "ResNet-32 fine-tuned on CIFAR-100, 7,810 steps",
    "efficientnet_all": "EfficientNet-Lite0 fine-tuned on CIFAR-100, 3,124 steps",
    "efficientnet_all_long": "the same, 4,686 steps",
    "efficientnet_cifar10_all": "EfficientNet-Lite0 fine-tuned on CIFAR-10, 4,686 steps",
    "resnet32_tuned": "ResNet-32 fine-tuned on ten classes, 1,488 steps",
    "film_reviews_long": "MiniLM fine-tuned on film reviews, 1,000 steps",
    "scratch_resnet20": "ResNet-20 on CIFAR-10 from scratch, 1,872 steps",
}


def reported() -> list[list[str]]:
    """A row a config: full training, and points, FLOPs and time of three methods against it."""
    rows = []
    for path in sorted(CONFIGS.glob("table*.yaml")):
        text = path.read_text()
        found = yaml.safe_load(text)["published"]
        full = found["full"]
        cells = []
        for method in ("paper", "auto", "linear"):
            own = found[method]
            flops = f" at {own['tflops'] / full['tflops']:.2f}" if "tflops" in own else ""
            cells.append(f"{own['value'] - full['value']:+.2f}{flops} in {own['seconds'] / full['seconds']:.2f}")
        title = text[2:].partition(";")[0].partition(".")[0].replace("\n", " ")
        rows.append([title, f"{full['value']:.2f}", *cells])
    return rows


def measured(runs: Runs) -> list[list[str]]:
    """The same of published runs, with the shortened run whose FLOPs are next to those of the default."""
    rows = []
    for case, title in CASES.items():
        if not runs.points(case, "smart"):
            continue
        cost = fmean(runs.flops(case, "smart"))
        shorter = {row["run"]: row["flops"] for row in runs.rows if row["case"] == case and row["run"][:5] == "full_"}
        nearest = min(shorter, key=lambda run: abs(shorter[run] - cost), default="")
        nearest = nearest if nearest and abs(shorter[nearest] - cost) < 0.05 else ""
        cells = []
        for method in ("smart", "static", "interval", nearest):
            points, time = runs.points(case, method), runs.time(case, method)
            flops = fmean(runs.flops(case, method)) if points else 0.0
            took = f" in {fmean(time):.2f}" if time else ""
            cells.append(f"{spread(points, 1, True)} at {flops:.2f}{took}" if points else "–")
        rows.append([title, spread([100 * row["value"] for row in runs.full(case).values()], 1), *cells])
    return rows


FIELD = {
    "smart": "the default",
    "static": "half of the layers by hand",
    "interval": "one layer after another (Yuan et al. 2022)",
    "budget": "within a budget (GreenTrainer)",
    "grades": "by changes of gradients (GradES)",
    "autofreeze": "by gradient norms (AutoFreeze)",
    "freezeout": "linear freezing (FreezeOut)",
    "paper": "the paper's predictor, ours at a threshold of 0.9",
}


def field(runs: Runs) -> list[list[str]]:
    """The methods of the field in two cases: points at FLOPs, and points above full training shortened to the same."""
    rows = []
    for method, name in FIELD.items():
        cells = []
        for case in ("efficientnet_tuned", "resnet32_short"):
            points, flops = runs.points(case, method), runs.flops(case, method)
            cells += [f"{spread(points, 1, True)} at {spread(flops)}", spread(runs.above(case, method), 1, True)]
        rows.append([name, *cells])
    return rows
