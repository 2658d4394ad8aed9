"""Draw the pictures of the home page: pages that commands of Dooly write, as a browser shows them.

Run `python scripts/pictures.py`, where `dooly` is installed with the `cpu` extra, which one of the pages is traced by. It takes
Chromium or Chrome: the program that `CHROMIUM` names, or the first of their usual names that is on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LARGEST_BYTES = 150_000
"""What a picture may take in the repository."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SCHEMES = {"light": "1", "dark": "0"}
"""Readers' choices, as Chromium numbers them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A page that a command writes, and how much of it is shown."""

    name: str
    """Name of the file, without the reader's choice and the ending."""
    arguments: tuple[str, ...]
    """Arguments of `dooly`, less where the page goes."""
    size: tuple[int, int]
    """Width and height of the window."""
    schemes: tuple[str, ...] = ("light", "dark")
    """Choices of the reader that the page follows."""


ALL = (
    Picture("trace", ("trace", "llama-3.1-70b", "--batch", "decode=32,context=1024+prefill=512"), (1360, 860), ("light",)),
    Picture(
        "simulation",
        (
            *("simulate", "llama-3.1-70b", "--hardware", "h200", "--tensor-parallel-size", "4"),
            *("--workload", "closed:concurrency=32,requests=320,prompt=512-1536,output=64-192", "--slo", "ttft-p90=500ms"),
        ),
        (1280, 985),
    ),
    Picture(
        "search",
        (
            *("search", "llama-3.1-8b", "--hardware", "h200,h100", "--max-num-seqs", "64,256", "--tensor-parallel-size", "1,2"),
            *("--ttft-p90", "200ms", "--tpot-p90", "12ms"),
            *("--workload", "poisson:prompt=256-768,output=64-192,requests=1000"),
        ),
        (1280, 850),
    ),
)
"""What the home page shows."""


def main() -> None:
    """Draw all pictures, or those whose names are given."""
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"pictures: none of {', '.join(_BROWSERS)} is on the path; install one, or set CHROMIUM to its program")
    PICTURES.mkdir(exist_ok=True)
    for picture in ALL:
        if picture.name in sys.argv[1:] or not sys.argv[1:]:
            draw(picture, browser)


def draw(picture: Picture, browser: str) -> None:
    """Run a picture's command, and keep what a browser shows of its page."""
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        subprocess.run([sys.executable, "-m", "dooly", *picture.arguments, "--html", page], check=True, stdout=subprocess.DEVNULL)
        for scheme in picture.schemes:
            path = PICTURES / (f"{picture.name}.png" if scheme == "light" else f"{picture.name}-{scheme}.png")
            _shoot(browser, page, path, picture.size, _SCHEMES[scheme])
            print(path, path.stat().st_size)
            if path.stat().st_size > LARGEST_BYTES:
                sys.exit(f"pictures: {path} takes more than {LARGEST_BYTES} bytes; show less of the page")


def _shoot(browser: str, page: Path, path: Path, size: tuple[int, int], scheme: str) -> None:
    """Keep the upper left of a page as a picture."""
    options = [
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",  # the page is our own, and root has no sandbox
        f"--window-size={size[0]},{size[1]}",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--virtual-time-budget=5000",  # until all charts are drawn
    ]
    subprocess.run([browser, *options, f"--screenshot={path}", page.as_uri()], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
