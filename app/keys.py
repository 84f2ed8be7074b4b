"""API keys: who may ask, and how many images a second each of them."""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import ServiceError
from app.metrics import Metrics

log = logging.getLogger("alignet")

LOOK_SECONDS = 1.0
"""Time between two looks at the file of keys."""


def split_keys(text: str) -> tuple[str, ...]:
    """Keys with commas or line ends between. Raises ValueError: a key that no header can carry, or none at all."""
    keys = tuple(key.strip() for key in text.replace("\n", ",").split(",") if key.strip())
    # "," is a mistake that would leave the service open; "" is how an unset variable arrives.
    if (text.strip() and not keys) or not all(k.isascii() and k.isprintable() and " " not in k for k in keys):
        raise ValueError("expected keys of visible ASCII, with commas between; unset it to serve without keys")
    return keys


class Bucket:
    """Images that one key may still send: it fills with `rate` images a second, up to `most`.

    A request may take more than is there; the debt keeps the next ones out.
    """

    def __init__(self, rate: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, most, clock
        self._level, self._since = most, clock()

    def spend(self, n: int) -> None:
        """Take n images out, whatever is there."""
        self._fill()
        self._level -= n

    def wait(self) -> float:
        """Seconds until an image is there; 0 if one is."""
        self._fill()
        return max(0.0, (1 - self._level) / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._since) * self._rate)
        self._since = now


class Keys:
    """The keys of a service; without any, everyone is let in.

    Args:
        keys: as the settings have them.
        file: more of them, one a line, read again when it has changed: a key is rotated by adding the new
            one, changing the clients, and removing the old one, without a restart.
        rate: images a second for each key; 0 has no bound.
        most: images a key may send at once after a pause.
    """

    def __init__(self, keys: Sequence[str], file: Path | None, rate: float, most: float, metrics: Metrics) -> None:
        self._fixed = frozenset(map(_digest, keys))
        self._file = file
        self._rate, self._most = rate, most
        self._metrics = metrics
        self._known = self._fixed
        self._buckets: dict[bytes, Bucket] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        if file is not None:
            self._read(file)

    def admit(self, authorization: str | None) -> Callable[[int], None]:
        """Let a request in; gives a function to be told how many images it had.

        Every key is compared, in constant time, so how long a refusal takes says nothing about the keys.

        Raises:
            ServiceError: 401 without one of the keys, 429 if the key has sent too much.
        """
        if self._file is not None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._read(self._file)
        if not self._known and self._file is None:
            return _free
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key)
        matches = [hmac.compare_digest(given, known) for known in self._known]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServiceError("unauthorized", "send `Authorization: Bearer KEY` with a key of this service.")
        if not self._rate:
            return _free
        bucket = self._buckets.setdefault(given, Bucket(self._rate, self._most))
        if wait := bucket.wait():
            self._metrics.rejected.labels("key").inc()
            detail = f"this key may send {self._rate:g} images a second, and has sent more."
            raise ServiceError("rate_limited", detail, limit=self._rate, retry_after=wait)
        bucket.spend(1)  # for the request itself: many at once must not all pass before the first is counted
        return lambda images: bucket.spend(max(0, images - 1))

    def _read(self, file: Path) -> None:
        """Take the file's keys over if it has changed; a file that cannot be read opens nothing."""
        self._looked = time.monotonic()
        try:
            found = file.stat()
            if (stamp := (found.st_mtime_ns, found.st_ino)) == self._stamp:
                return
            keys = split_keys(file.read_text())
            if not keys:
                raise ValueError("it has no key")
        except (OSError, ValueError) as error:
            if self._stamp is None:
                raise
            log.error("the file of API keys cannot be read; the keys stay as they are: %s", type(error).__name__)
            return
        self._stamp = stamp
        self._known = self._fixed | frozenset(map(_digest, keys))
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if key in self._known}
        log.info("%d API keys", len(self._known))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _free(_: int) -> None:
    """What a request without a bound is told to spend."""
