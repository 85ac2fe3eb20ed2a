"""The fixtures of `tests/browser.py`."""

from __future__ import annotations

import pytest

from tests.browser import leaves_the_machine


@pytest.mark.parametrize(
    "url", ["http://example.com/a.js", "https://cdn.example/x", "wss://x.example", "http://127.0.0.1.example/"]
)
def test_requests_to_other_machines_are_seen(url):
    assert leaves_the_machine(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:7860/", "file:///a.html", "data:,x", "blob:null/1", "about:blank"])
def test_requests_on_this_machine_are_none(url):
    assert not leaves_the_machine(url)


def test_page_runs_scripts(page):
    page.set_content("<p></p><script>document.querySelector('p').textContent = 6 * 7</script>")
    assert page.inner_text("p") == "42"
