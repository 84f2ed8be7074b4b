"""Folders of bundles that are looked at again and again: a new version is served without being asked for.

Looked at, since no notice of the system crosses a network mount. A folder that is still being copied is refused
like any other broken bundle, since its manifest states the hash of each file; it is tried again once its files
change, and logged once.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.errors import ServiceError
from app.models import Models
from contract.manifest import MANIFEST

log = logging.getLogger("alignet")

AGAIN_SECONDS = 60.0
"""Time until a refused folder is tried again though nothing in it has changed: its Triton may have come."""


def state_of(folder: Path) -> tuple[str, str] | None:
    """(hash of the manifest, hash of the files' names, sizes and times); None where no manifest can be read."""
    try:
        folder = folder.resolve()
        manifest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    except OSError:
        return None
    return manifest, hashlib.sha256(repr(files).encode()).hexdigest()


class Watch:
    """What was last seen in each model's folder, and what is to be done about it.

    Args:
        models: whose current snapshot is watched.
        reload: see `app.service.Service.reload`; told to log no refusal.
    """

    def __init__(self, models: Models, reload: Callable[[str], Awaitable[object]]) -> None:
        self._models = models
        self._reload = reload
        self._served: dict[str, str] = {}  # model to the manifest that was served or found the same
        self._refused: dict[str, tuple[tuple[str, str], float]] = {}  # model to what was refused, and when
        self._logged: dict[str, str] = {}  # model to the manifest whose refusal was logged

    async def run(self, seconds: float) -> None:
        """Look every so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            for name, model in list(self._models.current.models.items()):
                try:
                    await self.look(name, model.folder)
                except Exception:  # a watch that ends unseen would be worse than any fault of one folder
                    log.exception("looking at the folder of model %s failed", name)

    async def look(self, name: str, folder: Path) -> None:
        """Serve what is in the folder now, if it is not what was seen there."""
        found = await asyncio.to_thread(state_of, folder)
        if found is None or found[0] == self._served.get(name):
            return
        refused, when = self._refused.get(name, (None, 0.0))
        if found == refused and time.monotonic() - when < AGAIN_SECONDS:
            return
        try:
            await self._reload(name)
        except ServiceError as error:
            self._refused[name] = found, time.monotonic()
            if self._logged.get(name) != found[0]:
                self._logged[name] = found[0]
                log.warning(
                    "the bundle now in the folder of %s is not served (yet): %s", name, error.__cause__ or error
                )
        else:
            # Another manifest may have come while this one was read; then it is seen at the next look.
            after = await asyncio.to_thread(state_of, folder)
            if after is not None and after[0] == found[0]:
                self._served[name] = found[0]
            self._refused.pop(name, None)
