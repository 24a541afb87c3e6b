"""The picture of the server's page in docs/serving.md: a bank of the demo answers a prompt, in Chromium.

    make demo
    python -m benchmarks.serving.picture [demo/together-90-steps-seed-0] [--tasks date-es date-it date-pt]

A server of its own on loopback answers; it ends with the picture. The environment variable COLORA_CHROMIUM names the
browser where it is not found.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from colora.common.files import write_bytes

PICTURE = Path(__file__).parents[2] / "docs" / "figures" / "page.png"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bank", type=Path, nargs="?", default=Path("demo/together-90-steps-seed-0"))
    parser.add_argument("--tasks", nargs="+", default=["date-es", "date-it"])
    parser.add_argument("--prompt", default="2024-05-29")
    parser.add_argument("--width", type=int, default=1000, help="of the window, in pixels")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the file to write")
    args = parser.parse_args()
    server = subprocess.Popen([sys.executable, "-m", "colora", "serve", str(args.bank), "--port", str(args.port)])
    try:
        url = f"http://127.0.0.1:{args.port}"
        wait_for(server, url)
        write_bytes(args.picture, picture(url, args.tasks, args.prompt, args.width))
    finally:
        server.terminate()
        server.wait()
    print(f"wrote {args.picture.name}")


def wait_for(server: "subprocess.Popen[bytes]", url: str, seconds: float = 300) -> None:
    """Until the server answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:  # not yet, or not within its time
            time.sleep(0.2)
    sys.exit("the server did not start: its last lines above say why")


def picture(url: str, tasks: Sequence[str], prompt: str, width: int) -> bytes:
    """The page with the answers of the base and these tasks, PNG, as high as what it shows."""
    browser_file = os.environ.get("COLORA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 400}, color_scheme="light")
        page.goto(f"{url}/")
        for name in tasks:
            page.get_by_role("combobox").fill(name)
            page.get_by_role("option", name=name, exact=True).click()
        page.locator("#prompt").fill(prompt)
        page.keyboard.press("Enter")
        page.locator("article").nth(len(tasks)).wait_for()
        page.locator("article.runs").first.wait_for(state="detached")
        found = page.screenshot(full_page=True)
        browser.close()
    return found


if __name__ == "__main__":
    main()
