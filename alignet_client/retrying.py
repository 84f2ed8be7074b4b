"""When to ask again, and when to give up: the same for both clients, which only send and wait."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from alignet_client.wire import Reply, problem

RETRIED = (429, 503)
"""Statuses by which a service asks to be asked again; 502 and 504 too, where a balancer gave them."""


@dataclass(frozen=True)
class Retries:
    """How patient a client is with one request.

    Attributes:
        tries: how often it is sent at most.
        deadline: seconds for all of them and the pauses between.
        first: longest pause after the first try where the service names none; it doubles each time.
        most: longest of these pauses.
    """

    tries: int = 10
    deadline: float = 60.0
    first: float = 0.5
    most: float = 10.0

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.deadline > 0 or self.first < 0 or self.most < 0:
            raise ValueError(f"{self}: expected tries >= 1, deadline > 0, and pauses >= 0")


@dataclass
class Attempts:
    """The course of one request: what to do after each outcome."""

    policy: Retries
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[], float] = random.random
    made: int = 0
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = self.clock() + self.policy.deadline

    def left(self) -> float:
        """Seconds until the deadline; never 0, as that means no timeout to some."""
        return max(self._until - self.clock(), 0.001)

    def late(self) -> bool:
        """Whether the deadline is over."""
        return self.clock() >= self._until

    def after(self, reply: Reply | None) -> float | None:
        """Seconds to wait before the next try, or None where `reply` (None: the connection failed) is the last."""
        self.made += 1
        if reply is not None and not _worth_retrying(reply):
            return None
        pause = self._pause(None if reply is None else retry_after(reply))
        if self.made >= self.policy.tries or self.clock() + pause >= self._until:
            return None
        return pause

    def _pause(self, asked: float | None) -> float:
        # With chance in it: clients that were refused together must not come back together.
        if asked is not None:
            return asked * (1 + 0.1 * self.uniform())
        return (0.5 + 0.5 * self.uniform()) * min(self.policy.most, self.policy.first * 2.0 ** (self.made - 1))


def _worth_retrying(reply: Reply) -> bool:
    if reply.status in (502, 504):
        return problem(reply).code.startswith("http_")
    return reply.status in RETRIED


def retry_after(reply: Reply) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None without one."""
    text = (reply.headers.get("retry-after") or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
