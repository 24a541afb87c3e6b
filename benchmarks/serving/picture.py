"""The picture of the server's page in docs/serving.md: a bank of the demo answers a prompt, in Chromium.

    make demo
    python -m benchmarks.serving.picture [demo/together-90-steps-seed-0] [--tasks date-es date-it]

A server of its own on loopback answers; it ends with the picture. The environment variable COLORA_CHROMIUM names the
browser where it is not found.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from colora.common.files import write_bytes
from tests.helpers.browser import browsing
from tests.helpers.servers import process

PICTURE = Path(__file__).parents[2] / "docs" / "figures" / "page.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bank", type=Path, nargs="?", default=Path("demo/together-90-steps-seed-0"))
    parser.add_argument("--tasks", nargs="+", default=["date-es", "date-it"])
    parser.add_argument("--prompt", default="2024-05-29")
    parser.add_argument("--width", type=int, default=1000, help="of the window, in pixels")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, process(args.bank, log=Path(folder, "log")) as (running, _):
        write_bytes(args.picture, picture(running.url, args.tasks, args.prompt, args.width))
    print(f"wrote {args.picture.name}")


def picture(url: str, tasks: Sequence[str], prompt: str, width: int) -> bytes:
    """The page with the answers of the base and these tasks, PNG, as high as what it shows."""
    with browsing() as browser:
        page = browser.new_page(viewport={"width": width, "height": 400}, color_scheme="light")
        page.goto(f"{url}/")
        for name in tasks:
            page.get_by_role("combobox").fill(name)
            page.get_by_role("option", name=name, exact=True).click()
        page.locator("#prompt").fill(prompt)
        page.keyboard.press("Enter")
        page.locator("article").nth(len(tasks)).wait_for()
        page.locator("article.runs").first.wait_for(state="detached", timeout=300_000)
        return page.screenshot(full_page=True)


if __name__ == "__main__":
    main()
