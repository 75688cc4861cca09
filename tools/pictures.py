"""Make the pictures of docs/looking.md: a hub with a written story, its pages, and a browser.

    python -m tools.pictures [DIRECTORY]

Needs chromium and chromium-driver (requirements/apt.txt). Writes into docs/ by default.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image

from factory.localhub.launcher import connect
from tests.support.browser import chromium
from tests.support.story import tell

ROOT = Path(__file__).parent.parent
WIDE, NARROW = (1000, 640), (400, 700)
# Name, page, size, and light or dark.
PICTURES = (
    ("collection", "/collections/{slug}", WIDE, "light"),
    ("rows", "/datasets/local/story-generate/viewer/main?table=en&search=the", WIDE, "dark"),
    ("pool", "/datasets/local/story-pair/read/main", WIDE, "light"),
    ("compared", "/datasets/local/story-judge/read/main", WIDE, "light"),
    ("live", "/-/live", WIDE, "light"),
    ("narrow", "/datasets/local/story-pair/read/main?slice=da", NARROW, "dark"),
)


def main() -> int:
    """Make every picture. Returns the exit status."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        slug = tell(home / "hub")
        _begin_work(home)
        with (
            connect(home / "hub", "factory.pages") as hub,
            chromium(Path(directory) / "profile") as browser,
        ):
            bearer = {"Authorization": f"Bearer {hub.token}"}
            once = httpx.post(f"{hub.url}/-/login", headers=bearer, timeout=60).json()["once"]
            browser.open(f"{hub.url}/-/login?once={once}", *WIDE, "light")
            for name, page, size, scheme in PICTURES:
                browser.open(hub.url + page.format(slug=slug), *size, scheme)
                picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
                picture.quantize(128).save(target / f"looking-{name}.png", optimize=True)
                print(target / f"looking-{name}.png")
    return 0


def _begin_work(home: Path) -> None:
    """Write a training under way, and a step that failed."""
    training, failed = (home / "work" / "local" / name for name in ("0123456789ab", "abcdef012345"))
    for work in (training, failed):
        (work / "checkpoints").mkdir(parents=True)
        (work / "inputs").write_text("")
    notes = {"step": "dpo[da]", "recipe": "story", "done": 84, "total": 240, "unit": "steps",
             "rate": 5230.0, "left": 480.0}  # fmt: skip
    (training / "progress.json").write_text(json.dumps(notes))
    log = (
        {
            "step": n,
            "loss": 0.7 / (1 + n / 40) + 0.02 * (n % 3),
            "rewards/accuracies": 0.5 + n / 240,
        }
        for n in range(1, 85)
    )
    (training / "checkpoints" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    notes = {"step": "generate", "recipe": "story", "done": 3, "total": 12, "unit": "shards",
             "error": "the GPU is out of memory"}  # fmt: skip
    (failed / "progress.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    sys.exit(main())
