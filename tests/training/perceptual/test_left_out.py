"""Every kind held out once: who is judged on what, the command that does it, and features that runs share."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from contract.bundle import read_bundle
from training.__main__ import main
from training.evaluation.onnx_encoder import bundle_encoder
from training.images import open_images
from training.perceptual.figures import Scores, judgment_scores
from training.perceptual.generated import GeneratorConfig, generate
from training.perceptual.left_out import LeftOut, kinds_to_leave_out, left_out_figures, pooled, without
from training.perceptual.run import through_bundle
from training.perceptual.trials import Trials


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 small photos of smooth colours."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(30):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{seed:02d}.png")
    return folder


def trials_of(photos: Path, **changes: object) -> Trials:
    config = {"longest": 40, "per_image": 9, "kinds": ("crop", "blur", "colour")} | changes
    return generate(open_images(str(photos)), "photos", GeneratorConfig(**config))  # type: ignore[arg-type]


def knowing(trials: Trials, kinds: tuple[str, ...]) -> Scores:
    """What embeddings earn that are right in the trials of some kinds, and wrong in all others."""
    angle = np.zeros(len(trials.images))
    right = np.isin(trials.kind, kinds)
    near = np.where((trials.votes == 1) == right, trials.index[:, 2], trials.index[:, 1])
    far = np.where((trials.votes == 1) == right, trials.index[:, 1], trials.index[:, 2])
    angle[near], angle[far] = 0.1, 1.0
    return judgment_scores(trials, np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32))


def test_a_kind_is_judged_by_the_training_without_it_and_the_taught_ones_by_the_others(photos: Path) -> None:
    trials = trials_of(photos).of_split("test")
    after = {
        "crop": knowing(trials, ("crop",)),  # right on what it has not seen, and on nothing else
        "blur": knowing(trials, ("crop", "colour")),
        "colour": knowing(trials, ("crop", "blur")),
    }
    before = knowing(trials, ())
    trainings = {kind: (knowing(trials, ("blur",)), score) for kind, score in after.items()}
    figures = left_out_figures(LeftOut.of(trials, before, trainings), repetitions=20, seed=0)
    assert {name: figures["after"][name]["value"] for name in after} == {"crop": 1.0, "blur": 0.0, "colour": 0.0}
    crops = (trials.kind == "crop").mean()
    assert figures["after - before"]["kinds held out"]["value"] == pytest.approx(crops)
    # Crops: both others are right. Blur: one of two. Colour: one of two.
    assert figures["after"]["kinds that training saw"]["value"] == pytest.approx(crops + (1 - crops) / 2)
    assert figures["before"]["kinds held out"]["value"] == 0.0
    # What needs no training is told apart from what training gives.
    assert {name: figures["untrained"][name]["value"] for name in after} == {"crop": 0.0, "blur": 1.0, "colour": 0.0}
    assert figures["after - untrained"]["blur"]["value"] == -1.0
    same = LeftOut.of(trials, before, {kind: (before, score) for kind, score in after.items()})
    assert set(left_out_figures(same, repetitions=20, seed=0)) == {"before", "after", "after - before"}


def test_runs_are_pooled_by_judgment_and_an_image_that_both_reported_on_is_drawn_whole(tmp_path: Path) -> None:
    def run(unit: list[int], unseen: list[float]) -> LeftOut:
        n = len(unit)
        return LeftOut(
            "photos", np.array(["crop"] * n), np.array(unit), np.zeros(n), np.zeros(n), np.array(unseen), np.ones(n)
        )

    one, two = run([0, 1, 2], [1.0, 0.0, 0.0]), run([0], [1.0])
    one.write(tmp_path / "left-out.npz")
    figures = left_out_figures(
        pooled({"one": LeftOut.read(tmp_path / "left-out.npz"), "two": two}), repetitions=20, seed=0
    )
    assert figures["after"]["kinds held out"]["value"] == 0.5
    assert figures["after"]["crop"]["n"] == 3  # photos, not judgments
    np.savez(tmp_path / "other.npz", kind=one.kind)
    with pytest.raises(ValueError, match=r"other.npz holds \['kind'\]; expected images, kind, unit, before, untrained"):
        LeftOut.read(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="third: over other images than one; pool runs over the same"):
        pooled({"one": one, "two": two, "third": replace(two, images="others")})


def test_a_training_without_a_kind_sees_none_of_it_and_all_of_it_is_reported(photos: Path) -> None:
    trials = trials_of(photos)
    left = without(trials, "blur")
    for split in ("train", "val"):
        assert set(left.of_split(split).kind.tolist()) == {"crop", "colour"}
    assert len(left.of_split("test")) == len(trials.of_split("test"))
    assert len(left.of_split("train")) == (trials.of_split("train").kind != "blur").sum()


def test_related_kinds_are_held_out_together_and_judged_as_what_they_are(photos: Path) -> None:
    trials = trials_of(photos, kinds=("crop", "shift", "blur"), per_image=20)
    assert kinds_to_leave_out(trials) == ["blur", "crop"]
    assert set(without(trials, "crop").of_split("train").kind.tolist()) == {"blur"}
    test = trials.of_split("test")
    nothing = knowing(test, ())
    trainings = {"crop": (nothing, knowing(test, ("shift",))), "blur": (nothing, knowing(test, ("crop",)))}
    after = left_out_figures(LeftOut.of(test, nothing, trainings), repetitions=20, seed=0)["after"]
    assert {name: after[name]["value"] for name in ("crop", "shift", "blur")} == {"crop": 0, "shift": 1, "blur": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("crop",)}, "has the one kind 'crop'"),
        ({"kinds": ("crop", "shift")}, "has the related kinds crop, shift; leaving it out"),
        ({"held_out": ("blur",)}, r"the split 'train' has no trial of \['blur'\]; expected every kind"),
    ],
)
def test_what_cannot_be_left_out_is_refused(photos: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kinds_to_leave_out(trials_of(photos, **change))


def test_the_command_leaves_each_kind_out_and_computes_shared_features_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "--branches timm:test_vit --random-weights --side 32 --longest 40 --steps 2 --checkpoint-every 1 --batch 8"
    more = f"--hidden 8 --per-image 9 --kinds crop blur --lora-rank none --features {tmp_path / 'kept'}"
    words = ["perceptual", "perceptual_efficientnet", f"generated:{photos}", *given.split(), *more.split()]
    main([*words, "--out", str(tmp_path / "one"), "--leave-one-kind-out"])
    assert "each kind by the training that has not seen it" in capsys.readouterr().out
    figures = json.loads((tmp_path / "one/figures.json").read_text())
    assert set(figures["left out"]["after"]) == {"kinds held out", "kinds that training saw", "crop", "blur"}
    main(["left-out", str(tmp_path / "one"), "--bootstrap", "1000"])
    of = figures["left out"]["after"]["kinds held out"]
    assert f"after              kinds held out           {of['value']:.3f} [{of['low']:.3f}" in capsys.readouterr().out
    for folder in ("one", "one/without-crop", "one/without-blur"):
        assert (tmp_path / folder / "weights.safetensors").is_file()
    monkeypatch.setattr("training.embed._compute", None)  # whoever computes features again fails
    main([*words, "--out", str(tmp_path / "two"), "--held-out", "--hidden", "4"])
    with pytest.raises(TypeError, match="not callable"):  # another draw has other images
        main([*words, "--out", str(tmp_path / "four"), "--draw", "1"])
    with pytest.raises(SystemExit, match="bundle cannot be trained: the recipe has no head"):
        main([*words, "--out", str(tmp_path / "three"), "--hidden", "none", "--graph", "bundle"])
    with pytest.raises(SystemExit, match="--held-out crop and --leave-one-kind-out exclude each other"):
        main([*words, "--out", str(tmp_path / "three"), "--leave-one-kind-out", "--held-out", "crop"])


class Otherwise(nn.Module):
    """A network whose first value is another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        z: Tensor = self.inner(pixels).clone()
        z[:, 0] += 1.0
        return z


def test_a_bundle_stands_for_the_network_that_it_agrees_with_and_for_no_other(photos: Path, toy_bundle: Path) -> None:
    images, graph = open_images(str(photos)), str(toy_bundle)
    network = bundle_encoder(read_bundle(toy_bundle), "aligned")
    assert through_bundle(f"{graph}@aligned", network, images).output == "aligned"
    with pytest.raises(ValueError, match=r"of another network: on .*00\.png the cosine"):
        through_bundle(graph, replace(network, module=Otherwise(network.module)), images)
    with pytest.raises(ValueError, match=f"the network {network.size + 1} of"):
        through_bundle(graph, replace(network, size=network.size + 1), images)
    with pytest.raises(ValueError, match=r"has the spaces \['aligned', 'base'\]; there is no 'none'"):
        through_bundle(f"{graph}@none", network, images)
