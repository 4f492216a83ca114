"""`extract` of 5,000 images again: unchanged, extended, relabelled, renamed, split again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import finish, small_images, tlpipe, verdict
from PIL import Image

SMALL = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "96")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "pictures"
        for number, image in enumerate(small_images(5010)):
            path = data / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < 5000:
                Image.fromarray(image).save(path)

        def extract(*options: object) -> dict[str, object]:
            return tlpipe("extract", data, *SMALL, *options, cwd=folder)

        first = extract()
        verdict(f"first: {first['n_computed']} computed in {first['wall']:.1f} s", first["n_computed"] == 5000)
        again = extract()
        holds = again["n_computed"] == 0 and again["wall"] < 3
        verdict(f"unchanged: {again['n_computed']} computed in {again['wall']:.2f} s (under 3)", holds)
        for number, image in list(enumerate(small_images(5010)))[5000:]:
            Image.fromarray(image).save(data / "a" / f"new {number}.png")
        extended = extract()
        verdict(f"10 new images: {extended['n_computed']} computed", extended["n_computed"] == 10)
        (data / "a" / "0.png").rename(data / "b" / "0.png")
        verdict("relabelled: 0 computed", extract()["n_computed"] == 0)
        (data / "a").rename(data / "c")
        verdict("renamed: 0 computed", extract()["n_computed"] == 0)
        verdict("split again: 0 computed", extract("--val-fraction", 0.3)["n_computed"] == 0)
    finish()


if __name__ == "__main__":
    main()
