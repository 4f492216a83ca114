"""`tlpipe --help`: median of 5, without TensorFlow, scikit-learn or OpenVINO."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import finish, verdict


def main() -> None:
    program = Path(sys.executable).parent / "tlpipe"
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run([program, "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    verdict(f"--help: {median:.2f} s (under 0.3)", median < 0.3)
    finish()


if __name__ == "__main__":
    main()
