"""The playground in a real Chromium, against a real service over the starter; a second one has limits and keys."""

import itertools
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import ROOT, free_port, need, replica, until
from tests.toy import encoded, photo, write_toy_bundle

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")

PHOTOS = [ROOT / "docs/photos" / name for name in ("cat.jpg", "raccoon.jpg", "rocket.jpg", "coffee.jpg")]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = need("chromium")
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("chromium")
    port = free_port()
    with replica(port, tmp_path_factory.mktemp("starter") / "log", "--cache-images", "100"):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that wants a key, takes two small images at once, and has two models."""
    need("chromium")
    folder, port = tmp_path_factory.mktemp("strict"), free_port()
    bundles = [write_toy_bundle(folder / name, seed, name) for seed, name in enumerate(("first", "second"))]
    given = ["--bundle", ",".join(map(str, bundles)), "--api-keys", "secret", "--max-images", "2"]
    with replica(port, folder / "log", *given, "--max-image-bytes", "20000", "--max-image-side", "100"):
        until(f"http://127.0.0.1:{port}/health/ready")
        yield f"http://127.0.0.1:{port}"


def at(browser: Any, url: str, **options: Any) -> Any:
    """The page of that URL in a context of its own; what goes wrong in it stands in `wrong`, requests in `asked`."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.asked, page.wrong = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda line: page.wrong.append(line.text) if "Content Security" in line.text else None)
    context.on("request", lambda request: page.asked.append(request))
    page.goto(url)
    return page


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """`opened(url, **context)`: the playground in a context of its own; no script of it may fail or be blocked."""
    pages = []

    def open_(url: str, **options: Any) -> Any:
        pages.append(at(browser, url, **options))
        return pages[-1]

    yield open_
    for page in pages:
        page.context.close()
        assert page.wrong == []


@pytest.fixture(scope="module")
def plain(browser: Any, service: str) -> Iterator[Any]:
    """The playground with the photos in it, which no test changes."""
    page = give(at(browser, service))
    yield page
    assert page.wrong == []


@pytest.fixture(scope="module")
def compared(browser: Any, service: str) -> Iterator[Any]:
    """The playground with the photos in the base space and what changed; tests only open what is closed."""
    page = give(at(browser, service, permissions=["clipboard-read", "clipboard-write"]))
    assert page.locator(".changed").count() == 0
    assert not any(b"base" in (request.post_data_buffer or b"")[-600:] for request in page.asked)  # not before
    page.get_by_text("Base", exact=True).click()
    page.locator("#map-changed").wait_for()
    yield page
    assert page.wrong == []


def give(page: Any, *files: Any) -> Any:
    """The page with these files chosen, when their results are there."""
    page.locator("#model-about").wait_for()
    page.set_input_files("#files", list(files or PHOTOS))
    page.locator("#heat").wait_for()
    return page


def answer(url: str, **body: Any) -> Any:
    """What the service answers to this JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)


def direct(service: str, path: str, files: list[Path], space: str = "aligned") -> Any:
    """What the service answers to these files, apart from the page: by curl, the other way in."""
    fields = [*(f"images=@{file}" for file in files), f"space={space}"]
    command = ["curl", "-sS", f"{service}/{path}", *(part for field in fields for part in ("-F", field))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)


def percent(share: float) -> str:
    return f"{share * 100:.1f}\u00a0%"


def heat(page: Any) -> np.ndarray:
    rows = page.locator("#heat tbody tr").all()
    return np.array([[float(text.replace("−", "-")) for text in row.locator("td").all_inner_texts()] for row in rows])


def chosen_names(page: Any) -> list[str]:
    return page.locator("#odd-view .third .name").all_inner_texts()


def test_the_odd_one_its_chances_entropy_and_pairs_are_the_services_own(service: str, plain: Any) -> None:
    page = plain
    (judged,) = direct(service, "odd-one-out", PHOTOS[:3])["results"]
    assert page.locator(".third .p").all_inner_texts() == [percent(p) for p in judged["probabilities"]]
    assert page.locator(".third.odd").get_attribute("data-index") == str(judged["odd_one_out"])
    assert page.locator("#entropy").inner_text() == f"{judged['entropy']:.3f} nats"
    assert page.locator("#entropy-share").inner_text() == percent(judged["entropy_normalized"])
    shown = page.locator("#pairs tbody td:nth-child(2)").all_inner_texts()
    assert [float(text.replace("−", "-")) for text in shown] == pytest.approx(judged["similarities"], abs=0.0006)
    names = [cell.locator(".unseen").all_text_contents() for cell in page.locator("#pairs tbody th").all()]
    cat, raccoon, rocket = (file.name for file in PHOTOS[:3])
    assert names == [[cat, raccoon], [cat, rocket], [raccoon, rocket]]
    assert page.locator("#pairs .best .unseen").all_text_contents() == [cat, raccoon]
    assert "rocket.jpg" in page.locator("#status").inner_text()
    assert "calibrated" in page.locator("#calibration").inner_text()


def test_the_heat_map_is_the_matrix_of_the_service(service: str, plain: Any) -> None:
    page = plain
    matrix = np.array(direct(service, "similarity", PHOTOS)["similarities"])
    np.testing.assert_allclose(heat(page), matrix, atol=0.0006)
    off = matrix - np.diag(np.full(4, np.inf))
    strongest = page.locator("td.heat-8").all_inner_texts()
    assert [float(text) for text in strongest] == pytest.approx([off.max()] * 2, abs=0.0006)


def test_the_map_shows_the_principal_components_and_says_how_much(service: str, plain: Any) -> None:
    page = plain
    matrix = np.array(direct(service, "similarity", PHOTOS)["similarities"])
    centring = np.eye(4) - 1 / 4
    values, vectors = np.linalg.eigh(centring @ matrix @ centring)
    expected = np.abs(vectors[:, :-3:-1] * np.sqrt(values[:-3:-1]))
    page.locator("#map-view summary").click()
    rows = page.locator("#map-table tbody tr").all()
    shown = [[float(text.replace("−", "-")) for text in row.locator("td").all_inner_texts()] for row in rows]
    np.testing.assert_allclose(np.abs(shown), expected, atol=0.0011)
    share = values[:-3:-1].sum() / values.clip(0).sum()
    assert f"{share * 100:.0f}\u00a0% of the variance" in page.locator("#map-share").inner_text()
    assert page.locator("#map-picture .mark").count() == 4


def test_the_mathematics_of_the_page_agrees_with_numpy(plain: Any) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 8))
    flat = vectors[:, :2] - vectors[:, :2].mean(0)
    angle = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])  # turned and mirrored
    given = [(vectors @ vectors.T).tolist(), (flat @ angle).tolist(), flat.tolist(), [2, 5, 2, 1]]
    found = plain.evaluate(
        """async ([gram, turned, flat, values]) => {
          const linear = await import("/pages/linear.js");
          return [linear.principal(gram), linear.turnedOnto(turned, flat), linear.ranks(values),
                  linear.correlation([1, 2, 3, 5], [2, 1, 4, 4])];
        }""",
        given,
    )
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0))
    np.testing.assert_allclose(np.abs(found[0]["points"]), np.abs(left[:, :2] * sizes[:2]), atol=1e-9)
    assert found[0]["share"] == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum())
    np.testing.assert_allclose(found[1], flat, atol=1e-9)
    assert found[2] == [2.5, 1, 2.5, 4]
    assert found[3] == pytest.approx(np.corrcoef([1, 2, 3, 5], [2, 1, 4, 4])[0, 1])


def test_the_toggle_shows_the_other_space_and_what_changed(service: str, compared: Any) -> None:
    page = compared
    spaces = {space: direct(service, "odd-one-out", PHOTOS[:3], space)["results"][0] for space in ("base", "aligned")}
    for space, judged in spaces.items():
        shown = page.locator(f'.chance[data-space="{space}"] .p').all_inner_texts()
        assert shown == [percent(p) for p in judged["probabilities"]]
    before, after = (percent(spaces[space]["entropy_normalized"]) for space in ("base", "aligned"))
    assert f"from {before} of ln 3 to {after}" in page.locator("#odd-changed").inner_text()
    np.testing.assert_allclose(heat(page), direct(service, "similarity", PHOTOS, "base")["similarities"], atol=0.0006)
    assert page.locator(".moves line").count() == 4


def test_the_pairs_that_changed_have_the_ranks_of_both_matrices(service: str, compared: Any) -> None:
    upper = np.triu_indices(4, 1)
    ranks = {}
    for space in ("base", "aligned"):
        values = np.array(direct(service, "similarity", PHOTOS, space)["similarities"])[upper]
        ranks[space] = (-values).argsort().argsort() + 1
    moved = np.abs(ranks["base"] - ranks["aligned"])
    rows = compared.locator("#matrix-changed tbody tr").all()
    assert len(rows) == (moved > 0).sum() > 0
    shown = [re.findall(r"\d+", " ".join(row.locator("td").all_inner_texts()[:2])) for row in rows]
    expected = [[str(ranks["base"][k]), str(ranks["aligned"][k])] for k in (-moved).argsort(kind="stable")[: len(rows)]]
    assert shown == expected


def test_everything_can_be_done_by_keyboard(service: str, opened: Open) -> None:
    page = opened(service)
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # before the key, or the browser shows its own
    page.locator("#model-about").wait_for()
    focused = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if name in (page.evaluate(focused) or ""):
                return
        raise AssertionError(f"Tab never came to {name}")

    tab_to("choose")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    choosers[0].set_files(PHOTOS)
    page.locator("#heat").wait_for()
    assert chosen_names(page) == ["cat.jpg", "raccoon.jpg", "rocket.jpg"]
    tab_to("Photo 4, coffee.jpg")
    page.keyboard.press("Space")  # takes the place of the one picked longest ago
    page.locator('.third .name:text-is("coffee.jpg")').wait_for()
    assert chosen_names(page) == ["raccoon.jpg", "rocket.jpg", "coffee.jpg"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#odd-view .empty").wait_for()
    assert page.evaluate(focused) == "Remove rocket.jpg"
    page.keyboard.press("Shift+Tab")
    page.locator('input[value="aligned"]').focus()
    page.keyboard.press("ArrowRight")
    page.locator("#matrix-changed").wait_for()
    assert page.locator('input[value="base"]').is_checked()


LUMINANCE = """(colour) => {
  const pixel = document.createElement("canvas").getContext("2d");
  pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_colour_of_the_heat_map(service: str, opened: Open, scheme: str) -> None:
    page = opened(service, color_scheme=scheme)
    colours = page.evaluate(
        """() => [...Array(9).keys()].map((k) => {
          const cell = document.createElement("td"); cell.className = `heat-${k}`;
          document.body.append(cell);
          const style = getComputedStyle(cell); return [style.backgroundColor, style.color];
        })"""
    )
    colours.append(
        [
            page.evaluate(f"getComputedStyle({where}).{what}")
            for where, what in (("document.body", "backgroundColor"), ("document.querySelector('.lead')", "color"))
        ]
    )
    for ground, ink in colours:
        light, dark = sorted((page.evaluate(LUMINANCE, colour) for colour in (ground, ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)
    assert (page.evaluate(LUMINANCE, colours[-1][0]) < 0.05) == (scheme == "dark")


def test_a_narrow_phone_needs_no_sideways_scrolling(service: str, opened: Open) -> None:
    page = opened(service, viewport={"width": 360, "height": 740})
    page.locator("#model-about").wait_for()
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(wide) == [360, 360]
    give(page, *PHOTOS * 7)
    page.locator("#compare").check()
    page.locator("#map-changed").wait_for()
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate(wide) == [360, 360]
    assert page.evaluate("document.querySelector('#heat').scrollWidth") > 360  # inside, it scrolls


def test_who_wants_no_motion_sees_none(plain: Any) -> None:
    duration = "getComputedStyle(document.querySelector('.mark')).transitionDuration"
    assert plain.evaluate(duration) == "0.5s"
    plain.emulate_media(reduced_motion="reduce")
    assert plain.evaluate(duration) == "0s"
    plain.emulate_media(reduced_motion="no-preference")


def test_no_request_leaves_the_host(service: str, opened: Open) -> None:
    page = give(opened(service))
    page.locator("#compare").check()
    page.locator("#map-changed").wait_for()
    urls = [request.url for request in page.asked if not request.url.startswith("blob:")]
    paths = [url.removeprefix(service) for url in urls]
    assert all(url.startswith(f"{service}/") for url in urls)
    assert {path for path in paths if not path.startswith("/pages/")} == {
        "/",
        "/models",
        "/models/starter",
        "/embed",
        "/odd-one-out",
        "/similarity",
    }
    assert paths.count("/embed") == 2  # one a space
    outside = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)"
    assert page.evaluate(outside) == "TypeError"
    assert not [request for request in page.asked if ":9/" in request.url]  # the policy stopped it before
    assert page.wrong
    assert all("127.0.0.1:9/" in line for line in page.wrong)
    page.wrong.clear()


def test_it_works_behind_a_path_of_a_proxy(service: str, opened: Open) -> None:
    page = opened("about:blank")

    def proxy(route: Any) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/alignet/", "/", 1)))

    page.route(f"{service}/alignet/**", proxy)
    page.goto(f"{service}/alignet/")
    page.locator("#model-about").wait_for()
    asked = {request.url for request in page.asked}
    assert f"{service}/alignet/models" in asked
    assert all(url.startswith((f"{service}/alignet/", "about:")) for url in asked)


def copied(page: Any, view: str, language: str) -> str:
    """What the Copy button of that code puts into the clipboard."""
    block = page.locator(f"#{view}-code")
    if not block.locator(".code").is_visible():
        block.locator("summary").click()
    block.get_by_text(language, exact=True).click()
    block.locator("button").click()
    block.get_by_role("button", name="Copied").wait_for()
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_the_code_and_requests_give_the_numbers_shown(service: str, compared: Any) -> None:
    page = compared
    shown = {view: json.loads(copied(page, view, "Reply")) for view in ("odd", "matrix")}
    near = {"abs": 1e-6, "rel": 1e-5}

    def run(text: str, *command: str) -> str:
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, text], cwd=PHOTOS[0].parent, env=variables, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    for view, field in (("odd", "results"), ("matrix", "similarities")):
        path = {"odd": "odd-one-out", "matrix": "similarity"}[view]
        assert answer(f"{service}/{path}", **json.loads(copied(page, view, "Request"))) == shown[view]
        assert json.loads(run(copied(page, view, "curl"), "bash", "-c"))[field] == shown[view][field]
    numbers = [
        float(text)
        for text in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", run(copied(page, "odd", "Python"), sys.executable, "-c"))
    ]
    (judged,) = shown["odd"]["results"]
    expected = [*judged["probabilities"], *judged["similarities"], judged["entropy"], judged["entropy_normalized"]]
    assert numbers == pytest.approx(expected, **near)
    program = copied(page, "map", "Python").replace("print(points, ", "print(found.matrix.tolist(), points[0, 0], ")
    text = run(program, sys.executable, "-c")
    matrix, share = json.loads(text[: text.index("]]") + 2]), float(text.split()[-1])
    np.testing.assert_allclose(matrix, shown["matrix"]["similarities"], atol=1e-5)
    assert f"{share * 100:.0f}\u00a0% of the variance" in page.locator("#map-share").inner_text()


def test_another_similarity_is_in_the_heat_map_the_map_and_their_code(service: str, opened: Open) -> None:
    page = give(opened(service, permissions=["clipboard-read", "clipboard-write"]))
    before = page.locator(".third .p").all_inner_texts()
    page.get_by_label("Similarity, of the heat map and the map").select_option("cosine")
    page.get_by_text("cosine similarity, aligned space", exact=True).last.wait_for()
    np.testing.assert_allclose(np.diag(heat(page)), 1)  # as no dot product here has it
    request = json.loads(copied(page, "matrix", "Request"))
    assert request["kernel"] == "cosine"
    np.testing.assert_allclose(heat(page), answer(f"{service}/similarity", **request)["similarities"], atol=0.0006)
    assert "kernel=cosine" in copied(page, "matrix", "curl")
    for view in ("matrix", "map"):
        assert 'kernel="cosine")' in copied(page, view, "Python")
    assert "cosine similarities above" in page.locator("#map-view").inner_text()
    assert "kernel" not in json.loads(copied(page, "odd", "Request"))
    assert page.locator(".third .p").all_inner_texts() == before


def test_names_of_files_are_text_for_the_page_the_shell_and_python(service: str, opened: Open, tmp_path: Path) -> None:
    names = ['it\'s "one"; $(touch x), `b`.jpg', "<img src=x onerror=alert(1)>.jpg", "back\\slash é.jpg"]
    for name, source in zip(names, PHOTOS, strict=False):
        (tmp_path / name).write_bytes(source.read_bytes())
    page = give(
        opened(service, permissions=["clipboard-read", "clipboard-write"]), *(tmp_path / name for name in names)
    )
    assert chosen_names(page) == names
    shown = json.loads(copied(page, "odd", "Reply"))["results"]
    for language, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        text = copied(page, "odd", language)
        done = subprocess.run(
            [*command, text], cwd=tmp_path, env=variables, capture_output=True, timeout=60, check=True
        )
        assert str(shown[0]["probabilities"][0])[:6] in done.stdout.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_key_is_asked_for_kept_in_the_tab_and_never_in_a_url(strict: str, opened: Open) -> None:
    page = opened(strict)
    page.locator("#key-form").wait_for()
    page.locator("#key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("This key was refused").wait_for()
    page.locator("#key").fill("secret")
    page.keyboard.press("Enter")
    page.locator("#model-about").wait_for()
    page.reload()
    give(page, *({"name": f"{seed}.png", "mimeType": "image/png", "buffer": encoded(photo(seed))} for seed in range(3)))
    assert not page.locator("#key-form").is_visible()
    assert page.evaluate("[document.cookie, Object.keys(localStorage).length]") == ["", 0]
    assert not [request for request in page.asked if "secret" in request.url]
    assert opened(strict).locator("#key-form").wait_for() is None  # another tab is asked again


@pytest.fixture
def inside(strict: str, opened: Open) -> Any:
    """The page of the strict service, with its key."""
    page = opened(strict)
    page.locator("#key").fill("secret")
    page.keyboard.press("Enter")
    page.locator("#model-about").wait_for()
    return page


def upload(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def test_what_is_over_a_limit_is_not_sent_and_what_the_service_refuses_is_named(inside: Any) -> None:
    good = [upload(f"{seed}.png", encoded(photo(seed))) for seed in range(5)]
    large = upload("large.png", encoded(photo(1), "PNG") + bytes(30_000))
    long = upload("long.png", encoded(photo(1, (120, 20))))
    broken = upload("broken.png", b"no image at all")
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"}
    inside.locator("#model-about").wait_for()
    inside.set_input_files("#files", [*good[:2], large, long, text])
    inside.get_by_text("large.png:").wait_for()
    said = inside.locator("#faults").inner_text()
    assert "large.png: it has 31 kB; this service takes 20 kB at most." in said
    assert "long.png: it is 120 × 20 pixels; this service takes sides up to 100." in said
    assert "notes.txt: this is not an image." in said
    give(inside, broken, *good[2:])
    inside.get_by_text("broken.png:").wait_for()
    assert "An image has a format that is not read here" in inside.locator("#faults").inner_text()
    inside.locator("#heat tbody tr:nth-child(5)").wait_for()
    assert heat(inside).shape == (5, 5)
    assert [request.url.rpartition("/")[2] for request in inside.asked].count("embed") == 3  # two images in each
    inside.locator("#matrix-code summary").click()
    assert "more than one request may have" in inside.locator("#matrix-text").inner_text()


def test_photos_can_be_dropped_and_pasted(inside: Any) -> None:
    for how, seeds in (("drop", [0, 1]), ("paste", [2])):
        inside.evaluate(
            """([how, files]) => {
              const held = new DataTransfer();
              for (const [name, bytes] of files) {
                held.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
              }
              const event = how === "drop" ? new DragEvent("drop", { dataTransfer: held, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: held });
              window.dispatchEvent(event);
            }""",
            [how, [[f"{how}-{seed}.png", list(encoded(photo(seed)))] for seed in seeds]],
        )
    inside.locator("#odd-view .third").nth(2).wait_for()
    assert chosen_names(inside) == ["drop-0.png", "drop-1.png", "paste-2.png"]


def test_another_model_is_asked_when_it_is_chosen(inside: Any) -> None:
    give(inside, *(upload(f"{seed}.png", encoded(photo(seed))) for seed in range(3)))
    first = heat(inside)
    inside.locator("#model").select_option("second")
    inside.get_by_text("Model second").wait_for()
    with inside.expect_response("**/similarity") as reply:
        pass
    assert reply.value.json()["model"] == "second"
    inside.wait_for_function("(old) => document.querySelector('#heat').innerText !== old", arg="")
    inside.wait_for_timeout(100)
    np.testing.assert_allclose(heat(inside), reply.value.json()["similarities"], rtol=0.01, atol=0.01)
    assert not np.allclose(heat(inside), first)


def test_a_busy_service_is_asked_again_and_a_model_replaced_meanwhile_is_embedded_anew(
    service: str, opened: Open
) -> None:
    page = opened(service)
    refusals = iter([(429, "overloaded"), (409, "space_mismatch")])

    def refuse(route: Any) -> None:
        if (refusal := next(refusals, None)) is None:
            return route.continue_()
        body = json.dumps({"code": refusal[1], "title": "no", "detail": "not now"})
        return route.fulfill(status=refusal[0], headers={"Retry-After": "1"}, body=body)

    page.route("**/similarity", refuse)
    give(page)
    asked = [request.url.removeprefix(f"{service}/") for request in page.asked]
    assert (asked.count("similarity"), asked.count("embed")) == (3, 2)
    np.testing.assert_allclose(heat(page), direct(service, "similarity", PHOTOS)["similarities"], atol=0.0006)


def test_a_service_that_is_gone_is_said_so_and_can_be_tried_again(service: str, opened: Open) -> None:
    page = opened(service, viewport={"width": 390, "height": 844})
    page.locator("#model-about").wait_for()
    page.route("**/embed", lambda route: route.abort())
    page.set_input_files("#files", PHOTOS)
    page.get_by_text("The service did not answer").wait_for()
    box = page.locator("#faults").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 844  # seen on a phone without scrolling
    page.unroute("**/embed")
    page.get_by_role("button", name="Try again").click()
    page.locator("#heat").wait_for()
    assert not page.locator("#faults").is_visible()


def test_all_that_can_be_used_or_read_has_a_name_and_headings_are_in_order(compared: Any) -> None:
    page = compared
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "checkbox", "radio", "link", "table", "region", "image", "list", "columnheader", "rowheader"}
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert {role for role, _ in found} >= {"button", "radio", "table", "image", "rowheader", "status"}
    assert not [role for role, name in found if role in named - {"list"} and not name.strip()]
    assert ("columnheader", "raccoon.jpg") in found
    pressed = [node for node in nodes if any(p["name"] == "pressed" for p in node.get("properties", []))]
    assert len(pressed) == 4
    levels = [
        int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => h.tagName)")
    ]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
