"""The student's loss, its pull back to the start, exact resume, and the same steps in two processes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from contract.manifest import BaseModel
from contract.pixels import PixelSpec
from training.distill import _augment, distill
from training.encoders import Encoder
from training.feeds import Step, in_batch, labelled_feed
from training.student_model import Adaptation
from training.trainer import DistillConfig, decay_towards, divergence, learning_rate

N, SIDE, WIDTH = 40, 4, 6


def config_of(**changes: Any) -> DistillConfig:
    constants: dict[str, Any] = {
        "temperature": 1.0,
        "steps": 12,
        "learning_rate": 0.01,
        "warmup": 2,
        "decay": 0.5,
        "regression": 0.3,
        "precision": "fp32",
        "checkpoint_every": 4,
    }
    return DistillConfig(**(constants | changes))


class Block(nn.Module):
    """A residual block with the layer name that adapters look for."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.qkv(x))


class Student(nn.Module):
    """Pixels / 255, flattened, through one layer and two blocks; `unused` is in no way to the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3 * SIDE * SIDE, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.unused = nn.Linear(2, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.layer(pixels.flatten(1).float() / 255)
        for block in self.blocks:
            x = block(x)
        return x


def student() -> Encoder:
    pixels = PixelSpec(height=SIDE, width=SIDE, resize="squash", dtype="uint8", mean=(0.5,) * 3, std=(0.5,) * 3)
    return Encoder(Student(), pixels, WIDTH, BaseModel(name="toy", source="test", license="none"))


def trained(out: Path, *, triplets: int = 200, **changes: Any) -> tuple[Any, list[dict[str, float]]]:
    """A student of random photos and a random teacher after the configured steps, and its log."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8))
    teacher = rng.normal(size=(N, 5)).astype(np.float32)
    label = np.arange(N) % 4
    feed = in_batch(np.arange(N), label, batch=9, per_group=3, triplets=triplets, sampling="border", seed=3)
    encoder = student()
    load, inputs = lambda rows: pixels[torch.from_numpy(rows)], {"triplets": triplets}
    distill(encoder, load, teacher, feed, config_of(**changes), out, inputs=inputs)
    return encoder.module, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


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


def test_a_teachers_neighbours_are_kept_where_its_judgments_are_not_learned(tmp_path: Path) -> None:
    """Cosines say what the judgments, softmaxes of dot products at a huge temperature, hardly teach."""
    silent = {"temperature": 1e6, "regression": 0.0, "decay": 0.0, "steps": 60}
    logs = [trained(tmp_path / f"{weight}", neighbours=weight, **silent)[1] for weight in (1e-9, 1.0)]
    assert logs[1][-1]["neighbours"] < logs[0][-1]["neighbours"] - 0.02
    assert logs[0][0]["neighbours"] == pytest.approx(logs[1][0]["neighbours"])


def test_decay_pulls_towards_the_start_by_its_share() -> None:
    now, then = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])
    decay_towards([now], [then], 0.25)
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


@pytest.mark.parametrize("decay_to", ["start", "zero"])
def test_strong_decay_keeps_the_student_at_its_start_or_near_zero(tmp_path: Path, decay_to: str) -> None:
    away = []
    for decay in (0.0, 80.0):
        module, _ = trained(tmp_path / str(decay), decay=decay, decay_to=decay_to, steps=40)
        start = Student().layer.weight if decay_to == "start" else 0.0
        away.append((module.layer.weight - start).norm().item())
    assert away[1] < 0.5 * away[0]


@pytest.mark.parametrize("adaptation", [Adaptation(), Adaptation(lora_rank=2, lora_targets=("qkv",), lora_dropout=0.5)])
def test_a_microbatch_changes_memory_and_not_the_step(tmp_path: Path, adaptation: Adaptation) -> None:
    """Without dropout: what is dropped is drawn a part at a time."""
    quiet = replace(adaptation, lora_dropout=0.0)
    whole, log = trained(tmp_path / "whole", adaptation=quiet)
    parts, parts_log = trained(tmp_path / "parts", adaptation=quiet, microbatch=2)
    np.testing.assert_allclose([x["divergence"] for x in parts_log], [x["divergence"] for x in log], rtol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    dropped = [trained(tmp_path / f"dropped-{i}", adaptation=adaptation, microbatch=2)[1] for i in range(2)]
    assert [x["divergence"] for x in dropped[0]] == [x["divergence"] for x in dropped[1]]


def test_lora_trains_adapters_alone_and_writes_them_merged(tmp_path: Path) -> None:
    adaptation = Adaptation(lora_rank=2, lora_targets=("qkv",))
    module, _ = trained(tmp_path, adaptation=adaptation, decay=0.0)
    start = Student()
    assert set(module.state_dict()) == set(start.state_dict())
    assert torch.equal(module.layer.weight, start.layer.weight)
    moved = [(a.qkv.weight - b.qkv.weight) for a, b in zip(module.blocks, start.blocks, strict=True)]
    assert all(torch.linalg.matrix_rank(m.detach(), atol=1e-5) == 2 for m in moved)


def test_frozen_blocks_and_what_comes_before_them_stay(tmp_path: Path) -> None:
    module, _ = trained(tmp_path, adaptation=Adaptation(frozen_blocks=1))
    start = Student()
    assert torch.equal(module.layer.weight, start.layer.weight)
    assert torch.equal(module.blocks[0].qkv.weight, start.blocks[0].qkv.weight)
    assert not torch.equal(module.blocks[1].qkv.weight, start.blocks[1].qkv.weight)
    with pytest.raises(ValueError, match="2 transformer blocks; 3"):
        trained(tmp_path / "more", adaptation=Adaptation(frozen_blocks=3))


def test_a_triplet_head_is_judged_and_written_beside_the_encoder(tmp_path: Path) -> None:
    module, log = trained(tmp_path, adaptation=Adaptation(triplet_head=3), regression=0.0, decay=0.0, steps=150)
    head = load_file(tmp_path / "triplet_head.safetensors")
    assert head["weight"].shape == (3, WIDTH)
    assert set(module.state_dict()) == set(Student().state_dict())
    assert np.mean([x["divergence"] for x in log[-10:]]) < 0.85 * np.mean([x["divergence"] for x in log[:10]])


def test_labelled_triplets_teach_without_vectors_and_regression_then_asks_for_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8))
    rows, similarities = rng.permuted(np.tile(np.arange(N), (200, 1)), axis=1)[:, :3], np.tile([9.0, 0, 0], (200, 1))
    feed = labelled_feed(rows, similarities.astype(np.float32), batch=50, seed=0)

    def train(**changes: Any) -> None:
        out = tmp_path / "out"
        distill(student(), lambda r: pixels[torch.from_numpy(r)], None, feed, config_of(**changes), out, inputs={})

    with pytest.raises(ValueError, match="regression needs"):
        train()
    train(regression=0.0, decay=0.0, steps=100)
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert log[-1]["divergence"] < 0.9 * log[0]["divergence"]


def test_the_regression_can_aim_at_other_vectors_than_the_judgments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8))
    feed = in_batch(np.arange(N), np.arange(N) % 4, batch=9, per_group=3, triplets=50, sampling="random", seed=3)
    last = []
    for name in ("their own", "one for all"):
        targets = None if name == "their own" else np.ones((N, 2), np.float32)
        teacher = rng.normal(size=(N, 5)).astype(np.float32)
        out, load = tmp_path / name, lambda r: pixels[torch.from_numpy(r)]
        distill(student(), load, teacher, feed, config_of(steps=60), out, inputs={}, targets=targets)
        last.append(json.loads((out / "log.jsonl").read_text().splitlines()[-1])["regression"])
    assert last[1] < 0.1 < last[0]


@pytest.mark.parametrize("how", ["flip", "crop"])
def test_augmentation_is_the_same_for_the_same_step_and_another_for_another(how: str) -> None:
    pixels = torch.randint(0, 256, (8, 3, 12, 10), dtype=torch.uint8)
    first, again, other = (_augment(pixels, how, [np.random.default_rng([s, i]) for i in range(8)]) for s in (0, 0, 1))
    assert torch.equal(first, again) and first.shape == pixels.shape and first.dtype == torch.uint8
    assert not torch.equal(first, other) and not torch.equal(first, pixels)
    if how == "flip":
        assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(first, pixels, strict=True))


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    whole, whole_log = trained(tmp_path / "whole")
    _stopped(tmp_path / "killed")
    resumed, log = trained(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    without_speed = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in x] for x in (whole_log, log)
    ]
    assert without_speed[0] == without_speed[1]


def _stopped(out: Path, **changes: Any) -> None:
    """Train until an interrupt in the seventh step, two after a checkpoint."""

    def rate(config: DistillConfig, step: int) -> float:
        if step == 6:
            raise KeyboardInterrupt
        return learning_rate(config, step)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("training.trainer.learning_rate", rate)
        trained(out, **changes)
    assert torch.load(out / "checkpoint.pt")["step"] == 4


def test_another_configuration_is_refused_for_a_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match="another config"):
        trained(tmp_path, decay=0.1)
    with pytest.raises(ValueError, match=r"another inputs; .* differs in inputs\.triplets\."):
        trained(tmp_path, triplets=100)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step \d+"):
        trained(tmp_path, learning_rate=1e25, steps=5, warmup=1)


def test_a_teacher_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows, teacher = np.arange(3), np.zeros((3, 2), np.float32)
    teacher[1, 0] = np.nan
    load, feed = lambda rows: torch.zeros(0), lambda step: Step(rows, rows)
    with pytest.raises(ValueError, match="image 1"):
        distill(student(), load, teacher, feed, config_of(), tmp_path, inputs={})


def _in_process(rank: int, folder: str, parallel: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        trained(Path(folder) / "two", parallel=parallel, microbatch=2)
        _stopped(Path(folder) / "resumed", parallel=parallel, microbatch=2)
        trained(Path(folder) / "resumed", parallel=parallel, microbatch=2)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one_and_go_on_where_they_were_stopped(tmp_path: Path, parallel: str) -> None:
    one, log = trained(tmp_path / "one")
    mp.spawn(_in_process, (str(tmp_path), parallel), nprocs=2)  # type: ignore[no-untyped-call]
    two, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "resumed"))
    assert all(torch.equal(two[name], resumed[name]) for name in two)
    assert all(torch.allclose(one.state_dict()[name], two[name], atol=1e-5) for name in two)
    both = [json.loads(line)["divergence"] for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(both, [line["divergence"] for line in log], rtol=1e-4)


def test_weights_that_end_not_finite_are_no_result(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"after 1 steps .* is not finite; lower the learning rate"):
        trained(tmp_path, steps=1, warmup=0, learning_rate=1e38)
    assert not (tmp_path / "weights.safetensors").exists()
