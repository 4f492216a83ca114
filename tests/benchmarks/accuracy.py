"""Real weights on real pictures: test accuracy against figures measured outside tlpipe, and fine-tuning.

Usage: accuracy.py DATA   (a folder with cifar10/cifar10-5k.npz, cifar10/cifar10-30k.npz and alien-predator/; the
ImageNet weights of densenet121 are found as always). About ten minutes on two cores with AMX.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import finish, tlpipe, verdict

# Logistic regression on the same features, by a short script of scikit-learn and OpenVINO alone; the best C.
REFERENCE = {"cifar10/cifar10-5k.npz": 0.895, "cifar10/cifar10-30k.npz": 0.914}


def main() -> None:
    data = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, reference in REFERENCE.items():
            tlpipe("extract", data / name, cwd=work)
            found = tlpipe("train-head", "--head", "logreg", cwd=work)["metrics"]["test"]["accuracy"]
            verdict(f"{name}: {found:.3f}, reference {reference:.3f}", abs(found - reference) <= 0.01)
        tlpipe("extract", data / "alien-predator", cwd=work)
        found = tlpipe("train-head", "--head", "logreg", cwd=work)["metrics"]["val"]["accuracy"]
        verdict(f"alien-predator, validation: {found:.3f} (at least 0.93)", found >= 0.93)
        tuned = tlpipe("finetune", "--blocks", "conv5", cwd=work)
        before, after = (tuned[part]["val"]["accuracy"] for part in ("baseline", "metrics"))
        verdict(f"alien-predator, conv5 fine-tuned: {before:.3f} before, {after:.3f} after", after >= before)
    finish()


if __name__ == "__main__":
    main()
