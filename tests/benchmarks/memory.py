"""Peak memory of `extract` at 1,000 and at 30,000 images; mobilenet025 for the length, densenet121 for the network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import finish, small_set, verdict

LIMIT = 2e9


def peak(*arguments: object) -> int:
    """Largest resident memory of `tlpipe ...`, bytes."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} failed")
    return usage.ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backbone, sizes in (("mobilenet025", (1000, 30000)), ("densenet121", (1000, 30000))):
            for n in sizes:
                data = small_set(folder / f"{n}.npz", n)
                used = peak(
                    "extract", data, "--backbone", backbone, "--weights", "random", "--cache", folder / backbone
                )
                verdict(f"{backbone}, {n:,} images: {used / 1e9:.2f} GB (under 2)", used < LIMIT)
    finish()


if __name__ == "__main__":
    main()
