"""The student's loss, its pull back to the start, exact resume, and the same steps in two processes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from training.distill import DistillConfig, decay_to_start, distill, divergence, learning_rate
from training.feeds import in_batch

N, SIDE, WIDTH = 40, 4, 6


def config_of(**changes: Any) -> DistillConfig:
    constants: dict[str, Any] = {
        "loss": "kl",
        "temperature": 1.0,
        "teacher_temperature": 1.0,
        "steps": 12,
        "learning_rate": 0.01,
        "warmup": 2,
        "decay": 0.5,
        "regression": 0.3,
        "precision": "fp32",
        "checkpoint_every": 4,
        "seed": 0,
    }
    return DistillConfig(**(constants | changes))


class Student(nn.Module):
    """Pixels / 255, flattened, through one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3 * SIDE * SIDE, WIDTH)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(pixels.flatten(1).float() / 255)
        return out


def trained(out: Path, **changes: Any) -> tuple[nn.Module, list[dict[str, float]]]:
    """A student of random photos and a random teacher after the configured steps, and its log."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8))
    teacher = rng.normal(size=(N, 5)).astype(np.float32)
    feed = in_batch(np.arange(N), np.arange(N) % 4, batch=9, per_group=3, triplets=200, sampling="border", seed=3)
    student = distill(Student(), lambda rows: pixels[torch.from_numpy(rows)], teacher, feed, config_of(**changes), out)
    return student, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_loss_is_zero_where_the_student_judges_as_its_teacher() -> None:
    sims = torch.randn(50, 3, dtype=torch.float64)
    target = torch.log_softmax(sims / 7, -1)
    for loss in ("kl", "jsd"):
        assert divergence(sims, target, loss=loss, temperature=7).item() == pytest.approx(0, abs=1e-12)


def test_kl_and_jsd_are_those_worked_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    middle = (p + q) / 2
    kl = float((p * np.log(p / q)).sum())
    jsd = float((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2
    sims, target = torch.from_numpy(np.log(q))[None] * 100, torch.from_numpy(np.log(p))[None]
    assert divergence(sims, target, loss="kl", temperature=100).item() == pytest.approx(kl)
    assert divergence(sims, target, loss="jsd", temperature=100).item() == pytest.approx(jsd)


def test_jsd_stays_finite_where_a_probability_underflows() -> None:
    sims = torch.tensor([[0.0, -1e6, -1e6]], requires_grad=True)
    loss = divergence(sims, torch.log_softmax(torch.tensor([[-1e6, 0.0, -1e6]]), -1), loss="jsd", temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.isfinite(sims.grad).all()  # type: ignore[arg-type]


def test_decay_pulls_towards_the_start_by_its_share() -> None:
    now, then = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])
    decay_to_start([now], [then], 0.25)
    assert now.tolist() == [3.0, 0.5]


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(config_of(steps=100, warmup=10), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == rates[9] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-5


@pytest.mark.parametrize("loss", ["kl", "jsd"])
def test_a_student_learns_its_teachers_judgments(tmp_path: Path, loss: str) -> None:
    _, log = trained(tmp_path, loss=loss, steps=150, decay=0.0, regression=0.0)
    first, last = (np.mean([line["divergence"] for line in part]) for part in (log[:10], log[-10:]))
    assert last < 0.85 * first


def test_strong_decay_keeps_the_student_where_it_started(tmp_path: Path) -> None:
    moved = []
    for decay in (0.0, 80.0):
        student, _ = trained(tmp_path / str(decay), decay=decay, steps=40)
        moved.append((student.layer.weight - Student().layer.weight).norm().item())  # type: ignore[operator, union-attr]
    assert moved[1] < 0.5 * moved[0]


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, whole_log = trained(tmp_path / "whole")
    steps = iter(range(10))
    monkeypatch.setattr("training.distill.learning_rate", lambda config, step: _killed_at(6, next(steps), config, step))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed")
    monkeypatch.undo()
    resumed, log = trained(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    without_speed = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in x] for x in (whole_log, log)
    ]
    assert without_speed[0] == without_speed[1]


def _killed_at(at: int, call: int, config: DistillConfig, step: int) -> float:
    if call == at:
        raise KeyboardInterrupt
    return learning_rate(config, step)


def test_another_configuration_is_refused_for_a_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        trained(tmp_path, decay=0.1)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step \d+"):
        trained(tmp_path, learning_rate=1e25, steps=5, warmup=1)


def test_a_teacher_that_is_not_finite_is_named(tmp_path: Path) -> None:
    teacher = np.zeros((3, 2), np.float32)
    teacher[1, 0] = np.nan
    with pytest.raises(ValueError, match="image 1"):
        distill(Student(), lambda rows: torch.zeros(0), teacher, lambda step: None, config_of(), tmp_path)  # type: ignore[arg-type, return-value]


def _in_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    student, _ = trained(Path(folder) / "two") if rank == 0 else (trained(Path(folder) / "other")[0], [])
    if rank == 0:
        torch.save(student.state_dict(), f"{folder}/two.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    one, log = trained(tmp_path / "one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/log.jsonl").touch()
    mp.spawn(_in_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert all(torch.allclose(one.state_dict()[name], two[name], atol=1e-5) for name in two)
    both = [json.loads(line)["divergence"] for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(both, [line["divergence"] for line in log], rtol=1e-4)
