"""What a distillation trains: an encoder, in full or through LoRA, and its heads."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contract.files import whole
from training import timm_models
from training.encoders import Encoder
from training.perceptual.embedding import HEAD, SHAPE, Headed, read_head, read_shape, shaped, write_head
from training.readout import Readout, read_readout, readout_like, write_readout

READOUT = "readout.safetensors"


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Which weights of the encoder are trained.

    Attributes:
        frozen_blocks: first transformer blocks that stay as they are, with the patch embedding; 0 trains all.
        lora_rank: rank of low-rank adapters (Hu et al. 2022, through peft); None trains the weights themselves.
        lora_alpha: adapters are scaled by alpha / rank.
        lora_dropout: on the adapters' inputs.
        lora_targets: endings of the names of the layers that get an adapter.
        triplet_head: width of a linear map that is judged instead of the embedding (1,024 in the released code);
            None judges the embedding itself, as the paper does. The head is not part of the embedding.
    """

    frozen_blocks: int = 0
    lora_rank: int | None = None
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("qkv", "proj")
    triplet_head: int | None = None

    def __post_init__(self) -> None:
        if self.frozen_blocks and self.lora_rank is not None:
            raise ValueError("frozen_blocks and lora_rank exclude each other: adapters are all that LoRA trains.")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; expected 1 or more, or none.")

    def require_no_adapters(self) -> None:
        """Raises ValueError where there are adapters: a head is trained on features of the network as it is."""
        if self.lora_rank is not None:
            raise ValueError(
                f"lora_rank is {self.lora_rank}, and a head is to be trained on a frozen network, which adapters would "
                "change. Give lora_rank none to train the head (--lora-rank none), or hidden none for adapters."
            )


class StudentModel(nn.Module):
    """Encoder, optional triplet head, optional regression head.

    Args:
        encoder: the student with its starting weights; the model trains a copy.
        regressed: width of the vectors that a linear head predicts; None for no such head.
        adaptation: which weights are trained.
        seed: of the heads' and adapters' starting weights.

    Raises:
        ValueError: no block or layer of the asked kind in the encoder, or adapters for a network under a head.
    """

    def __init__(self, encoder: Encoder, regressed: int | None, adaptation: Adaptation, *, seed: int) -> None:
        super().__init__()
        module = copy.deepcopy(encoder.module).requires_grad_(True)  # adapters change a module for good
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _freeze(module, adaptation.frozen_blocks)
            self.encoder: nn.Module = module if adaptation.lora_rank is None else _with_lora(module, adaptation)
            width = adaptation.triplet_head
            self.triplet_head = None if width is None else nn.Linear(encoder.size, width)
            self.regression_head = None if regressed is None else nn.Linear(encoder.size, regressed)
        self._switch_off_unused(encoder)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """uint8 [m, 3, height, width] to [judged vectors [m, k]] or [judged, regressed [m, p]], float32."""
        z = self.encoder(pixels).float()
        with torch.autocast(pixels.device.type, enabled=False):
            judged = z if self.triplet_head is None else self.triplet_head(z)
            return [judged] if self.regression_head is None else [judged, self.regression_head(z)]

    def _switch_off_unused(self, encoder: Encoder) -> None:
        """Weights that the output does not depend on (a pooling head that is not used) are not trained."""
        training = self.training
        self.eval()
        torch.stack(
            [out.sum() for out in self(torch.zeros(1, *encoder.pixels.shape, dtype=torch.uint8))]
        ).sum().backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None
        self.train(training)

    def write(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write `weights.safetensors`, adapters merged, and `triplet_head.safetensors` if there is a triplet head.

        Weights have the names that timm or open_clip give them. A readout is written beside them, as
        `readout.safetensors`, and a perceptual head as `mlp_head.safetensors`.

        Args:
            state: full state dict of a model like this one.
        """
        model = copy.deepcopy(self).cpu()
        model.load_state_dict(state)
        encoder: Any = model.encoder
        if hasattr(encoder, "merge_and_unload"):  # peft's wrapper
            encoder = encoder.merge_and_unload()
        if model.triplet_head is not None:
            _write(folder / "triplet_head.safetensors", model.triplet_head.state_dict())
        if isinstance(encoder, Readout):
            write_readout(encoder, folder / READOUT)
        if isinstance(encoder, Headed):
            write_head(encoder, folder / HEAD)
        _write(folder / "weights.safetensors", _backbone(encoder).state_dict())


def load_weights(encoder: Encoder, file: Path) -> None:
    """Put the weights that a distillation wrote, and the readout beside them, into an encoder of the same kind.

    Raises:
        ValueError: they are of another model.
    """
    if isinstance(encoder.module, Readout):
        read_readout(encoder.module, file.with_name(READOUT))
    if isinstance(encoder.module, Headed):
        read_head(encoder.module, file.with_name(HEAD))
    timm_models.load_weights(_backbone(encoder.module), load_file(file), file, encoder.base_model.name)


def read_student(encoder: Encoder, file: Path) -> Encoder:
    """The student whose weights a training wrote, with its readout, or the shape of its embedding, that lies beside.

    Args:
        encoder: of the same model, with any weights.
        file: `weights.safetensors`.

    Raises:
        ValueError: they are of another model.
    """
    readout, shape = file.with_name(READOUT), file.with_name(SHAPE)
    student = readout_like(encoder, readout) if readout.exists() else encoder
    if shape.exists():
        student = shaped([encoder], read_shape(shape))
    load_weights(student, file)
    return student


def _backbone(module: nn.Module) -> nn.Module:
    """The network as its library knows it, without what normalises pixels before it and picks the output after it."""
    inner = getattr(module, "backbone", module)
    assert isinstance(inner, nn.Module)
    return inner


def _write(file: Path, state: dict[str, Tensor]) -> None:
    with whole(file) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in state.items()}))


def transformer_blocks(module: nn.Module) -> tuple[str, nn.Module] | None:
    """(name, stack) of a ViT's blocks as timm and open_clip name them; None for other networks."""
    for name, stack in module.named_modules():
        if isinstance(stack, nn.ModuleList | nn.Sequential) and name.rpartition(".")[2] in ("blocks", "resblocks"):
            return name, stack
    return None


def _freeze(module: nn.Module, blocks: int) -> None:
    """Freeze the first blocks and all that comes before them."""
    if not blocks:
        return
    found = transformer_blocks(module)
    length = 0 if found is None else len(list(found[1].children()))
    if found is None or blocks > length:
        raise ValueError(f"the encoder has {length} transformer blocks; {blocks} of them cannot be frozen.")
    name, stack = found
    kept = {id(p) for block in list(stack.children())[blocks:] for p in block.parameters()}
    behind = False
    for path, parameter in module.named_parameters():
        inside = path.startswith(f"{name}.")
        # Registered before the stack: embeddings and tokens. Registered behind it: the final norm and heads.
        behind = behind or inside
        if not behind or (inside and id(parameter) not in kept):
            parameter.requires_grad_(False)


def _with_lora(module: nn.Module, adaptation: Adaptation) -> nn.Module:
    import peft

    if isinstance(module, Headed):
        adaptation.require_no_adapters()
    config = peft.LoraConfig(
        r=adaptation.lora_rank or 0,
        lora_alpha=adaptation.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=adaptation.lora_dropout,
        target_modules=list(adaptation.lora_targets),
        bias="none",
        # A readout is trained whole: adapters alone would leave it where the fit put it.
        modules_to_save=["readout"] if isinstance(module, Readout) else None,
    )
    try:
        out: nn.Module = peft.get_peft_model(module, config)
    except ValueError as error:
        raise ValueError(f"no layer of the encoder ends in {list(adaptation.lora_targets)}: {error}") from error
    return out
