"""Where the time of one request goes, and when it is over."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Timings:
    """Seconds one request spent in each stage; work done side by side counts once, by the slowest.

    `until` is the time of the event loop's clock at which nobody waits for the answer any more.
    """

    stages: dict[str, float] = field(default_factory=dict)
    until: float = math.inf

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)
