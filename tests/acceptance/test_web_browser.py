"""The page of `zsmld serve` in a real Chromium.

With ZSMLD_SERVE_IMAGES=docs/images it takes the pictures that docs/serve.md shows.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from PIL import Image
from stand_ins import bomb

from zsmld import build_dataset
from zsmld.web.page import SHOW_ATTENTION

selenium = pytest.importorskip("selenium")
pytest.importorskip("gradio")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IMAGES = os.environ.get("ZSMLD_SERVE_IMAGES")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.timeout(900),
]


class Page:
    """A browser with the page open, and what a person does with it."""

    def __init__(self, address: str, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--window-size=1000,1400",
            "--hide-scrollbars",
        ):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.address = address
        self.asked: set[str] = set()

    def close(self) -> None:
        """The end; until then nobody else was asked for anything."""
        addresses = self.collect_requests()
        self.driver.quit()
        assert {urlsplit(a).netloc for a in addresses if not a.startswith(("data:", "blob:"))} == {
            urlsplit(self.address).netloc
        }

    def open(self) -> None:
        self.driver.get(self.address)
        self.until(lambda: self.cards())

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def cards(self) -> list[Any]:
        return self.all("#results article")

    def until(self, condition: Callable[[], Any], seconds: float = 90) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                found = condition()
            except Exception as error:
                found, failure = None, error
            else:
                failure = None
            if found:
                return found
            if time.monotonic() > end:
                said = [entry["message"] for entry in self.driver.get_log("browser")]
                raise AssertionError(f"page shows: {self.find('body').text[:2000]}; {said}") from failure
            time.sleep(0.1)

    def type_words(self, text: str) -> None:
        box = self.find("#words textarea")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text)
        self.find("#score").click()

    def bars(self, card: int = 0) -> dict[str, float]:
        """Words of a card, with their scores; those that are folded away too."""
        script = """return [...document.querySelectorAll('#results article')[arguments[0]]
            .querySelectorAll('li[data-score]')].map((row) =>
            [row.querySelector('bdi').textContent, Number(row.dataset.score)])"""
        return dict(self.driver.execute_script(script, card))

    def marked(self, card: int = 0) -> set[str]:
        script = """return [...document.querySelectorAll('#results article')[arguments[0]]
            .querySelectorAll('li.reached bdi')].map((word) => word.textContent)"""
        return set(self.driver.execute_script(script, card))

    def choose_folder(self, path: Path) -> None:
        self.find("#folder input[type=file], input[webkitdirectory]").send_keys(str(path))

    def drop(self, *paths: Path) -> None:
        self.find("#drop input[type=file]").send_keys("\n".join(map(str, paths)))

    def clear(self) -> None:
        self.find("#clear").click()
        self.until(lambda: not self.cards())

    def notes(self) -> str:
        return str(self.find("#notes").get_attribute("textContent"))

    def collect_requests(self) -> set[str]:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                self.asked.add(message["params"].get("url") or message["params"]["request"]["url"])
        return self.asked

    def shoot(self, name: str) -> None:
        """Keep a picture for the documentation, if one is wanted."""
        if IMAGES:
            file = Path(IMAGES, f"serve_{name}.png")
            self.driver.save_screenshot(str(file))
            Image.open(file).convert("RGB").quantize(255, kmeans=1, dither=Image.Dither.NONE).save(file, optimize=True)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder for temporary files."""
    return tmp_path_factory.mktemp("tmp")


def uploaded(temporary: Path) -> list[Path]:
    """What is left of uploads; gradio leaves empty files, which the next event sweeps."""
    files = temporary.glob("zsmld-serve-*/uploads/**/*")
    return [path for path in files if path.is_file() and path.stat().st_size]


@pytest.fixture(scope="module")
def served(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`zsmld serve` with the model that comes with it; at the end Ctrl-C must end it cleanly."""
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "zsmld", "serve", "--port", "0", "--device", "cpu"]
    # A proxy that nobody answers: whatever wants to leave this machine fails.
    environment = os.environ | {"TMPDIR": str(temporary), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment["ZSMLD_CACHE"] = str(cache)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line + process.stderr.read()
        try:
            yield found[0]
        finally:
            left = uploaded(temporary)
            with urlopen(f"{found[0]}gradio_api/heartbeat/open"):  # as an open page does
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)  # whoever presses it twice
                output, errors = process.communicate(timeout=60)
    assert (process.returncode, output.strip(), errors) == (0, "zsmld serve: ended", "")
    assert left == []
    assert not list(temporary.glob("zsmld-serve-*")) and not list(cache.iterdir())  # no typed word stays


@pytest.fixture(scope="module")
def browser(served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(served, tmp_path_factory.mktemp("downloads"))
    yield page
    page.close()


@pytest.fixture
def page(browser: Page) -> Page:
    browser.driver.set_window_size(1000, 1400)
    browser.open()
    return browser


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A picture with two objects, one of them of an unseen word."""
    scenes = build_dataset("scenes", split="test", num_images=50, image_size=256)
    words = [{scenes.vocabulary.words[j] for j in scenes.targets[i].indices} for i in range(len(scenes))]
    number = next(i for i, found in enumerate(words) if found & set(scenes.vocabulary.unseen) and len(found) == 2)
    path = tmp_path / f"{' and '.join(sorted(words[number]))}.png"
    scenes[number]["image"].save(path)
    return path


def unseen_word(path: Path) -> str:
    vocabulary = build_dataset("scenes", split="test", num_images=1).vocabulary
    return next(word for word in path.stem.split(" and ") if word in vocabulary.unseen)


def test_opens_with_examples_and_asks_nobody_else(page: Page) -> None:
    assert len(page.cards()) == 3
    assert page.find("#results i.trained") and page.find("#results i:not(.trained)")
    page.shoot("page")
    assert len(page.collect_requests()) > 10  # `close` looks at them
    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_upload_a_picture_type_a_new_word_and_look_where_it_is(page: Page, scene: Path) -> None:
    page.clear()
    page.drop(scene)
    page.until(lambda: len(page.cards()) == 1)
    word = unseen_word(scene)
    page.type_words("kite")
    page.until(lambda: "kite" in page.bars())
    assert word not in page.bars()

    page.type_words(f"{word}, turquoise dodecahedron")
    bars = page.until(lambda: page.bars() if word in page.bars() else None)
    assert len(bars) == 82 and bars[word] > 0.5 > bars["turquoise dodecahedron"]
    row = next(
        r for r in page.all("#results > * article > div > ol li, #results article > div > ol li") if word in r.text
    )
    assert row.find_element(By.CSS_SELECTOR, "i:not(.trained)")
    width = page.driver.execute_script(
        "const b = arguments[0]; return b.querySelector('.bar').offsetWidth / b.offsetWidth", row
    )
    assert width == pytest.approx(bars[word], abs=0.02)

    image = page.find("#results article img")
    plain = image.get_attribute("src")
    row.find_element(By.TAG_NAME, "button").click()
    page.until(lambda: image.get_attribute("src") != plain)
    assert word in page.find("#results .shown").text
    assert row.find_element(By.TAG_NAME, "button").get_attribute("aria-pressed") == "true"
    page.shoot("attention")
    page.find("#results .back").click()
    assert image.get_attribute("src") == plain and not page.find("#results .shown").is_displayed()


def test_slider_changes_the_marks_and_the_download(page: Page, scene: Path, tmp_path_factory: Any) -> None:
    page.clear()
    page.drop(scene)
    page.until(lambda: len(page.cards()) == 1)
    bars = page.bars()
    assert page.marked() == {word for word, score in bars.items() if score >= 0.5}
    box = page.find("#threshold input[type=number]")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("0.95", Keys.TAB)
    wanted = {word for word, score in bars.items() if score >= 0.95}
    page.until(lambda: page.marked() == wanted)
    assert 0 < len(wanted) < sum(score >= 0.5 for score in bars.values())

    # Headless Chromium says where it puts a download only to its own protocol.
    folder = tmp_path_factory.mktemp("saved")
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.find("#download").click()
    file = page.until(lambda: next((path for path in folder.glob("words*.csv")), None))
    (record,) = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    assert record["path"] == scene.name and record["error"] == ""
    assert set(record["words"].split("|")) == wanted
    assert [float(score) for score in record["scores"].split("|")] == sorted(
        (pytest.approx(score) for score in bars.values() if score >= 0.95), key=lambda a: -a.expected
    )


def test_folder(page: Page, tmp_path: Path) -> None:
    page.clear()
    (tmp_path / "below").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (80 * number, 90, 90)).save(tmp_path / "below" / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    page.choose_folder(tmp_path)
    page.until(lambda: len(page.cards()) == 3)
    assert "Files of the folder that are no pictures were left out: 1." in page.notes()
    assert [element.text for element in page.all("#results .name")] == ["0.png", "1.png", "2.png"]


def test_a_folder_of_a_thousand_files(page: Page, temporary: Path, tmp_path: Path) -> None:
    page.clear()
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 140, 40)).save(file, "PNG")
    for number in range(1000):
        (tmp_path / f"a picture with quite a long name, as cameras and people write them {number:04}.png").write_bytes(
            file.getvalue()
        )
    page.choose_folder(tmp_path)
    page.until(lambda: len(page.cards()) == 50, 180)
    assert "A page has at most 50 pictures, 950 found no room; remove those that are here, or score" in page.notes()
    assert page.find("#results .name").text.endswith("0000.png") and uploaded(temporary) == []

    page.clear()
    (tmp_path / "one more.png").write_bytes(file.getvalue())
    page.choose_folder(tmp_path)
    said = page.until(lambda: page.find("#refused").text)
    assert said == (
        "At most 1,000 files can be sent at once, got 1,001; choose fewer, or score them with zsmld predict."
    )
    assert page.find("#refused").is_displayed() and not page.cards()
    page.drop(tmp_path / "one more.png")  # the page goes on
    page.until(lambda: len(page.cards()) == 1)
    assert not page.find("#refused").is_displayed()


def test_files_that_are_too_much_together(page: Page, scene: Path, tmp_path: Path) -> None:
    page.clear()
    (tmp_path / "large").mkdir()
    for number in range(51):
        with (tmp_path / "large" / f"{number}.bmp").open("wb") as file:
            file.truncate(20 * 2**20)
    page.choose_folder(tmp_path / "large")
    said = page.until(lambda: page.find("#refused").text)
    assert said == "At most 1,049 MB can be sent at once, got 1,070 MB; choose fewer, or score them with zsmld predict."
    page.drop(scene)
    page.until(lambda: len(page.cards()) == 1)


def test_uploads_have_room_or_a_sentence_and_leave_nothing(
    page: Page, served: str, temporary: Path, scene: Path
) -> None:
    page.clear()
    (folder,) = temporary.glob("zsmld-serve-*/uploads")
    with socket.create_connection(("127.0.0.1", urlsplit(served).port)) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(200_000)
        )
        page.until(lambda: list(folder.rglob("a.png")))
    page.until(lambda: not list(folder.rglob("a.png")))  # broken off

    full = folder / "of others" / "0" / "a.png"
    full.parent.mkdir(parents=True)
    try:
        with full.open("wb") as file:
            file.truncate(2_200_000_000)  # without a byte on the disk
        page.drop(scene)
        said = page.until(lambda: page.find(".toast-body").text)
        assert "There is no room for more uploads at the moment; try again in a minute." in said
    finally:
        shutil.rmtree(folder / "of others")
    page.open()
    page.clear()
    page.drop(scene)
    page.until(lambda: len(page.cards()) == 1)


def test_a_late_answer_is_not_shown_for_another_word(page: Page) -> None:
    card = page.find("#results article")
    key, image = card.get_attribute("data-picture"), card.find_element(By.TAG_NAME, "img")
    plain, other = image.get_attribute("src"), page.all("#results img")[1].get_attribute("src")

    def arrive(picture: str, word: str) -> str:
        answer = {"picture": picture, "word": word, "uri": other}
        page.driver.execute_script(f"({SHOW_ATTENTION})(arguments[0])", answer)
        return str(page.find("#results article img").get_attribute("src"))

    page.type_words("kite, lamp")
    page.until(lambda: "lamp" in page.bars())
    page.type_words("lamp")
    page.until(lambda: "kite" not in page.bars())
    assert arrive(key, "kite") == plain and arrive("0", "lamp") == plain
    assert arrive(key, "lamp") == other and "where it looked for “lamp”" in page.find("#results .shown").text


def test_what_cannot_be_scored_ends_in_a_sentence_and_the_page_lives_on(page: Page, scene: Path) -> None:
    page.clear()
    bad, huge = scene.with_name("holiday.jpg"), scene.with_name("poster.png")
    bad.write_text("<script>document.title = 'taken'</script>")
    huge.write_bytes(bomb(20_000))
    assert huge.stat().st_size < 200_000
    page.drop(bad, huge, scene)
    page.until(lambda: len(page.cards()) == 3)
    text = page.find("#results").text
    assert "holiday.jpg must be a picture, its format is not known; choose a JPEG or PNG file" in text
    assert "poster.png must have at most 50,000,000 pixels; make it smaller" in text
    assert len(page.bars(2)) >= 80
    page.shoot("errors")

    large = scene.with_name("large.bmp")
    large.write_bytes(b"BM" + bytes(21 * 2**20))
    page.drop(large)
    said = page.until(lambda: page.find(".toast-body").text)
    assert 'exceed the maximum allowed size of 20.0 Mb: "large.bmp"' in said.replace("MB", "Mb")
    page.clear()
    page.drop(scene)
    page.until(lambda: len(page.cards()) == 1 and page.bars())


def test_words_are_text_and_never_markup(page: Page) -> None:
    word = "<img src=x onerror=document.title='taken'>{{value}}${1+1}"
    page.type_words(word)
    page.until(lambda: word in page.bars())
    page.find("#results button[data-label='80']").click()
    page.until(lambda: page.find("#results .shown").is_displayed())
    assert word in page.find("#results .shown").text
    assert page.driver.title != "taken" and not page.all("#results img[src='x']")
    words = ["☃", "שלום עולם", "</bdi><b>bold</b>", "χθες"]
    page.type_words(f"{words[0]}, {words[1]}\n{words[2]}\n\n{words[3]},")  # a browser types a new line at each \n
    page.until(lambda: set(words) <= set(page.bars()))
    assert not page.all("#results bdi b")
    page.type_words("a" * 101)
    page.until(lambda: "at most 100 characters" in page.notes())


def test_two_visitors_have_their_own_words(page: Page, served: str, tmp_path: Path) -> None:
    other = Page(served, tmp_path)
    try:
        other.open()
        page.type_words("striped zebra")
        other.type_words("old boat")
        page.until(lambda: "striped zebra" in page.bars())
        other.until(lambda: "old boat" in other.bars())
        assert "old boat" not in page.bars() and "striped zebra" not in other.bars()
    finally:
        other.close()


def test_phone(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.driver.refresh()
        page.until(lambda: page.cards())
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        card, words = page.find("#results article figure"), page.find("#results article ol")
        assert words.rect["y"] > card.rect["y"] + card.rect["height"] - 1  # below, not beside
        page.driver.execute_script("document.querySelector('#results').scrollIntoView()")
        page.shoot("phone")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
