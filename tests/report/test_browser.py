"""The page in a real browser, driven by its command line: nothing on the console, no sideways scrolling on a phone, dark, and on paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from llm_spark.report import page
from tests.report.nights import night
from tests.report.pages import parsed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=2000"),
]
PHONE = 390
# A browser's own window is 500 pixels wide at least; a frame in it is as narrow as a phone, and its page knows no other width.
_PHONE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>phone</title></head><body>
<iframe style="width: WIDTHpx; height: 844px; border: 0" srcdoc="PAGE"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", (event) => {
  const view = event.target.contentWindow, root = view.document.documentElement;
  for (const each of view.document.querySelectorAll("details")) each.open = OPEN;
  const all = (what) => [...view.document.querySelectorAll(what)].map((each) => each.getBoundingClientRect());
  document.documentElement.dataset.measured = JSON.stringify({
    window: view.innerWidth, scrolled: root.scrollWidth, right: Math.max(0, ...all("svg").map((box) => box.right)),
    lowest: Math.min(...all("svg text").map((box) => box.height)),
  });
});
</script></body></html>
"""
_SCHEME = "<script>document.documentElement.dataset.measured = JSON.stringify({background: getComputedStyle(document.body).backgroundColor})</script>"

Browse = Callable[..., str]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Show a page of this HTML; returns stdout, then stderr."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is on this machine: none of {', '.join(NAMES)} is on PATH")

    def run(html: str, *options: str) -> str:
        folder = tmp_path_factory.mktemp("browser")
        file = folder / "page.html"
        file.write_text(html, "utf-8")
        command = [program, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
        # Killed by its own handle where it does not end by itself.
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def html() -> str:
    return page(night())


def measured(browse: Browse, html: str, *options: str) -> dict[str, float | str]:
    """What a script in this page has noted of it."""
    said = browse(html, "--dump-dom", *options)
    dom = said[said.index("<!DOCTYPE html>") : said.rindex("</html>") + len("</html>")]
    found: dict[str, float | str] = json.loads(next(parsed(dom).all("html")).attributes["data-measured"])
    return found


def on_a_phone(browse: Browse, html: str, details_open: bool = True) -> dict[str, float | str]:
    framed = _PHONE.replace("WIDTH", str(PHONE)).replace("OPEN", str(details_open).lower())
    found = measured(browse, framed.replace("PAGE", escape(html)))
    assert found["window"] == PHONE
    return found


def console(said: str) -> list[str]:
    return [line for line in said.splitlines() if "CONSOLE" in line]


def test_nothing_is_complained_about_on_the_console(browse: Browse, html: str) -> None:
    wrong = html.replace("</body>", "<script>console.error('heard')</script><img src='missing.png' alt=''></body>")
    heard = console(browse(wrong, "--dump-dom"))
    assert any("heard" in line for line in heard), "this test can hear the console"
    assert console(browse(html, "--dump-dom")) == []


@pytest.mark.parametrize("details_open", [False, True])
def test_a_phone_needs_no_sideways_scrolling_and_its_pictures_can_be_read(
    browse: Browse, html: str, details_open: bool
) -> None:
    found = on_a_phone(browse, html, details_open)
    assert found["scrolled"] <= PHONE
    assert found["right"] <= PHONE
    assert found["lowest"] >= 9, "pixels of the lowest text in a picture"


def test_what_is_too_wide_for_a_phone_would_be_noticed(browse: Browse, html: str) -> None:
    wide = html.replace("<main>", "<main><p style='width: 500px'>too wide</p>")
    assert on_a_phone(browse, wide)["scrolled"] > PHONE


def test_the_page_follows_the_scheme_that_the_reader_prefers(browse: Browse, html: str) -> None:
    noting = html.replace("</body>", f"{_SCHEME}</body>")
    dark, light = (measured(browse, noting, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (0, 1))
    assert (dark["background"], light["background"]) == ("rgb(20, 23, 27)", "rgb(246, 247, 249)")


def test_the_page_can_be_printed(browse: Browse, html: str, tmp_path: Path) -> None:
    file = tmp_path / "page.pdf"
    browse(html, f"--print-to-pdf={file}", "--no-pdf-header-footer")
    content = file.read_bytes()
    assert content.startswith(b"%PDF-")
    num_pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 4 <= num_pages <= 25
