"""Draw what `ark-dist demo` prints as docs/pictures/demo.svg: `python -m tests.demo_picture`."""

import subprocess
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

QUESTION = "What is the capital of France?"
COMMAND = ("demo", QUESTION, "--ranks", "2")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "demo.svg"
WIDTH, LINE, MARGIN, FONT_SIZE = 960, 20, 18, 14


def draw(lines: Sequence[str]) -> str:
    """An SVG of a terminal that shows these lines."""
    height = len(lines) * LINE + 2 * MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    box = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#1e1e1e"/>'
    style = f'font-family="monospace" font-size="{FONT_SIZE}" fill="#e0e0e0" xml:space="preserve"'
    texts = (
        f'<text x="{MARGIN}" y="{MARGIN + i * LINE + FONT_SIZE}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return "\n".join([f"{head}>", box, f"<g {style}>", *texts, "</g>", "</svg>", ""])


def main() -> None:
    """Run the demo, the model fetched before, and draw it."""
    command = [sys.executable, "-m", "ark_dist.cli", *COMMAND]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    shown = f'$ ark-dist demo "{QUESTION}" --ranks 2'
    lines = [shown, *done.stdout.splitlines(), *done.stderr.splitlines()]
    PICTURE.write_text(draw([line for line in lines if line.strip()]), "utf-8")


if __name__ == "__main__":
    main()
