"""BentoML over a bundle: `BUNDLE=... THREADS=2 bentoml serve benchmarks.rival_bentoml:Embedding --port PORT`."""

import os
from pathlib import Path

import bentoml

from benchmarks.rival_network import Network

THREADS = int(os.environ["THREADS"])


@bentoml.service(workers=1, threads=THREADS, traffic={"timeout": 120}, metrics={"enabled": False})  # type: ignore[untyped-decorator]
class Embedding:
    """A photo in JSON to its vector."""

    def __init__(self) -> None:
        self.network = Network(Path(os.environ["BUNDLE"]), THREADS)

    @bentoml.api(route="/embed")  # type: ignore[untyped-decorator]
    def embed(self, image: str) -> dict[str, list[float]]:
        """One request."""
        return {"embedding": self.network.infer(self.network.decode(image)[None])[0].tolist()}
