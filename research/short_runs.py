"""Tables of what was tried at the start of short runs."""

from research.markdown import markdown
from research.runs import Runs, spread

TWO_THIRDS = (
    (
        ("two_thirds_a", "two_thirds_b"),
        "smart",
        "",
        "ResNet-20 (CIFAR-10), ten classes of CIFAR-100, two sets of classes",
    ),
    (("two_thirds_a", "two_thirds_b"), "cut", "", "the same, what is not safe after two fifths trains again"),
    (("resnet32_short",), "smart", "", "held out: ResNet-32 (CIFAR-10), ten classes of CIFAR-100"),
    (("resnet32_inverted_short",), "smart", "fit to 21 runs", "the same network, inverted images"),
    (("efficientnet_short",), "smart", "", "EfficientNet-Lite0 (ImageNet), ten classes of CIFAR-100"),
    (("efficientnet_tuned",), "smart", "", "the same, the recipe that is best for full training"),
    (("efficientnet_tuned",), "smart_tuned", "", "the same, a recipe of the default's own"),
)
"""Cases of 250 steps that were run with a prefix of any depth too: method, and variant of those of two thirds."""


def two_thirds(runs: Runs) -> str:
    """Short runs with a prefix of any depth, and of two thirds of the layers at most."""
    lines = []
    for cases, method, held_to, name in TWO_THIRDS:
        cells, count = [], 0
        for variant in ("any depth", held_to):
            points = [one for case in cases for one in runs.points(case, method, variant=variant)]
            flops = [one for case in cases for one in runs.flops(case, method, variant=variant)]
            cells.append(f"{spread(points, 1, True)} at {spread(flops)}" if points else "–")
            count = max(count, len(points))
        lines.append([name, str(count), *cells])
    return markdown(["", "runs", "any depth", "two thirds at most"], lines)


def one_bound(runs: Runs) -> str:
    """Runs in which a trial of two bounds decided otherwise than that of one."""
    lines = []
    for old in (row for row in runs.rows if row["variant"] == "two bounds of the trial"):
        now = next(row for row in runs.of(old["case"], old["run"], variant="any depth") if row["seed"] == old["seed"])
        cells = [f"{100 * row['value']:.1f} % at {row['flops']:.2f}" for row in (old, now)]
        lines.append([f"`{old['case']}`", f"`{old['run']}`", str(old["seed"]), *cells])
    return markdown(["case", "method", "seed", "two bounds", "one"], lines)
