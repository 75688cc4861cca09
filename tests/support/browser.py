"""Headless Chromium with a page in it, as tests look at it. Debian's packages chromium and
chromium-driver; without them these tests are skipped."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """One window. `log` is everything that the page said to its console."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(
        self, page: Path | str, width: int, height: int, scheme: str, script: bool = True,
        media: str = "",
    ) -> None:  # fmt: skip
        """Load a file or an address at a size in CSS px, in light or dark, or for `print`."""
        self.show(width, height, scheme, media)
        self._do("Emulation.setScriptExecutionDisabled", value=not script)
        self._driver.get(page if isinstance(page, str) else page.absolute().as_uri())

    def show(self, width: int, height: int, scheme: str, media: str = "") -> None:
        """Show the page that is loaded at another size, in light or dark, or for `print`."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._do("Emulation.setDeviceMetricsOverride", **metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._do("Emulation.setEmulatedMedia", media=media, features=[feature])

    def asks(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._driver.execute_script(f"return {script}")

    def press(self, *keys: str) -> None:
        """Press keys together, as a person does: ("ALT", "n"), ("TAB",), ("ENTER",)."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self._driver)
        codes = [getattr(Keys, key, key) for key in keys]
        for code in codes:
            chain = chain.key_down(code)
        for code in reversed(codes):
            chain = chain.key_up(code)
        chain.perform()

    def address(self) -> str:
        """The address of the page that is loaded."""
        return str(self._driver.current_url)

    def log(self) -> list[str]:
        """What the console said since it was asked last."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requested(self) -> list[str]:
        """The addresses that were asked for since it was asked last, but for those inside the
        browser: its own empty tab, and what stands in the address itself."""
        found = []
        for entry in self._driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [address for address in found if not address.startswith(("chrome:", "data:"))]

    def height(self) -> float:
        """How high the page is, in CSS px, asked without a script in it."""
        return float(self._do("Page.getLayoutMetrics")["cssContentSize"]["height"])

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        shot = self._do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def _do(self, command: str, **arguments: Any) -> Any:
        return self._driver.execute_cdp_cmd(command, arguments)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, for as long as the block lasts."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: requirements/apt.txt")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(window)
    finally:
        window.quit()
