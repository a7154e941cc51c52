"""What is recorded of a case, on images drawn at random."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("torchvision")

from safetensors.torch import save_file
from small_bert import bert
from smartfrz_lightning.outcomes import texts
from smartfrz_lightning.outcomes.__main__ import main as record
from smartfrz_lightning.outcomes.case import Case, draw_cases
from smartfrz_lightning.outcomes.condense import condense
from smartfrz_lightning.outcomes.condense import main as condense_command
from smartfrz_lightning.outcomes.examples import example, load_examples
from smartfrz_lightning.outcomes.let_go import main as let_go
from smartfrz_lightning.outcomes.look_again import main as look_again
from smartfrz_lightning.outcomes.look_endings import ending
from smartfrz_lightning.outcomes.networks import build
from smartfrz_lightning.outcomes.outcome import Outcome
from smartfrz_lightning.outcomes.record import record_case
from smartfrz_lightning.outcomes.sentences import documentation
from smartfrz_lightning.outcomes.tasks import shifted
from smartfrz_lightning.outcomes.texts import text_task
from torchvision.io import write_png

from smartfrz_lightning.engine import second_look
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS

CONFIGS = Path(__file__).parents[2] / "configs" / "outcomes"
CASE = Case("vgg8", "", "noise", (0, 2), 24, "dark", True, "sgd", 0.02, "cosine", 20, 4, 1, later=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("test", 5)):
        for name in "abc":
            (folder / "noise" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                write_png(pixels, str(folder / "noise" / part / name / f"{number}.png"))
    return folder


def test_a_recorded_case_has_every_way_of_freezing(images, tmp_path):
    outcome = record_case(CASE, images, tmp_path, depths=(0.3, 1.0))
    kinds = [(run.kind, run.depth, run.moment, run.steps) for run in outcome.runs]
    shortened = [("shortened", 0, 0, steps) for steps in (3, 6, 10, 14, 17)]
    frozen = [("frozen", depth, moment, 20) for depth in (2, 7) for moment in (0, 1, 2, 5, 10)]
    assert kinds == [("full", 0, 0, 20), *shortened, *frozen]
    assert outcome.tensors["weights_step"].tolist() == list(range(21))
    assert outcome.tensors["probe_eval_gradients"].shape == (30, 8, 1024)
    # What is held from the start costs less than what freezes later, and nothing but the head is left of the deepest.
    costs = [outcome.cost(run) for run in outcome.runs if run.depth == 7]
    assert costs == sorted(costs) and costs[0] < 0.4
    assert outcome.cost(outcome.runs[6], cached=True) < outcome.cost(outcome.runs[6])
    outcome.save(tmp_path / "one.safetensors")
    again = record_case(CASE, images, tmp_path, depths=(0.3, 1.0))
    loaded = Outcome.load(tmp_path / "one.safetensors")
    assert loaded.runs == again.runs  # the same seed gives the same models
    assert all(tensor.equal(loaded.tensors[name]) for name, tensor in again.tensors.items())


def test_a_front_that_is_held_does_not_move_and_the_probe_leaves_the_head_to_move(images, tmp_path):
    outcome = record_case(CASE, images, tmp_path, depths=(1.0,))
    losses = outcome.tensors["probe_train_loss"]
    assert losses.unique().numel() > 20  # the head learns
    weights = outcome.tensors["weights"]
    assert (weights[1:] != weights[:1]).any(-1).all(0).all()  # in the full run every layer moves


def test_the_command_goes_on_where_it_was_stopped(images, tmp_path):
    group = CASE.asdict() | {"classes": {"from": [0, 2], "count": 2}, "draw": 2, "seed": 3, "steps": 4, "later": False}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"noise": group}))
    command = [sys.executable, "-m", "smartfrz_lightning.outcomes", tmp_path / "cases.yaml", images, tmp_path]
    subprocess.run([*command, tmp_path / "out"], check=True, capture_output=True)
    first, second = sorted((tmp_path / "out").iterdir())
    second.unlink()
    written = first.stat().st_mtime_ns
    record(*map(str, [*command[3:], tmp_path / "out"]), threads=torch.get_num_threads())
    assert sorted((tmp_path / "out").iterdir()) == [first, second] and first.stat().st_mtime_ns == written
    # On another machine, from the condensed cases: what they hold is not recorded again, and they grow.
    known = tmp_path / "cases.jsonl"
    condense([example(Outcome.load(first))], known)
    record(*map(str, [*command[3:], tmp_path / "there"]), known=str(known), threads=torch.get_num_threads())
    assert [path.name for path in (tmp_path / "there").iterdir()] == [second.name]
    condense_command(str(tmp_path / "there"), str(known))
    assert {f"{one.outcome.case.name}.safetensors" for one in load_examples(known)} == {first.name, second.name}
    with pytest.raises(ValueError, match="ends with .jsonl"):
        condense_command(str(tmp_path / "there"), str(tmp_path / "cases.json"))


def test_second_looks_go_on_where_they_were_stopped_and_are_judged(images, tmp_path, capsys):
    group = CASE.asdict() | {"classes": {"from": [0, 2], "count": 2}, "draw": 2, "seed": 3, "steps": 20, "later": False}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"noise": group}))
    where = {"data": str(images), "weights": str(tmp_path), "output": str(tmp_path / "looks.jsonl")}
    look_again(str(tmp_path / "cases.yaml"), **where)
    lines = (tmp_path / "looks.jsonl").read_text().splitlines()
    (tmp_path / "looks.jsonl").write_text(lines[0] + "\n")
    look_again(str(tmp_path / "cases.yaml"), **where)
    assert (tmp_path / "looks.jsonl").read_text().splitlines() == lines and len(lines) == 2
    recorded = [json.loads(line) for line in lines]
    assert [front["depth"] for front in recorded[0]["fronts"]] == [3, 4, 6]
    released = [front for case in recorded for front in case["fronts"] if front["gain"] + front["error"] > 0]
    assert all((front in released) == (front["released"] is not None) for case in recorded for front in case["fronts"])
    assert len(recorded[0]["inputs"]) == 7 and set(recorded[0]["shortened"]) == {"0.5", "0.7"}
    look_again(judge=where["output"])
    assert "1.5" in capsys.readouterr().out  # standard errors
    with pytest.raises(ValueError, match="cases=None: give a file"):
        look_again(**where)


def test_what_letting_go_comes_to_is_recorded_and_judged(images, tmp_path, capsys, monkeypatch):
    group = CASE.asdict() | {"classes": {"from": [0, 2], "count": 2}, "draw": 1, "seed": 3, "steps": 20, "later": False}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"noise": group | {"steps": [20, 24], "draw": 6}}))
    monkeypatch.setattr(second_look, "FORESEEN", 22)
    sure = StartPredictor()
    torch.nn.init.zeros_(sure.score.weight)
    for name, bias in (("sure", 3.0), ("unsure", -3.0)):
        torch.nn.init.constant_(sure.score.bias, bias)
        sure.save(tmp_path / f"{name}.safetensors")
        let_go(
            str(tmp_path / "cases.yaml"),
            str(images),
            str(tmp_path),
            str(tmp_path / f"{name}.jsonl"),
            shortest=20,
            most=3,
            predictor=str(tmp_path / f"{name}.safetensors"),
        )
    sure, unsure = ([json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("sure", "unsure"))
    assert [case["front"] for case in unsure] == [None] * 3 and {case["case"]["steps"] for case in sure} == {20, 24}
    assert all(("look" in case["front"]) == (case["case"]["steps"] > 22) for case in sure)
    assert all(set(case["front"]["let_go"]) == {"0.4", "0.7"} and case["front"]["depth"] == 7 for case in sure)
    let_go(judge=str(tmp_path / "sure.jsonl"))
    shown = capsys.readouterr().out
    assert all(share in shown for share in ("40%", "70%", "100%"))
    with pytest.raises(ValueError, match=r"groups=\['nois'\]: .* has only \['noise'\]"):
        let_go(str(tmp_path / "cases.yaml"), groups=["nois"])


def test_how_a_case_ends_is_what_the_choice_and_the_second_look_make_of_it():
    low, high = ({"depth": depth, "cost": cost} for depth, cost in ((1, 0.8), (2, 0.6)))
    low |= {"accuracy": 79.0, "gain": -0.1, "error": 0.01, "released": None}
    high |= {"accuracy": 70.0, "gain": 0.1, "error": 0.01, "released": 80.5}
    case = {
        "case": {"steps": 200, "weights": "own"},
        "full": 80.0,
        "shortened": {"0.5": 60.0, "0.7": 76.0},
        "fronts": [low, high],
    }
    case["inputs"] = [[0.0] * len(INPUTS), [1.0] * len(INPUTS)]
    predictor = StartPredictor()
    with torch.no_grad():  # sure of the first front by 0.91, of the second by 0.69
        predictor.score.weight.zero_()[0, 0] = -1.5
        predictor.score.bias.fill_(2.3)
    likely, all_of_it = ending(case, predictor, 0.8), ending(case, predictor)
    assert (likely.held, likely.stays, likely.points) == (0.5, 0.5, -1.0)
    assert likely.flops == pytest.approx(0.8 + 20 / 200)  # the copy's steps count
    assert likely.above == pytest.approx(79.0 - (76.0 + 4.0 * 0.2 / 0.3))
    assert (all_of_it.held, all_of_it.stays, all_of_it.points) == (1.0, 0.0, 0.5)
    assert all_of_it.flops == pytest.approx(0.2 * 0.6 + 0.1 + 0.8)  # held, the copy beside, then all of it
    high["gain"] = -0.01  # one standard error
    part = ending(case, predictor)
    assert (part.held, part.stays, part.points) == (1.0, 0.5, -1.0)
    assert part.flops == pytest.approx(0.2 * 0.6 + 0.1 + 0.8 * 0.8)
    assert ending(case, predictor, firm=1.0).points == -10.0


def test_what_is_held_out_is_in_no_case():
    drawn = {
        name: list(draw_cases(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).values()))
        for name in ("images", "texts", "held_out")
    }
    cases = drawn["images"] + drawn["texts"]
    assert len(cases) > 300 and len({case.name for case in cases}) == len(cases)
    for field, held_out in {
        "network": {"resnet32", "tf_efficientnet_lite0"},
        "shift": {"blur", "edges"},
        "optimizer": {"adam"},
        "schedule": {"warmup"},
        "data": {"cola"},
    }.items():
        assert not {getattr(case, field) for case in cases} & held_out
        assert held_out <= {getattr(case, field) for case in drawn["held_out"]}
    names = [case.name for case in drawn["held_out"]]
    assert len(set(names)) == len(names) >= 60


@pytest.fixture
def few_packages(monkeypatch):
    monkeypatch.setattr(texts, "PACKAGES", ("email", "asyncio", "rich"))  # reading all of them takes half a minute
    return texts.PACKAGES


@pytest.mark.parametrize("task", ["topic", "order", "cola"])
def test_text_tasks(task, tmp_path, few_packages):
    pytest.importorskip("transformers")
    bert(tmp_path / "all-MiniLM-L6-v2")
    (tmp_path / "cola").mkdir()
    for part, count in (("train", 40), ("dev", 500)):
        rows = "".join(f"gj04\t{number % 2}\t\tThe bell rang {number}.\n" for number in range(count))
        (tmp_path / "cola" / f"in_domain_{part}.tsv").write_text(rows)
    case = Case("minilm", "", task, (0, 1), 40, "none", False, "adamw", 1e-4, "cosine", 4, 4, 1)
    (ids, labels), (held, held_labels) = text_task(case, tmp_path, tmp_path)
    assert ids.shape[1] == 24 and len(ids) == len(labels) == 40 and len(held) == len(held_labels) == 500
    assert sorted(set(held_labels.tolist())) == [0, 1] and (ids[:, 0] == 2).all()  # [CLS]
    assert text_task(case, tmp_path, tmp_path)[0][0].equal(ids)  # drawn alike again


def test_two_neighbouring_words_change_places(few_packages):
    case = Case("minilm", "", "order", (0, 1), 100, "none", False, "adamw", 1e-4, "cosine", 4, 4, 1)
    known = {sentence for package in few_packages for sentence in documentation(package)}
    rows = texts._order(case, random.Random(0))
    assert all(sentence in known for sentence, label in rows if label == 0)
    changed = [sentence for sentence, label in rows if label == 1]
    assert sum(sentence not in known for sentence in changed) > 0.9 * len(changed) > 200  # two words may be equal


@pytest.mark.parametrize("shift", ["none", "invert", "permute", "dark", "grey", "rotate", "blur", "edges"])
def test_shifted_images_stay_images(shift):
    images = torch.rand(2, 3, 16, 16)
    out = shifted(images, shift)
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    assert out.equal(images) == (shift == "none")


@pytest.mark.parametrize("network", ["resnet20", "vgg8", "mobilenet_v2", "vit"])
def test_pretrained_weights_are_taken_up_but_for_the_head(network, tmp_path):
    torch.manual_seed(0)
    old = build(network, 5)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    new = build(network, 3, tmp_path / "old.safetensors")
    head = list(new.state_dict())[-1]
    assert len(new.state_dict()[head]) == 3
    same = {name for name, tensor in new.state_dict().items() if torch.equal(tensor, old.state_dict()[name])}
    assert set(new.state_dict()) - same == {head, head.replace("bias", "weight")}
