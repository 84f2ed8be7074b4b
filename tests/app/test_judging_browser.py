"""A session of a study in a real Chromium: by keyboard, on a phone, through a lost connection."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import free_port, need, replica, until
from tests.study import write_study

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def study(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a running study, and its database: a practice trial, four that count, one catch, one break."""
    need("chromium")
    folder, port = tmp_path_factory.mktemp("study"), free_port()
    file = write_study(folder, break_every=3, fixation_ms=150)
    with replica(port, folder / "log", "--bundle", str(toy_bundle), "--judging", str(file)):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"http://127.0.0.1:{port}/judge", folder / "study-data/judgments.sqlite"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=need("chromium"), args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, study: tuple[str, Path]) -> Iterator[Any]:
    """The page of the study on a small phone; no script may fail in it."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 360, "height": 700}, reduced_motion="reduce")
    found = context.new_page()
    found.set_default_timeout(20_000)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
    found.goto(study[0])
    yield found
    context.close()
    assert wrong == []


def begin(page: Any) -> None:
    """Through consent and instructions, by the keyboard alone."""
    page.locator("#agreed").wait_for()
    assert page.locator("#begin").is_disabled()
    page.locator("#agreed").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.locator("#start").wait_for()
    page.keyboard.press("Enter")


def answer(page: Any, key: str) -> str:
    """Wait for the photos, press a key, wait for what comes next; where that was."""
    page.locator("#three button:enabled").first.wait_for()
    page.wait_for_function("document.activeElement.id === 'three'")  # the onset has been
    where = str(page.locator("#where").inner_text())
    page.keyboard.press(key)
    page.wait_for_function("() => !document.querySelector('#three button:enabled')")
    return where


def stored(study: tuple[str, Path]) -> list[Any]:
    db = sqlite3.connect(study[1])
    query = "SELECT kind, odd, rt_ms, server_ms, input FROM trials JOIN sessions USING (session) WHERE answered"
    rows = list(db.execute(f"{query} AND sessions.number = (SELECT max(number) FROM sessions) ORDER BY trials.number"))
    db.close()
    return rows


def test_a_session_by_keyboard_from_consent_to_thanks(page: Any, study: tuple[str, Path]) -> None:
    begin(page)
    assert answer(page, "1") == "Practice 1 of 1"
    page.locator("#next").wait_for()
    assert page.locator("#feedback-text").inner_text()
    page.keyboard.press("Enter")
    for i, key in enumerate(("ArrowLeft", "2", "ArrowRight", "3", "ArrowDown")):
        if i == 3:
            page.locator("#pause").wait_for()
            page.keyboard.press("Enter")
        assert answer(page, key) == f"{i + 2} of 6"
    page.locator("#end").wait_for()
    assert page.locator("#summary dd").first.inner_text() == "4"
    rows = stored(study)
    assert [row[1] for row in rows] == [0, 0, 1, 2, 2, 1]
    assert all(0 <= rt <= server and by == "key" for _, _, rt, server, by in rows)


def test_the_photos_fit_on_a_small_phone_and_are_named_for_screen_readers(page: Any) -> None:
    begin(page)
    page.locator("#three button:enabled").first.wait_for()
    boxes = [button.bounding_box() for button in page.locator("#three button").all()]
    assert len(boxes) == 3 and all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)
    assert boxes[2]["y"] + boxes[2]["height"] <= 700 and all(box["height"] > 120 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for place in ("first", "second", "third"):
        assert page.get_by_role("button", name=f"The {place} photo is the odd one").count() == 1
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_a_key_before_the_photos_is_not_an_answer(page: Any, study: tuple[str, Path]) -> None:
    page.route("**/judge/photo/*", lambda route: (page.wait_for_timeout(300), route.continue_()))
    begin(page)
    page.locator("#cross").wait_for()
    page.keyboard.press("1")
    page.locator("#three button:enabled").first.wait_for()
    assert stored(study) == []


def test_an_answer_is_sent_again_when_the_connection_is_lost_and_stored_once(
    page: Any, study: tuple[str, Path]
) -> None:
    lost: list[str] = []

    def lose(route: Any) -> None:
        if len(lost) == 1:
            route.fetch()  # it arrives, and its reply does not
        if len(lost) < 2:
            lost.append(route.request.post_data)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/judge/choice", lose)
    begin(page)
    answer(page, "2")
    page.locator("#next").wait_for()
    assert len(lost) == 2 and len(stored(study)) == 1


def test_the_page_goes_on_after_it_is_loaded_again_and_answers_can_be_deleted(page: Any) -> None:
    begin(page)
    answer(page, "2")
    page.locator("#next").wait_for()
    page.reload()
    page.locator("#pause").wait_for()
    assert "1 of 6" in page.locator("#pause-text").inner_text()
    page.locator("#pause [data-withdraw]").click()
    page.locator("#delete").click()
    page.get_by_text("Your answers are deleted").wait_for()
    page.reload()
    page.locator("#consent").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
