"""Encoders by name: each feature point is the library's own, and so are the pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from contract.pixels import load_pixels
from export.graph import OUTPUTS, AlignedModel, export_graph
from tests.training import tiny
from training.align import Transform
from training.encoders import Encoder, features_of, weights_digest
from training.models import MODELS, build
from training.timm_models import timm_pixels

PHOTOS = sorted((Path(__file__).parents[2] / "docs/photos").glob("*.jpg"))
SMALL_CLIP = "timm:vit_xsmall_patch16_clip_224"


def random_pixels(encoder: Encoder, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *encoder.pixels.shape), dtype=torch.uint8, generator=generator)


def normalized(encoder: Encoder, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.pixels.mean, encoder.pixels.std))
    return (pixels.float() / 255 - mean) / std


def tokens_mean(model: Any, x: Tensor) -> Tensor:
    return model.forward_features(x)[:, model.num_prefix_tokens :].mean(1)


OWN: dict[tuple[str, str | None], Callable[[Any, Tensor], Tensor]] = {
    ("timm:test_vit", "cls"): lambda m, x: m.forward_features(x)[:, 0],
    ("timm:test_vit", None): lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    ("timm:test_vit", "pooled"): tokens_mean,
    ("timm:test_vit3", "map"): lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    ("timm:test_vit3", "pooled"): tokens_mean,
    ("timm:test_vit4", "pooled"): lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    ("timm:test_resnet", None): lambda m, x: m.forward_features(x).mean((2, 3)),
    ("timm:test_convnext", "pooled"): lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    (SMALL_CLIP, "embedding"): lambda m, x: m(x),
    (SMALL_CLIP, "cls"): lambda m, x: m.forward_features(x)[:, 0],
}


@pytest.mark.parametrize(("name", "output"), OWN, ids=str)
def test_a_feature_point_is_what_timm_itself_computes(name: str, output: Any) -> None:
    encoder = build(name, output=output, pretrained=False)
    options = {} if output == "embedding" else {"num_classes": 0}
    reference = timm.create_model(name.removeprefix("timm:"), **options).eval()
    reference.load_state_dict(encoder.module.backbone.state_dict())
    pixels = random_pixels(encoder)
    with torch.inference_mode():
        expected = OWN[name, output](reference, normalized(encoder, pixels))
    got = features_of(encoder, pixels)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert got.shape == (2, encoder.size)
    assert (got[0] - got[1]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture of two small towers, known to open_clip."""
    return tiny.tiny_clip(tmp_path_factory.mktemp("configs")).removeprefix("open_clip:")


def test_open_clip_gives_what_encode_image_gives(tiny_clip: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = open_clip.create_model(tiny_clip).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "whole.pt")
    safetensors.torch.save_file(model.visual.state_dict(), tmp_path / "tower.safetensors")
    for file in ("whole.pt", "tower.safetensors"):
        encoder = build(f"open_clip:{tiny_clip}", checkpoint=tmp_path / file)
        pixels = random_pixels(encoder)
        with torch.inference_mode():
            expected = model.encode_image(normalized(encoder, pixels), normalize=False)
        torch.testing.assert_close(features_of(encoder, pixels), expected, rtol=1e-4, atol=1e-4)
        assert encoder.size == 24
        assert not [name for name, _ in encoder.module.named_modules() if "text" in name]


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.stem)
@pytest.mark.parametrize("name", ["vit_base_patch16_224.dino", "resnet50.a1_in1k", "vit_small_patch14_dinov2"])
def test_pixels_are_those_of_timms_own_transform_bit_for_bit(name: str, photo: Path) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    spec = timm_pixels(model, 224, "own")
    config = resolve_model_data_config(model) | {"input_size": (3, 224, 224)}
    theirs = create_transform(**config, normalize=False)(Image.open(photo).convert("RGB"))
    ours = load_pixels(photo.read_bytes(), spec)
    assert np.array_equal(ours, theirs.numpy())
    assert (spec.mean, spec.std) == (config["mean"], config["std"])


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clips_own_transform(tiny_clip: str, mode: str) -> None:
    from training.open_clip_models import open_clip_pixels

    model = open_clip.create_model(tiny_clip, force_preprocess_cfg={"resize_mode": mode})
    config = open_clip.get_model_preprocess_cfg(model)
    spec = open_clip_pixels(config, "own")
    theirs = open_clip.image_transform(32, is_train=False, mean=spec.mean, std=spec.std, resize_mode=mode)
    for photo in PHOTOS:
        ours = torch.from_numpy(load_pixels(photo.read_bytes(), spec)).float() / 255
        ours = (ours - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
        torch.testing.assert_close(ours, theirs(Image.open(photo)), rtol=0, atol=1e-6)


def test_framings_that_a_spec_cannot_say_are_refused_unless_squashed(tiny_clip: str) -> None:
    from training.open_clip_models import open_clip_pixels

    padded = open_clip.get_model_preprocess_cfg(
        open_clip.create_model(tiny_clip, force_preprocess_cfg={"resize_mode": "longest"})
    )
    with pytest.raises(ValueError, match=r"resize_mode 'longest'.*choose --framing squash"):
        open_clip_pixels(padded, "own")
    assert open_clip_pixels(padded, "squash").resize == "squash"
    model = timm.create_model("test_vit", pretrained_cfg_overlay={"crop_mode": "border"})
    with pytest.raises(ValueError, match=r"crop_mode 'border'.*choose --framing squash"):
        timm_pixels(model, None, "own")
    assert timm_pixels(model, None, "squash").resize == "squash"


NAMED = [name for name, row in MODELS.items() if isinstance(row.source, str)]


@pytest.mark.parametrize("name", NAMED)
def test_a_row_of_the_table_is_what_it_says(name: str) -> None:
    row = MODELS[name]
    with torch.device("meta"):  # shapes without weights: the largest has 428 million
        encoder = build(name, pretrained=False)
        got = encoder.module(torch.zeros((2, *encoder.pixels.shape), dtype=torch.uint8))
    assert got.shape == (2, row.size) and encoder.size == row.size
    assert encoder.module.output == row.output
    assert encoder.pixels.shape == (3, row.side, row.side)
    assert encoder.pixels.resize == "squash"
    license_ = encoder.module.backbone.pretrained_cfg["license"]
    assert not row.pretrained or name == "clip-b" or license_.lower() == row.license.lower()


def test_a_wanted_side_resamples_the_position_embedding_of_a_checkpoint(tmp_path: Path) -> None:
    trained = build("timm:test_vit", pretrained=False, seed=1)
    torch.save(trained.module.backbone.state_dict(), tmp_path / "vit.pth")
    larger = build("timm:test_vit", checkpoint=tmp_path / "vit.pth", side=224)
    assert larger.pixels.shape == (3, 224, 224)
    assert larger.pixels.short_side == 235  # timm's crop_pct of 0.95
    old, new = (encoder.module.backbone for encoder in (trained, larger))
    assert new.pos_embed.shape[1] > old.pos_embed.shape[1]
    assert torch.equal(old.blocks[0].attn.qkv.weight, new.blocks[0].attn.qkv.weight)
    assert features_of(larger, random_pixels(larger)).shape == (2, 64)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, ""), ("state_dict", ""), ("model", "module."), ("state_dict", "backbone."), (None, "backbone.")],
)
def test_checkpoints_are_read_bare_wrapped_and_as_this_package_writes_them(
    tmp_path: Path, key: str | None, prefix: str
) -> None:
    trained = build("timm:test_vit", pretrained=False, seed=1)
    state = {prefix + name: value for name, value in trained.module.backbone.state_dict().items()}
    state |= {f"{prefix}head.weight": torch.zeros(1000, 64), f"{prefix}head.bias": torch.zeros(1000)}
    torch.save(state if key is None else {key: state, "step": 3}, tmp_path / "a.pt")
    loaded = build("timm:test_vit", checkpoint=tmp_path / "a.pt")
    assert weights_digest(loaded.module) == weights_digest(trained.module)
    assert loaded.base_model.source == "local checkpoint a.pt in timm test_vit"


def test_a_checkpoint_that_does_not_fit_is_an_error_with_a_short_list(tmp_path: Path, tiny_clip: str) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save({name: value for name, value in state.items() if "norm1" not in name}, tmp_path / "less.pt")
    torch.save(state | {"extra.weight": torch.zeros(2)}, tmp_path / "more.pt")
    torch.save(timm.create_model("test_vit2", num_classes=0).state_dict(), tmp_path / "other.pt")
    said = {"less": r'Missing key.*"blocks\.0\.norm1', "more": r'Unexpected key.*"extra\.weight"', "other": "."}
    for name, pattern in said.items():
        with pytest.raises(ValueError, match=rf"(?s){name}\.pt does not fit test_vit:.*{pattern}") as error:
            build("timm:test_vit", checkpoint=tmp_path / f"{name}.pt")
        assert len(str(error.value)) < 2000
    tower = open_clip.create_model(tiny_clip).state_dict()
    torch.save({name: value for name, value in tower.items() if "conv1" not in name}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"1 weights of the image tower are missing \['visual\.conv1\.weight'\]"):
        build(f"open_clip:{tiny_clip}", checkpoint=tmp_path / "clip.pt")


def test_timm_reads_the_image_tower_of_a_whole_clip_checkpoint(tmp_path: Path) -> None:
    """The layout of OpenAI and open_clip, to timm's names, with and without the projection."""
    vision = {"image_size": 224, "layers": 10, "width": 256, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "xsmall-clip.json").write_text(json.dumps({"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("xsmall-clip").eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    encoder = build(SMALL_CLIP, output="embedding", checkpoint=tmp_path / "clip.pt")
    pixels = random_pixels(encoder)
    with torch.inference_mode():
        expected = model.encode_image(normalized(encoder, pixels))
    torch.testing.assert_close(features_of(encoder, pixels), expected, rtol=1e-3, atol=1e-3)
    assert build(SMALL_CLIP, output="cls", checkpoint=tmp_path / "clip.pt").size == 256


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


def test_a_checkpoint_that_is_none_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name in ("text.pt", "text.safetensors", "harmful.pt"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint that can be read safely"):
            build("timm:test_vit", checkpoint=tmp_path / name)
    with pytest.raises(ValueError, match=r"empty\.pt holds no state dict"):
        build("timm:test_vit", checkpoint=tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"no checkpoint at .*none\.pt"):
        build("timm:test_vit", checkpoint=tmp_path / "none.pt")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit-xxl", {}, r"no model 'vit-xxl'; there are vit-s, .*timm:NAME and open_clip:ARCH/PRETRAINED"),
        ("timm:vit_smal_patch16_224", {}, r"no model 'vit_smal_patch16_224'; similar names: .*vit_small_patch16_224"),
        ("timm:test_vit.nothing", {}, r"no weights 'test_vit\.nothing'; it has .*test_vit\.r160_in1k"),
        ("timm:test_resnet", {"output": "cls"}, "ResNet has no class token; choose --output pooled"),
        ("timm:test_vit", {"output": "map"}, "no attention pool; choose --output cls"),
        ("timm:test_vit", {"output": "embedding"}, "was not trained with text"),
        ("open_clip:nothing/x", {}, "open_clip has no model 'nothing'"),
        ("open_clip:ViT-B-32/x", {}, r"no weights 'x' for ViT-B-32; it has \['openai'"),
        ("open_clip:ViT-B-32", {"output": "cls"}, "`embedding` only"),
        ("focus-vit-s", {"output": "pooled"}, "focus-vit-s has the output 'cls' and the framing 'squash' only"),
        ("efficientnet-lite2", {"pretrained": False}, "no random weights"),
    ],
)
def test_what_a_model_does_not_have_is_said(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, **({"pretrained": not said.startswith(("ResNet", "no att"))} | options))


@pytest.mark.parametrize("name", ["efficientnet-lite2", "timm:test_vit"])
def test_levels_are_the_own_features_and_then_the_mean_of_what_each_stage_gives(name: str) -> None:
    own, levels = (build(name, output=output, pretrained=name in MODELS) for output in (None, "levels"))
    pixels = torch.randint(0, 256, (2, *own.pixels.shape), dtype=torch.uint8)
    seen: list[Tensor] = []
    backbone: Any = levels.module.backbone
    for block in backbone._blocks if name in MODELS else backbone.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    features = features_of(levels, pixels)
    means = [x.mean((2, 3)) if x.ndim == 4 else x[:, 1:].mean(1) for x in seen]
    if name in MODELS:  # a stage of a CNN is many blocks of one width
        means = [
            x for x, after in zip(means, [*means[1:], None], strict=True) if after is None or x.shape != after.shape
        ]
    torch.testing.assert_close(features, torch.cat([features_of(own, pixels), *means], 1))
    assert len(means) == (7 if name in MODELS else 6)


def test_weights_that_no_hub_gives_are_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"weights of timm:test_vit could not be fetched: .*--checkpoint"):
        build("timm:test_vit")


def test_random_weights_come_from_their_seed_alone() -> None:
    state = torch.random.get_rng_state()
    digests = [weights_digest(build("timm:test_vit", pretrained=False, seed=seed).module) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    named = build("timm:test_vit", pretrained=False, seed=4).base_model
    assert (named.license, named.source) == ("none: random weights", "timm test_vit, random weights, seed 4")


@pytest.mark.parametrize(("name", "output"), [("timm:test_vit", "cls"), ("timm:test_vit3", "map")])
def test_an_encoder_trains_and_its_linear_layers_are_found_for_lora(name: str, output: Any) -> None:
    module = build(name, output=output, pretrained=False).module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    module.requires_grad_(True)
    module(torch.zeros((2, 3, 160, 160), dtype=torch.uint8)).square().sum().backward()
    qkv = {path: layer for path, layer in module.named_modules() if path.endswith(".qkv")}
    assert all(isinstance(layer, nn.Linear) and layer.weight.grad.abs().max() > 0 for layer in qkv.values())
    assert "backbone.blocks.0.attn.qkv" in qkv
    assert not [key for key in module.state_dict() if not key.startswith("backbone.")]


@pytest.mark.parametrize(
    ("name", "output"), [("timm:test_vit", "cls"), ("timm:test_vit", "pooled"), ("timm:test_vit3", "map")]
)
def test_an_encoder_exports(tmp_path: Path, name: str, output: Any) -> None:
    import onnxruntime

    encoder = build(name, output=output, pretrained=False)
    identity = np.eye(encoder.size, dtype=np.float32)
    zeros, one = np.zeros(encoder.size, np.float32), np.array(1, np.float32)
    transform = Transform(identity, zeros, zeros, one, np.array(np.nan, np.float32))
    export_graph(AlignedModel(encoder, transform), encoder.pixels.shape, tmp_path / "m.onnx")
    assert [node.name for node in onnx.load(tmp_path / "m.onnx").graph.output] == list(OUTPUTS)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    pixels = random_pixels(encoder, 3)
    _, base = session.run(None, {"pixels": pixels.numpy()})
    np.testing.assert_allclose(base, features_of(encoder, pixels), rtol=1e-3, atol=1e-4)
