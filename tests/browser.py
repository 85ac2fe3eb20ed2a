"""A real browser for tests of pages: Debian's Chromium, or Chrome, without a window. `tests/conftest.py` shares the fixtures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "google-chrome", "chromium-browser")
_LOCAL_SCHEMES = ("about", "blob", "data", "file")


def installed_browser() -> str | None:
    """The path of a browser that starts; None where there is none."""
    for program in PROGRAMS:
        path = shutil.which(program)
        # Ubuntu's chromium-browser may be a script that only names another package
        if path and subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0:
            return path
    return None


def leaves_the_machine(url: str) -> bool:
    """True for a request that goes to the network."""
    parts = urlsplit(url)
    return parts.scheme not in _LOCAL_SCHEMES and parts.hostname != "127.0.0.1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that resolves no name. It ends with the module, since other tests may need an event loop of their own."""
    library = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; requirements-dev.txt has it"
    )
    path = installed_browser()
    if path is None:
        pytest.skip(f"no browser is installed ({', '.join(PROGRAMS)}); on Debian: apt-get install chromium")
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with library.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[rules])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. At its end the test fails if the page asked another machine for anything, or if a script failed."""
    context = browser.new_context(accept_downloads=True)
    context.set_default_timeout(20_000)
    problems: list[str] = []

    def watch(url: str) -> None:
        if leaves_the_machine(url):
            problems.append(f"a request to {url}")

    context.on("request", lambda request: watch(request.url))
    context.on("weberror", lambda found: problems.append(f"an error of a script: {found.error}"))
    page = context.new_page()
    page.on("websocket", lambda socket: watch(socket.url))
    yield page
    context.close()
    assert not problems
