"""Draw a small set of pictures to practise on: python draw_pictures.py FOLDER.

Three classes of 100 pictures each, and what real sets have, too: a wrong label, a picture that is there twice, and a
file that can't be read.
"""

import math
import random
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 160  # pixels


def draw(kind: str, seed: str) -> Image.Image:
    """A shape of any size, colour, place and angle on paper of any colour, among blots."""
    chance = random.Random(seed)
    paper = colour(chance, 150, 255)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y, size = chance.uniform(0, SIDE), chance.uniform(0, SIDE), chance.uniform(4, 28)
        pen.ellipse((x, y, x + size, y + size), fill=colour(chance, 60, 255))
    radius, turn = chance.uniform(16, 50), chance.uniform(0, 2 * math.pi)
    x, y = chance.uniform(radius, SIDE - radius), chance.uniform(radius, SIDE - radius)
    ink = colour(chance, 20, 150)
    if kind == "moon":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        x, y = x + radius / 2 * math.cos(turn), y + radius / 2 * math.sin(turn)
        pen.ellipse((x - radius * 0.8, y - radius * 0.8, x + radius * 0.8, y + radius * 0.8), fill=paper)
        return picture
    lengths = [radius] * 4 if kind == "square" else [radius, radius / 2] * 5
    angles = [turn + 2 * math.pi * corner / len(lengths) for corner in range(len(lengths))]
    pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(lengths, angles, strict=True)], fill=ink)
    return picture


def colour(chance: random.Random, least: int, most: int) -> tuple[int, int, int]:
    """Any colour within these bounds."""
    red, green, blue = (chance.randint(least, most) for _ in range(3))
    return red, green, blue


def main(folder: Path, n: int = 100) -> None:
    """Draw all classes, then spoil a few files."""
    for kind in ("moon", "square", "star"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, n + 1):
            draw(kind, f"{kind} {number}").save(folder / kind / f"{number:03}.png")
    draw("star", "a wrong label").save(folder / "moon" / f"{n + 1:03}.png")
    shutil.copy(folder / "star" / "007.png", folder / "star" / f"{n + 1:03}.png")
    whole = (folder / "square" / "001.png").read_bytes()
    (folder / "square" / f"{n + 1:03}.png").write_bytes(whole[: len(whole) // 2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
