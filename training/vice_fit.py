"""Fitting VICE: the training loop, its run folder, convergence, and what a killed fit needs to go on."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from contract import triplets
from contract.files import whole
from training.stage import claim, write_json
from training.vice import (
    TIE_RULE,
    Posterior,
    ViceConfig,
    complexity,
    figures,
    gradients,
    learning_rate,
    triplet_probabilities,
)


@dataclass(frozen=True, kw_only=True)
class ViceRecipe:
    """One fit of VICE.

    Attributes:
        name: of the run.
        description: one sentence.
        n_objects: rows of the embedding.
        config: constants.
        seed: of the start, the order of triplets and the noise.
    """

    name: str
    description: str
    n_objects: int
    config: ViceConfig
    seed: int


def converged(counts: list[int], config: ViceConfig) -> bool:
    """Whether training may end, from the number of dimensions after each epoch so far."""
    last = counts[-config.window :]
    past_burn_in = len(counts) - 1 > config.burn_in
    return past_burn_in and len(last) == config.window and len(set(last)) == 1 and last[0] != 0


def fit_vice(
    triplets_train: NDArray[np.int64],
    triplets_val: NDArray[np.int64],
    config: ViceConfig,
    out: Path,
    seed: int,
    *,
    n_objects: int,
    device: str = "cpu",
) -> Posterior:
    """Fit the posterior, and write a run folder; killed at any point, the same call goes on where it stopped.

    identity.json         config, seed, sha256 of the triplets, versions
    checkpoint.pt         parameters, optimiser, random states, history: of the last complete epoch kept
    results.jsonl         a line for every validation: epoch, train_acc, val_acc, val_loss, ...
    parameters.npz        loc and scale, all dimensions
    pruned_params.npz     pruned_loc and pruned_scale, columns by descending L1 norm
    summary.json          written last: epochs, dimensions, figures of the pruned posterior

    Args:
        triplets_train: [n, 3] object numbers, odd one last.
        triplets_val: the same, for the figures only; nothing is chosen by them.
        config: constants.
        out: folder to make or to continue.
        seed: of the start, the order of triplets and the noise.
        n_objects: rows of the embedding.
        device: where torch computes.

    Returns:
        the pruned posterior.

    Raises:
        ValueError: bad triplets, `out` belongs to another fit, or no dimension survives pruning.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    for name, rows in (("training", triplets_train), ("validation", triplets_val)):
        if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) == 0 or rows.min() < 0 or rows.max() >= n_objects:
            raise ValueError(f"{name} triplets {rows.shape}; expected [n, 3] of objects 0 to {n_objects - 1}, n > 0.")
    out.mkdir(parents=True, exist_ok=True)
    inputs = {"train": triplets_train, "validation": triplets_val}
    identity = {
        "config": asdict(config),
        "seed": seed,
        "objects": n_objects,
        "device": torch.device(device).type,  # noise is drawn there, and differs between kinds of device
        "inputs": {name: hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest() for name, rows in inputs.items()},
    }
    claim(out / "identity.json", identity, ("numpy", "torch"))
    if not (out / "summary.json").exists():
        fit = Fit(triplets_train, triplets_val, config, out, seed, n_objects, device)
        fit.train()
        full = fit.posterior()
        full.save(out / "parameters.npz")
        pruned = full.prune(config.min_objects, config.false_discovery_rate)
        if not pruned.loc.shape[1]:
            raise ValueError(f"no dimension survives pruning after {len(fit.counts)} epochs; train for longer.")
        pruned.save(out / "pruned_params.npz", "pruned_")
        samples = config.posterior_samples
        p = triplet_probabilities(pruned, triplets_val, samples=samples, seed=seed, device=device)
        accuracy, nll = figures(p)
        epochs = {"epochs": len(fit.counts), "converged": converged(fit.counts, config)}
        quality = {"dimensions": pruned.loc.shape[1], "val_acc": accuracy, "val_loss": nll}
        write_json(out / "summary.json", epochs | quality | {"tie_rule": TIE_RULE, "samples": samples})
    return Posterior.load(out / "pruned_params.npz")


class Fit:
    """The state of a fit: what a checkpoint holds, and what moves it on."""

    def __init__(
        self,
        train: NDArray[np.int64],
        val: NDArray[np.int64],
        config: ViceConfig,
        out: Path,
        seed: int,
        n_objects: int,
        device: str,
    ) -> None:
        self._train, self._val = torch.from_numpy(train).to(device), val
        self._config, self._out, self._seed, self._device = config, out, seed, device
        self._order = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(device).manual_seed(seed)
        # Kaiming-normal, fan-out, of a [dimensions, objects] weight; then one small width for all.
        loc = torch.randn((n_objects, config.dimensions), generator=self._order) * math.sqrt(2 / config.dimensions)
        self._loc = loc.to(device)
        self._log_scale = torch.full_like(self._loc, -1 / float(loc.std()))
        self._optimiser = torch.optim.Adam([self._loc, self._log_scale], lr=config.learning_rate, fused=True)
        self.counts: list[int] = []
        self._results: list[dict[str, Any]] = []
        if (out / "checkpoint.pt").exists():
            self._restore()

    def posterior(self) -> Posterior:
        """As it stands, all dimensions."""
        return Posterior(self._loc.cpu().numpy().copy(), self._log_scale.exp().cpu().numpy())

    def train(self) -> None:
        """Epochs until convergence or the last one."""
        config = self._config
        per_epoch = math.ceil(len(self._train) / config.batch)
        done, total = len(self.counts) * per_epoch, config.epochs * per_epoch
        with tqdm(total=total, initial=done, desc=f"vice {self._out.name}", unit="step") as bar:
            while len(self.counts) < config.epochs and not converged(self.counts, config):
                validates = (len(self.counts) + 1) % config.validate_every == 0
                loss, accuracy = self.epoch(bar, count_hits=validates)
                posterior = self.posterior()
                importance = posterior.importance(config.false_discovery_rate)
                self.counts.append(int((importance > config.min_objects).sum()))
                bar.set_postfix(epoch=len(self.counts), loss=f"{loss:.4f}", dimensions=self.counts[-1], refresh=False)
                if validates:
                    self._validate(posterior, loss, accuracy)
                self._save()

    def epoch(self, bar: Any, *, count_hits: bool) -> tuple[float, float]:
        """One pass over the training triplets: (mean negative log-likelihood, accuracy if counted)."""
        n, batch = len(self._train), self._config.batch
        order = torch.randperm(n, generator=self._order).to(self._device)
        noise = torch.empty_like(self._loc)
        self._optimiser.param_groups[0]["lr"] = learning_rate(len(self.counts), self._config)
        loss, hits = 0.0, 0
        for step, start in enumerate(range(0, n, batch)):
            index = self._train[order[start : start + batch]]
            if step % 2:
                noise.neg_()  # antithetic: as normal as the draw before it
            else:
                noise.normal_(generator=self._noise)
            log_p, self._loc.grad, self._log_scale.grad = gradients(
                self._loc, self._log_scale, noise, index, self._config, n
            )
            nll = -float(log_p[:, 0].sum())
            if not math.isfinite(nll):
                where = f"epoch {len(self.counts)}, step {step}"
                raise FloatingPointError(f"the loss is {nll / len(index)} in {where}; lower the learning rate.")
            self._optimiser.step()
            loss += nll
            if count_hits:
                hits += int((triplets.odd_one_out(log_p, TIE_RULE) == 2).sum())
            bar.update()
        return loss / n, hits / n

    def _validate(self, posterior: Posterior, loss: float, train_accuracy: float) -> None:
        """A line of results, of the posterior before pruning. Draws from no stream that training uses."""
        config, samples = self._config, self._config.mc_samples
        p = triplet_probabilities(posterior, self._val, samples=samples, seed=self._seed, device=self._device)
        accuracy, nll = figures(p)
        result = {"epoch": len(self.counts), "train_acc": train_accuracy, "val_acc": accuracy, "val_loss": nll}
        noise = torch.randn(self._loc.shape, generator=torch.Generator().manual_seed(self._seed)).to(self._device)
        nats = float(complexity(self._loc, self._log_scale, noise, config)) / len(self._train)
        result |= {"train_loss": loss, "complexity": nats, "dimensions": self.counts[-1]}
        self._results.append(result | {"tie_rule": TIE_RULE, "samples": samples})
        with whole(self._out / "results.jsonl") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in self._results).encode())

    def _save(self) -> None:
        state = {
            "loc": self._loc,
            "log_scale": self._log_scale,
            "optimiser": self._optimiser.state_dict(),
            "order": self._order.get_state(),
            "noise": self._noise.get_state(),
            "counts": self.counts,
            "results": self._results,
        }
        with whole(self._out / "checkpoint.pt") as stream:
            torch.save(state, stream)

    def _restore(self) -> None:
        state = torch.load(self._out / "checkpoint.pt", map_location=self._device, weights_only=True)
        self._loc.copy_(state["loc"])
        self._log_scale.copy_(state["log_scale"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._order.set_state(state["order"].cpu())
        self._noise.set_state(state["noise"].cpu())
        self.counts, self._results = state["counts"], state["results"]
