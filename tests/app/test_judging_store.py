"""What is acknowledged stays, whatever kills the process."""

import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx2 as httpx
import pytest

from app.judging.choosing import Chosen
from app.judging.store import AnotherChoice, ImpossibleTime, SessionsFull, Store, StoreError, Trial, digest
from tests.running import ROOT, free_port, replica, until
from tests.study import Participant, write_study


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "judgments.sqlite")
    made.register([(f"{i}.jpg", f"sha-{i}") for i in range(4)])
    return made


def a_trial(session: str, number: int = 0) -> Trial:
    chosen = Chosen((2, 0, 1), (0, 0, 0), "unsure", (0.2, 0.5, 0.3), 1.0)
    return Trial(f"trial-{session}-{number}", session, number, "main", chosen, "print")


def test_a_choice_that_was_acknowledged_outlives_kill_9(toy_bundle: Path, tmp_path: Path) -> None:
    study, port = write_study(tmp_path, trials=200), free_port()
    arguments = ("--bundle", str(toy_bundle), "--judging", str(study))
    acknowledged: dict[str, int] = {}
    with replica(port, tmp_path / "log", *arguments) as running:
        until(f"http://127.0.0.1:{port}/health/ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            someone = Participant(client)
            with pytest.raises(httpx.TransportError):
                trial = someone.standing()["trial"]
                while True:
                    odd = len(acknowledged) % 3
                    reply = someone.answer(trial["trial"], odd)
                    acknowledged[trial["trial"]] = odd
                    trial = reply.json()["trial"]
                    if len(acknowledged) == 5:  # some time in the next few, at no agreed point
                        threading.Timer(0.02, running.process.send_signal, [signal.SIGKILL]).start()
    with replica(port, tmp_path / "log", *arguments):
        until(f"http://127.0.0.1:{port}/health/ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            again = Participant(client)
            again.headers = someone.headers
            standing = again.standing()  # the session goes on where it was
    assert 5 <= len(acknowledged) <= standing["done"] <= len(acknowledged) + 1
    db = sqlite3.connect(tmp_path / "study-data/judgments.sqlite")
    stored = dict(db.execute("SELECT trial, odd FROM trials WHERE answered"))
    db.close()
    assert {trial: stored[trial] for trial in acknowledged} == acknowledged


def test_a_choice_is_committed_with_a_sync_of_the_disk(store: Store, tmp_path: Path) -> None:
    session = store.begin("token", "consent", None, 9)
    store.add(a_trial(session.session))
    store.choose(session, store.trials()[0].trial, 1, 5.0, "key")
    copy = tmp_path / "crashed.sqlite"  # what a crash would leave: the files as they are, nothing closed
    for suffix in ("", "-wal"):
        Path(f"{copy}{suffix}").write_bytes(Path(f"{store._file}{suffix}").read_bytes())
    after = Store(copy)
    (found,) = after.trials()
    assert found.answer is not None and (found.answer.odd, found.chosen.items) == (1, (2, 0, 1))
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    after.close()
    store.close()


def test_the_first_choice_counts_and_comes_back_as_it_was(store: Store) -> None:
    session = store.begin("token", "consent", None, 9)
    trial = store.add(a_trial(session.session)).trial
    with pytest.raises(ImpossibleTime, match="60000"):
        store.choose(session, trial, 2, 60_000.0, "key")
    kept, new = store.choose(session, trial, 2, 5.5, "pointer")
    assert new and kept.answer is not None and (kept.answer.rt_ms, kept.answer.input) == (5.5, "pointer")
    assert store.choose(session, trial, 2, 9.9, "key") == (kept, False)
    with pytest.raises(AnotherChoice):
        store.choose(session, trial, 0, 5.5, "key")
    assert store.judged() == {(0, 1, 2): 1}
    store.close()


def test_numbers_of_photos_never_change(store: Store) -> None:
    assert store.register([("new.jpg", "sha-9"), ("moved.jpg", "sha-1"), ("0.jpg", "sha-0")]) == [4, 1, 0]
    assert store.items()[1] == (1, "sha-1", "moved.jpg")
    store.close()


def test_sessions_are_bounded_and_known_by_a_digest(store: Store) -> None:
    first = store.begin("one", "consent", None, 2)
    store.begin("two", "consent", None, 2)
    with pytest.raises(SessionsFull):
        store.begin("three", "consent", None, 2)
    assert first.session == digest("one") and store.session("one") == first and store.session(first.session) is None
    store.withdraw(first)
    assert store.begin("three", "consent", None, 2).number == 2
    store.close()


def test_a_file_of_another_program_or_a_later_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 99)
    with sqlite3.connect(tmp_path / "later") as db:
        db.execute("PRAGMA user_version = 2")
        db.execute("CREATE TABLE other (x)")
    db.close()
    for name, said in (("text", "no database"), ("later", "version 2"), ("absent", "nothing has been collected")):
        before = (tmp_path / name).read_bytes() if name != "absent" else b""
        with pytest.raises(StoreError, match=said):
            Store(tmp_path / name, write=name != "absent")
        assert name == "absent" or (tmp_path / name).read_bytes() == before


def test_the_export_reads_while_another_process_writes(store: Store) -> None:
    session = store.begin("token", "consent", None, 9)
    script = "from pathlib import Path; from app.judging.store import Store\n"
    script += f"s = Store(Path({str(store._file)!r}), write=False)"
    script += "\nwith s.reading(): print(len(s.sessions()), len(s.trials()), flush=True); input()"
    reader = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None and reader.stdout.readline() == "1 0\n"
    store.add(a_trial(session.session))  # the reader is in the middle of its reading
    reader.communicate("\n", timeout=30)
    assert reader.returncode == 0 and len(store.trials()) == 1
    store.close()
