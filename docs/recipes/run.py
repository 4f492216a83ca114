"""Run a recipe, command by command, and print what each gave side by side.

    python docs/recipes/run.py docs/recipes/aliens.sh alien-predator

A recipe is a shell script of tlpipe commands; the comment above a command is its row in the table. Seconds are those of
the whole command, memory is the peak of its largest process, and test accuracy has its 95 % interval (Wilson 1927).
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import print
from rich.table import Table


def steps(recipe: Path, data: str) -> list[tuple[str, list[str]]]:
    """The commands of a recipe, each with the comment above it."""
    found, title = [], ""
    for line in recipe.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("# "):
            title = line[2:]
        elif line.startswith("tlpipe "):
            found.append((title, [data if word == "$1" else word for word in shlex.split(line)[1:]]))
            title = ""
    return found


def main(recipe: Path, data: str, *more: str) -> None:
    """Run it in a folder of its own, which is removed afterwards."""
    table = Table("", "test accuracy", "95 % interval", "val", "parameters", "seconds", "memory", title=recipe.stem)
    data = str(Path(data).resolve()) if Path(data).exists() else data
    with tempfile.TemporaryDirectory() as folder:
        for title, words in steps(recipe, data):
            command = [sys.executable, "-m", "pipeline", *words, *(more if words[0] == "extract" else ()), "--json"]
            start = time.perf_counter()
            with tempfile.TemporaryFile() as answer:
                process = subprocess.Popen(command, cwd=folder, stdout=answer)
                _, status, used = os.wait4(process.pid, 0)  # which tells the memory of this one process
                answer.seek(0)
                text = answer.read()
            seconds = f"{time.perf_counter() - start:.0f}"
            if status:
                sys.exit(f"tlpipe {shlex.join(words)} failed; see above")
            found = json.loads(text)
            test, val = ((found.get("metrics") or {}).get(split) for split in ("test", "val"))
            low, high = test["accuracy_95"] if test else (0, 0)
            table.add_row(
                title or f"tlpipe {words[0]}",
                f"{100 * test['accuracy']:.1f} %" if test else "",
                f"{100 * low:.1f} to {100 * high:.1f}" if test else "",
                f"{100 * val['accuracy']:.1f} %" if val else "",
                f"{found['trainable_parameters']:,}" if test else "",
                seconds,
                f"{used.ru_maxrss * 1024 / 1e9:.1f} GB",
            )
    print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
