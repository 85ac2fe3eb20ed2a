"""A picture of `dearli serve` in use, for the documentation. The server runs already; the browser is that of the tests.

Example:

    python scripts/page_picture.py http://127.0.0.1:7860/ photo.jpg serve.png --words "grass, sky"
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Drops the photo, types the words, points at the largest thing and saves what the browser shows, in 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="as dearli serve prints it")
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", default="")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.browser import installed_browser

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=installed_browser())
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.goto(arguments.url)
        page.wait_for_selector("#kinds button", state="attached")
        page.locator("#words").evaluate("(field, words) => { field.value = words; }", arguments.words)
        page.set_input_files("#file", arguments.photo)
        page.wait_for_selector("#list li")
        page.locator("#list li").nth(page.evaluate("Math.max(0, answer.segments.findIndex(s => s.thing))")).hover()
        shown = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    # by coverage, so that the few pixels of the legend keep their colours
    palette = shown.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    shown.convert("RGB").quantize(palette=palette).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
