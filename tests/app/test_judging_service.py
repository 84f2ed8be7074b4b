"""/judge over HTTP: consent, trials, choices, and what must not be said or stored."""

import csv
import io
import re
import sqlite3
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import ValidationError

from app.main import create_app
from app.settings import Settings
from tests.study import CONSENT, Participant, wait_open, write_study
from tests.toy import encoded, photo, write_toy_bundle

Serve = Callable[..., TestClient]
KINDS = ("practice", "main", "catch")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture
def judged(serve: Serve, study: Path) -> TestClient:
    return serve(judging=study, admin_keys="boss", api_keys="client")


def stored(study: Path) -> bytes:
    """Everything in the folder of data, as bytes."""
    return b"".join(file.read_bytes() for file in sorted(study.parent.glob("study-data/judgments*")))


def test_without_a_study_there_are_no_such_paths(client: TestClient) -> None:
    for path in ("/judge", "/judge/study", "/judge/trial", "/judge/export", "/pages/judge.js"):
        assert client.get(path).status_code == 404
    assert client.post("/judge/session", json={"consent": True}).status_code == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "judge" in path]


def test_the_document_describes_the_paths_and_refers_to_nothing_that_is_not_there(judged: TestClient) -> None:
    document = judged.get("/openapi.json")
    paths = {path for path in document.json()["paths"] if path.startswith("/judge")}
    assert paths == {
        f"/judge/{name}" for name in ("study", "session", "trial", "photo/{token}", "choice", "withdraw", "export")
    }
    assert set(re.findall(r"#/components/schemas/(\w+)", document.text)) <= set(
        document.json()["components"]["schemas"]
    )


def test_a_session_goes_from_consent_to_thanks_without_an_api_key(judged: TestClient) -> None:
    someone = Participant(judged)
    card = judged.get("/judge/study").json()
    assert (card["consent"], card["trials"], card["practice"]) == (CONSENT, 5, 1)
    first = someone.standing()
    assert (first["done"], first["total"], first["trial"]["practice"]) == (0, 6, True)
    assert someone.standing()["trial"] == first["trial"], "asking again must not skip a trial"
    assert someone.finish() == 6
    last = someone.standing()
    assert last["trial"] is None and last["summary"] == {"answered": 4, "median_ms": 5.0}


@pytest.mark.parametrize("body", [{}, {"consent": False}, {"consent": 1}, {"consent": True, "name": "Ann"}])
def test_nobody_begins_without_consent(judged: TestClient, body: dict[str, Any]) -> None:
    wait_open(judged)
    reply = judged.post("/judge/session", json=body)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")


def test_nothing_personal_is_stored_and_the_token_is_not_either(judged: TestClient, study: Path) -> None:
    someone = Participant(judged)
    someone.client.headers["User-Agent"] = "a-browser-of-somebody"
    someone.finish()
    content = stored(study)
    for said in (someone.headers["X-Judge-Session"], "a-browser-of-somebody", "testclient"):
        assert said.encode() not in content
    assert judged.post("/judge/session", json={"consent": True, "code": "Ann"}).status_code == 400


def test_a_code_is_stored_only_where_the_study_asks_for_one(serve: Serve, tmp_path: Path) -> None:
    file = write_study(tmp_path, participant_codes=True)
    Participant(serve(judging=file), code="P-17")
    with sqlite3.connect(tmp_path / "study-data/judgments.sqlite") as db:
        assert db.execute("SELECT code FROM sessions").fetchall() == [("P-17",)]
    db.close()


def test_pictures_name_no_file_and_carry_no_metadata(serve: Serve, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    for seed in range(8):
        (tmp_path / f"photos/secret-names/person-{seed:02d}.png").unlink()
        (tmp_path / f"photos/secret-names/p{seed}.jpg").write_bytes(encoded(photo(seed), "JPEG", exif=exif))
    someone = Participant(serve(judging=file))
    standing = someone.client.get("/judge/trial", headers=someone.headers)
    picture = someone.client.get(standing.json()["trial"]["photos"][1])
    assert "secret" not in standing.text and "person" not in standing.text
    assert picture.headers["content-type"] == "image/jpeg" and picture.headers["cache-control"] == "no-store"
    assert b"taken at home" not in picture.content
    assert Image.open(io.BytesIO(picture.content)).size in ((40, 30), (28, 21), (28, 22))


def test_a_picture_is_gone_when_its_trial_is_over(judged: TestClient) -> None:
    someone = Participant(judged)
    trial = someone.standing()["trial"]
    path = trial["photos"][2]
    assert judged.get(path).status_code == 200
    someone.answer(trial["trial"])
    for wrong in (path, "/judge/photo/..%2fstudy.toml", f"/judge/photo/{'A' * 24}-0", path[:-1] + "3"):
        assert judged.get(wrong).status_code == 404


def test_a_choice_twice_is_stored_once_and_another_one_is_refused(judged: TestClient, study: Path) -> None:
    someone = Participant(judged)
    trial = someone.standing()["trial"]["trial"]
    first, again, other = someone.answer(trial, 1), someone.answer(trial, 1), someone.answer(trial, 2)
    assert [r.status_code for r in (first, again, other)] == [200, 200, 409]
    assert (first.json()["new"], again.json()["new"], other.json()["code"]) == (True, False, "choice_conflict")
    assert first.json()["trial"]["trial"] == again.json()["trial"]["trial"] == someone.standing()["trial"]["trial"]


def test_trials_and_sessions_of_others_are_404(judged: TestClient) -> None:
    one, two = Participant(judged), Participant(judged)
    trial = one.standing()["trial"]["trial"]
    assert (two.answer(trial).status_code, two.answer(trial).json()["code"]) == (404, "trial_not_found")
    for headers in ({}, {"X-Judge-Session": "x" * 32}, {"X-Judge-Session": "y" * 5000}):
        reply = judged.get("/judge/trial", headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (404, "session_not_found")
    assert one.answer(trial).status_code == 200


@pytest.mark.parametrize("rt", [-1.0, 1e9, 5000.0])
def test_a_time_that_cannot_be_is_refused_and_the_trial_waits(judged: TestClient, rt: float) -> None:
    someone = Participant(judged)
    trial = someone.standing()["trial"]["trial"]
    reply = someone.answer(trial, rt_ms=rt)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert someone.standing()["trial"]["trial"] == trial


@pytest.mark.parametrize(
    ("odd", "by"), [(3, "key"), (None, "key"), (None, "none"), (0, "none"), (0, "mind"), (1.5, "key")]
)
def test_what_is_no_answer_is_refused(judged: TestClient, odd: Any, by: str) -> None:
    someone = Participant(judged)
    assert someone.answer(someone.standing()["trial"]["trial"], odd, by=by).status_code == 400


def test_a_long_body_is_refused_before_it_is_read(judged: TestClient) -> None:
    wait_open(judged)
    reply = judged.post("/judge/session", content=b" " * 5000, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["limit"]) == (413, 4096)


def test_an_invitation_and_a_number_of_sessions_bound_who_takes_part(serve: Serve, tmp_path: Path) -> None:
    client = serve(judging=write_study(tmp_path, invitation="sesame", most_sessions=2))
    wait_open(client)
    for body in ({"consent": True}, {"consent": True, "invitation": "Sesame"}):
        assert client.post("/judge/session", json=body).json()["code"] == "invitation_needed"
    assert "sesame" not in client.get("/judge/study").text
    codes = [
        client.post("/judge/session", json={"consent": True, "invitation": "sesame"}).status_code for _ in range(3)
    ]
    assert codes == [200, 200, 409]


def test_who_withdraws_leaves_nothing(judged: TestClient, study: Path) -> None:
    someone, other = Participant(judged), Participant(judged)
    trial = someone.standing()["trial"]["trial"]
    someone.answer(trial)
    reply = judged.post("/judge/withdraw", headers=someone.headers)
    assert reply.json() == {"deleted": 1}
    assert judged.get("/judge/trial", headers=someone.headers).status_code == 404
    with sqlite3.connect(study.parent / "study-data/judgments.sqlite") as db:
        assert db.execute("SELECT count(*) FROM trials WHERE trial = ?", (trial,)).fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    db.close()
    assert other.finish() == 6


def test_the_export_is_a_zip_for_admins_only(judged: TestClient) -> None:
    Participant(judged).finish()
    for key in ("", "client"):
        assert judged.get("/judge/export", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    reply = judged.get("/judge/export", headers={"Authorization": "Bearer boss"})
    with zipfile.ZipFile(io.BytesIO(reply.content)) as packed:
        rows = list(csv.DictReader(io.StringIO(packed.read("responses.csv").decode())))
    assert [row["kind"] for row in rows].count("main") == 4 and len(rows) == 6


def test_a_new_version_of_the_model_chooses_when_its_vectors_are_there(serve: Serve, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle")
    client = serve(judging=write_study(tmp_path), admin_keys="boss", bundle=bundle)
    someone = Participant(client)
    write_toy_bundle(tmp_path / "other", seed=1).rename(tmp_path / "new")
    bundle.rename(tmp_path / "old")
    (tmp_path / "new").rename(bundle)
    changed = client.post("/admin/models/toy/reload", headers={"Authorization": "Bearer boss"}).json()
    assert changed["changed"]
    prints = set()
    for _ in range(200):
        wait_open(client)
        if someone.standing()["trial"] is None:
            someone = Participant(client)
        someone.answer(someone.standing()["trial"]["trial"])
        with sqlite3.connect(tmp_path / "study-data/judgments.sqlite") as db:
            prints = {row[0] for row in db.execute("SELECT fingerprint FROM trials")}
        db.close()
        if changed["fingerprint"] in prints:
            break
    assert prints == {changed["fingerprint"], changed["previous_fingerprint"]}


def test_a_photo_that_cannot_be_used_is_named_and_the_others_are_shown(serve: Serve, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    (tmp_path / "photos/again.png").write_bytes(encoded(photo(0)))
    wait_open(serve(judging=file))
    rows = list(csv.DictReader((tmp_path / "study-data/refused.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == ["broken.jpg"]
    with sqlite3.connect(tmp_path / "study-data/judgments.sqlite") as db:
        assert db.execute("SELECT count(*) FROM items").fetchone() == (8,), "the same content is one photo"
    db.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trails": 3}, "trails"),
        ({"consent": "ok"}, "consent"),
        ({"catch": 0.9}, "catch"),
        ({"photos": "none"}, "folder"),
    ],
)
def test_a_wrong_study_is_a_wrong_setting_that_names_the_field(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(judging=write_study(tmp_path, **fields))


def test_a_study_of_a_model_that_is_not_served_does_not_start(toy_bundle: Path, tmp_path: Path) -> None:
    failures: list[Exception] = []
    settings = Settings(bundle=toy_bundle, judging=write_study(tmp_path, model="another"))
    app = create_app(settings, on_failure=failures.append)
    with TestClient(app) as client:
        while not failures:
            time.sleep(0.01)
        assert client.get("/health/ready").status_code == 503
    assert "'another', which is not served here" in str(failures[0])


def test_sessions_trials_and_choices_are_counted_once_by_kind(judged: TestClient) -> None:
    def counted() -> dict[str, float]:
        text = judged.get("/metrics", headers={"Authorization": "Bearer client"}).text
        found = re.findall(r'^alignet_judge_(\w+)_total\{\w+="(\w+)"\} (\S+)$', text, re.MULTILINE)
        return {f"{name} {label}": float(value) for name, label, value in found}

    zero = dict.fromkeys([f"{name} {kind}" for name in ("trials", "choices") for kind in KINDS], 0.0)
    assert counted() == zero | {"sessions begun": 0, "sessions withdrawn": 0}
    someone = Participant(judged)
    shown = someone.standing()["trial"]["trial"]
    someone.standing()  # a page that is loaded again
    assert counted() == zero | {"sessions begun": 1, "sessions withdrawn": 0, "trials practice": 1}
    assert [someone.answer(shown).json()["new"] for _ in range(2)] == [True, False]
    assert someone.finish() == 6
    both = {f"{name} {kind}": n for name in ("trials", "choices") for kind, n in zip(KINDS, (1, 4, 1), strict=True)}
    assert counted() == both | {"sessions begun": 1, "sessions withdrawn": 0}
    judged.post("/judge/withdraw", headers=someone.headers)
    assert counted() == both | {"sessions begun": 1, "sessions withdrawn": 1}


def test_without_a_study_none_of_it_is_exported(client: TestClient) -> None:
    assert "alignet_judge" not in client.get("/metrics").text
