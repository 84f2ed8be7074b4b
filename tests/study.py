"""A study over a few drawn photos, and a participant of it who asks over HTTP."""

import json
import time
from pathlib import Path
from typing import Any

from tests.toy import encoded, photo

CONSENT = "These are drawn squares. Your choices are stored without your name."


def write_study(folder: Path, count: int = 8, **fields: Any) -> Path:
    """A study file in `folder`, with its photos; `fields` are added to it."""
    (folder / "photos/secret-names").mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"photos/secret-names/person-{seed:02d}.png").write_bytes(encoded(photo(seed)))
    values = {"photos": "photos", "consent": CONSENT, "practice": 1, "trials": 4, "catch": 0.2, "fixation_ms": 0}
    file = folder / "study.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | fields).items()))
    return file


def wait_open(client: Any) -> None:
    """Until the photos are ready."""
    until = time.monotonic() + 30
    while (state := client.get("/judge/study").json())["state"] != "open":
        assert time.monotonic() < until and state["state"] != "failed", state
        time.sleep(0.01)


class Participant:
    """One session over a client of the service."""

    def __init__(self, client: Any, **consent: Any) -> None:
        wait_open(client)
        reply = client.post("/judge/session", json={"consent": True, **consent})
        assert reply.status_code == 200, reply.text
        self.client, self.headers = client, {"X-Judge-Session": reply.json()["session"]}

    def standing(self) -> Any:
        reply = self.client.get("/judge/trial", headers=self.headers)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def answer(self, trial: str, odd: int | None = 0, rt_ms: float = 5.0, by: str = "key") -> Any:
        body = {"trial": trial, "odd": odd, "rt_ms": rt_ms, "input": by}
        return self.client.post("/judge/choice", json=body, headers=self.headers)

    def finish(self, odd: int = 0) -> int:
        """Answer everything the same; how many trials there were."""
        standing = self.standing()
        while standing["trial"]:
            standing = self.answer(standing["trial"]["trial"], odd).json()
        return int(standing["done"])
