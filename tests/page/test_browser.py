"""The chat page in headless Chromium: what a user does, and what the user sees.

`VILA_SCREENSHOTS=docs/assets nox -s page -- -k screenshots` draws the pictures of the docs again.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from tests.page.conftest import MEDIA
from tests.running_server import RunningServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and chromedriver (apt-get install chromium chromium-driver)"
)
WIDE, PHONE = (1280, 800), (400, 800)
LONG = json.dumps({"type": "array", "items": {"enum": ["again"]}, "minItems": 1500})
Result = TypeVar("Result")


def wait(condition: Callable[[], Result], seconds: float = 300) -> Result:
    """Return the first true result of `condition`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := condition():
                return result
        except WebDriverException:
            pass
        assert time.monotonic() < deadline, "the page did not get there"
        time.sleep(0.05)


class Browser:
    """A browser with the page open."""

    def __init__(self, url: str, size: tuple[int, int], dark: bool, languages: str = "en"):
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={size[0]},{size[1]}")
        options.add_experimental_option("prefs", {"intl.accept_languages": languages})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.binary_location = str(CHROMIUM)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get(url)
        wait(lambda: self.one("#box textarea").is_displayed())
        wait(lambda: self.has_loaded("queue/data"))  # the language of the browser has arrived

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, role: str) -> list[str]:
        """Return the texts of the messages of the user or the bot."""
        return [one.text.strip() for one in self.all(f"#chat .{role}.message") if one.text.strip()]

    @property
    def status(self) -> str:
        return self.one("#status").text

    def attach(self, *names: str) -> None:
        self.one("#box input[type=file]").send_keys("\n".join(str(MEDIA / name) for name in names))
        wait(lambda: len(self.all("#box .thumbnail-item, #box .thumbnails img, #box .thumbnails button")) >= len(names))

    def ask(self, text: str) -> None:
        self.one("#box textarea").send_keys(text)
        self.one("#box .submit-button").click()

    def answered(self, count: int) -> str:
        """Wait for the answer number `count` and return it."""
        wait(lambda: len(self.texts("bot")) == count and "token" in self.status)
        return self.texts("bot")[-1]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the screen."""
        return int(self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth"))

    def has_loaded(self, part: str) -> bool:
        """Return whether a request whose address contains `part` has ended."""
        script = "return performance.getEntriesByType('resource').map(one => one.name)"
        return any(part in address for address in self.driver.execute_script(script))

    def complaints(self) -> list[str]:
        """Return errors in the browser's console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def open_page(server: RunningServer) -> Iterator[Callable[..., Browser]]:
    opened = list[Browser]()

    def start(size: tuple[int, int] = WIDE, *, dark: bool = False, languages: str = "en") -> Browser:
        opened.append(Browser(server.url, size, dark, languages))
        return opened[-1]

    yield start
    for browser in opened:
        browser.driver.quit()


def test_upload_ask_stream_and_follow_up(open_page: Callable[..., Browser]):
    page = open_page()
    page.attach("scene.png")
    page.ask("What is in the picture?")
    assert page.answered(1) == "A pink diamond (top), a green moon (left), a yellow circle (bottom right)."
    assert "first token after" in page.status
    assert "tokens/s" in page.status
    assert page.one("#chat .user.message img").size["width"] > 20
    assert len(page.all("#seen .seen-tiles img")) == 1
    page.ask("Describe the picture.")
    assert page.answered(2)
    assert page.texts("user") == ["What is in the picture?", "Describe the picture."]
    assert page.complaints() == []


def test_several_media_in_one_turn(open_page: Callable[..., Browser]):
    page = open_page()
    page.attach("pair-1.png", "pair-2.png")
    page.ask("Which picture has more objects?")
    assert page.answered(1) == "first"
    assert len(page.all("#seen .seen-medium")) == 2


def test_an_example_and_a_video(open_page: Callable[..., Browser]):
    page = open_page()
    page.all("#chat .example")[3].click()
    assert page.answered(1) == "right"
    assert page.all("#chat .user.message video")
    assert len(page.all("#seen .seen-tiles img")) > 1


def test_a_long_answer_streams_and_can_be_stopped(open_page: Callable[..., Browser], server: RunningServer):
    page = open_page()
    set_schema(page, LONG)
    page.ask("Hello")
    first = wait(lambda: page.texts("bot"))[-1]
    grown = wait(lambda: next((text for text in page.texts("bot") if len(text) > len(first)), None))
    assert grown.startswith(first.rstrip("…"))
    page.one("#box .stop-button").click()
    wait(lambda: page.status == "Stopped", 60)
    assert "Error" not in page.one("#conversation").text
    wait(lambda: server.requests == 0, 60)
    kept = page.texts("bot")[-1]
    time.sleep(1)
    assert page.texts("bot")[-1] == kept
    set_schema(page, "")
    page.ask("What is red?")
    page.answered(2)


def set_schema(page: Browser, schema: str) -> None:
    box = "#schema textarea"
    if not page.all(box):
        page.all("#side button.label-wrap")[1].click()
        wait(lambda: page.one(box).is_displayed())
    page.one(box).send_keys(Keys.CONTROL, "a")
    page.one(box).send_keys(schema or Keys.DELETE)
    page.one("#schema").click()
    time.sleep(0.5)


def answers(server: RunningServer) -> float:
    """Return how many answers the server has ended."""
    counts = re.findall(r"^vila_answers_total{.*} ([0-9.]+)", httpx2.get(f"{server.url}/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


def test_retry_and_edit(open_page: Callable[..., Browser], server: RunningServer):
    page = open_page()
    page.all("#chat .example")[1].click()
    assert page.answered(1) == "yellow"
    before = answers(server)
    page.one("#chat button[aria-label='Retry']").click()
    wait(lambda: answers(server) == before + 1)
    assert page.answered(1) == "yellow"
    page.one("#chat button[aria-label='Undo']").click()
    wait(lambda: page.one("#box textarea").get_attribute("value") == "What color is the highest bar?")
    assert page.texts("user") == []
    page.one("#box textarea").send_keys(Keys.CONTROL, "a")
    page.ask("How many bars are there?")
    assert page.answered(1)
    assert page.texts("user") == ["How many bars are there?"]
    assert page.all("#chat .user.message img"), "the picture of the question is kept"


def test_a_wrong_file_keeps_the_question(open_page: Callable[..., Browser], tmp_path: Path):
    page = open_page()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.attach(str(broken))
    page.ask("What is it?")
    wait(lambda: page.all("#status .error"))
    assert page.one("#box textarea").get_attribute("value") == "What is it?"
    assert page.texts("user") == []
    assert str(tmp_path) not in page.status


def test_new_chat_empties_the_page(open_page: Callable[..., Browser]):
    page = open_page()
    page.all("#chat .example")[0].click()
    page.answered(1)
    page.one("#new-chat").click()
    wait(lambda: len(page.all("#chat .example")) == 4)
    assert page.status == ""


def test_chinese_by_the_switch_and_by_the_browser(open_page: Callable[..., Browser]):
    page = open_page()
    assert page.one("#new-chat").text == "New chat"
    page.all("#language label")[1].click()
    wait(lambda: page.one("#new-chat").text == "新对话")
    assert page.one("#box textarea").get_attribute("placeholder") == "输入问题，可拖入图片和视频"
    page.all("#chat .example")[0].click()
    page.answered(1)
    assert "首个 token" in page.status
    page.all("#language label")[0].click()
    wait(lambda: page.one("#new-chat").text == "New chat")
    preferred = open_page(languages="zh-CN,zh")
    wait(lambda: preferred.one("#new-chat").text == "新对话")


def test_a_phone(open_page: Callable[..., Browser]):
    page = open_page(PHONE)
    assert page.overflow() <= 0
    page.all("#chat .example")[0].click()
    page.answered(1)
    assert page.overflow() <= 0
    box = page.one("#box").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    assert box["y"] + box["height"] <= PHONE[1], "the box is on the first screen"
    assert page.one("#side").rect["y"] >= box["y"] + box["height"], "the rest is below"


def test_dark_mode_by_the_system_and_by_the_button(open_page: Callable[..., Browser]):
    def brightness(page: Browser) -> float:
        color = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3])) / 3

    page = open_page(dark=True)
    assert brightness(page) < 60
    page.one("#theme").click()
    wait(lambda: brightness(page) > 200)
    page.driver.refresh()
    wait(lambda: brightness(page) > 200)


def test_the_page_of_the_api_shows_every_route(open_page: Callable[..., Browser], server: RunningServer):
    page = open_page()
    page.complaints()  # forget those of the chat page
    page.driver.get(f"{server.url}/docs")
    wait(lambda: len(page.all(".opblock")) >= 8)
    loaded = page.driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert len(loaded) >= 3
    assert [address for address in loaded if not address.startswith((server.url, "data:"))] == []
    assert page.complaints() == []


def shoot(page: Browser, name: str) -> None:
    """Write a picture of the docs: what the page shows, in few colors."""
    path = Path(os.environ["VILA_SCREENSHOTS"]) / f"{name}.png"
    page.driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < 150_000


@pytest.mark.skipif("VILA_SCREENSHOTS" not in os.environ, reason="draws the pictures of the docs")
def test_screenshots(open_page: Callable[..., Browser]):
    wide: dict[str, Any] = {"size": WIDE}
    page = open_page(**wide)
    page.attach("scene.png", "motion.mp4")
    page.ask("Which way does the yellow moon move?")
    page.answered(1)
    time.sleep(1)
    shoot(page, "chat-page")
    page.all("#side button.label-wrap")[1].click()
    wait(lambda: page.one("#schema textarea").is_displayed())
    phone = open_page(PHONE, dark=True, languages="zh-CN,zh")
    phone.all("#chat .example")[0].click()
    phone.answered(1)
    time.sleep(1)
    shoot(phone, "chat-page-phone")
