"""Heads on 400,000 drawn features [1024], 1.6 GB: peak memory under --memory 1GB, and accuracy against that in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import drawn_features, finish, measured, verdict

N, N_VAL, CAP = 400_000, 20_000, 1_000_000_000
SETTINGS = (("linear", 3), ("mlp512-128", 3), ("ridge", None))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        drawn_features(work / "cache", N, n_val=N_VAL, name="large")
        for head, epochs in SETTINGS:
            options = ["--head", head] + (["--epochs", epochs] if epochs else [])
            stored, peak = measured("train-head", *options, "--memory", "1GB", cwd=work)
            held, peak_held = measured("train-head", *options, cwd=work)
            found, expected = (run["metrics"]["val"]["accuracy"] for run in (stored, held))
            seconds = f"{stored['seconds']['fit']:.0f} s, in memory {held['seconds']['fit']:.0f} s"
            verdict(
                f"{head} with --memory 1GB: peak {peak / 1e9:.2f} GB (under 2; in memory {peak_held / 1e9:.2f}), {seconds}",
                peak < CAP + 1e9,
            )
            low, high = held["metrics"]["val"]["accuracy_95"]
            text = f"accuracy {found:.4f}, in memory {expected:.4f} (95 % interval {low:.4f} to {high:.4f})"
            verdict(text, low <= found <= high)
    finish()


if __name__ == "__main__":
    main()
