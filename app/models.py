"""Which bundles are served: a registry that is exchanged whole, never changed.

A request holds the snapshot that was current when its body was there, and sees that one to its end. A new
version of a bundle makes a new snapshot; requests that hold the old one finish on it, and a model that is in
no snapshot that is current or held is closed. All of it runs on the event loop, so nothing is locked; the
snapshots themselves may be read from any thread.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from app.alias import Alias
from app.errors import ServiceError
from app.schemas import Options
from app.served import ServedModel

log = logging.getLogger("alignet")


class WrongModels(ValueError):
    """Bundles that cannot be served beside one another as the settings ask."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The models by name, in the order of the settings; the first answers requests that name none."""

    models: Mapping[str, ServedModel] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[ServedModel], aliases: Sequence[Alias] = ()) -> "Snapshot":
        """Raises WrongModels: two have one name, or an alias names one that is not there."""
        by_name = {model.name: model for model in models}
        if len(by_name) < len(models):
            twice = next(name for name, n in Counter(model.name for model in models).items() if n > 1)
            raise WrongModels(f"two bundles have the name {twice!r}; clients ask for a model by its name.")
        snapshot = cls(MappingProxyType(by_name))
        for alias in aliases:
            snapshot = snapshot.with_alias(alias)
        return snapshot

    def with_version(self, model: ServedModel) -> "Snapshot":
        """The same, with `model` in the place of the one that has its name."""
        return replace(self, models=MappingProxyType({**self.models, model.name: model}))

    def with_alias(self, alias: Alias) -> "Snapshot":
        """The same, with this alias. Raises WrongModels: it names a model that is not there."""
        if unknown := sorted(set(alias.weights) - set(self.models)):
            raise WrongModels(f"alias {alias.name!r} names {unknown[0]!r}; served here are {', '.join(self.models)}.")
        return replace(self, aliases=MappingProxyType({**self.aliases, alias.name: alias}))

    @property
    def default(self) -> ServedModel:
        """The first."""
        return next(iter(self.models.values()))

    def named(self, name: str | None) -> ServedModel:
        """The model of that name, or the default. Raises ServiceError: no such model."""
        model = self.default if name is None else self.models.get(name)
        if model is None:
            served = f"the model served here is {self.default.name!r}"
            raise ServiceError(
                "model_not_found", f"{served if len(self.models) == 1 else f'no model {name!r} here'}; see /models."
            )
        return model

    def choose(self, options: Options, client: bytes) -> ServedModel:
        """The model for a request, through the alias of its name if there is one.

        A client that expects a fingerprint gets the model that has it, whatever its key: it has vectors of
        that space, and would have to be refused otherwise.

        Raises:
            ServiceError: no such model.
        """
        alias = self.aliases.get(self.default.name if options.model is None else options.model)
        if alias is None:
            return self.named(options.model)
        chosen = self.models[alias.model(client)]
        if options.expect_fingerprint is None or options.expect_fingerprint in chosen.fingerprints:
            return chosen
        others = (self.models[name] for name in alias.weights)
        return next((model for model in others if options.expect_fingerprint in model.fingerprints), chosen)


class Models:
    """The current snapshot, and those that requests still hold."""

    def __init__(self) -> None:
        self.current = Snapshot()
        self._held: Counter[Snapshot] = Counter()
        self._open: list[ServedModel] = []
        self._closing: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def hold(self) -> Iterator[Snapshot]:
        """The current snapshot, whose models stay open until the block ends."""
        snapshot = self.current
        self._held[snapshot] += 1
        try:
            yield snapshot
        finally:
            self._held[snapshot] -= 1
            if not self._held[snapshot]:
                del self._held[snapshot]
                if snapshot is not self.current:
                    self._close_unused()

    def install(self, snapshot: Snapshot) -> None:
        """Make this the current one; who comes from now on gets it."""
        self.current = snapshot
        self._open += [model for model in snapshot.models.values() if model not in self._open]
        self._close_unused()

    async def close(self) -> None:
        """Close every model."""
        await asyncio.gather(*(model.embedder.close() for model in self._open), *self._closing)
        self._open.clear()

    def _close_unused(self) -> None:
        used = {model for snapshot in (self.current, *self._held) for model in snapshot.models.values()}
        for model in [model for model in self._open if model not in used]:
            self._open.remove(model)
            task = asyncio.create_task(self._close_one(model))
            self._closing.add(task)  # the loop itself would forget it
            task.add_done_callback(self._closing.discard)

    async def _close_one(self, model: ServedModel) -> None:
        await model.embedder.close()
        log.info("model %s with fingerprint %s is closed", model.name, model.fingerprint)
