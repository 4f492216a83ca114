"""The README and the help texts are part of the product."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pipeline
from pipeline.cli.main import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[tuple[str, ...]]:
    group = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, item in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(item, "commands", None)
        found += [(name, part) for part in inner] if inner else [(name,)]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_documented_and_has_help(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.output
    for option in re.findall(r"^ +(--[a-z-]+)(?: +[A-Z]+)? *$", done.output, re.MULTILINE):
        raise AssertionError(f"{option} has no help")
    # `tlpipe cache ls|verify|gc|export` names four commands.
    stem = "tlpipe " + " ".join(command[:1])
    assert stem in README
    assert command[-1] in README


def test_help_knows_the_heads_and_their_defaults() -> None:
    from pipeline.heads import KINDS, HeadConfig, make_head

    done = CliRunner().invoke(app, ["train-head", "--help"], env={"COLUMNS": "200"})
    text = " ".join(done.output.split())
    for kind in KINDS:
        assert kind.form in text, kind.form
    linear, mlp = (make_head(HeadConfig(name))[1] for name in ("linear", "mlp512-128"))
    for option, words in {
        "epochs": f"linear ({linear.epochs}), mlp ({mlp.epochs})",
        "learning-rate": f"linear, mlp ({linear.learning_rate:g})",
        "optimizer": f"linear, mlp ({mlp.optimizer})",
        "schedule": f"linear, mlp ({mlp.schedule})",
        "patience": f"({mlp.patience})",
        "dropout": f"mlp ({mlp.dropout})",
        "label-smoothing": f"linear, mlp ({mlp.label_smoothing:g})",
        "l2": f"linear, mlp ({mlp.l2:g} with adamw, else {make_head(HeadConfig('linear', optimizer='sgd'))[1].l2})",
    }.items():
        assert words in text.split(f"--{option} ")[1].split(" --")[0], option


def example_blocks() -> list[str]:
    """The shell blocks of the README that are marked as runnable by their first line."""
    return re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def example_commands() -> list[str]:
    lines = "\n".join(example_blocks()).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("tlpipe ")]


def test_readme_has_examples() -> None:
    assert len(example_commands()) > 12


@pytest.mark.weights
@pytest.mark.data
def test_every_command_of_the_readme_runs(tmp_path: Path, data: Path) -> None:
    """In the order of the page, in one folder; the pictures are a few of a public set, the backbone is made small."""
    import shutil

    for split in ("train", "validation"):
        for name in ("alien", "predator"):
            target = tmp_path / "pictures" / split / name
            target.mkdir(parents=True)
            for number in range(1, 13):
                shutil.copy(data / "alien-predator" / split / name / f"{number}.jpg", target)
    cifar = tmp_path / "cifar10-5k.npz"
    write_small_set(data / "cifar10" / "cifar10-5k.npz", cifar)
    shutil.copy(cifar, tmp_path / "cifar10-30k.npz")
    shutil.copytree(tmp_path / "pictures", tmp_path / "alien-predator")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in example_commands():
        arguments = shlex.split(line)
        if arguments[1] == "extract" and "--backbone" not in arguments:
            arguments += ["--backbone", "mobilenet025", "--image-size", "64"]
        arguments = ["block13" if argument == "conv5" else argument for argument in arguments]
        arguments = ["block11+block13" if argument == "conv4+conv5" else argument for argument in arguments]
        arguments = ["block12,block13" if argument == "conv4,conv5" else argument for argument in arguments]
        if arguments[1] == "finetune" and "--epochs" not in arguments:
            arguments += ["--epochs", "1"]
        if arguments[1] == "sweep" and ("--head" not in arguments or "linear" in arguments):
            arguments += ["--epochs", "2"]
        if arguments[1] == "bench":
            arguments += ["--seconds", "0.1", "--backbone", "mobilenet025", "--image-size", "32"]
        if arguments[1] == "demo":
            continue  # has a test of its own
        if "RUN" in arguments:
            arguments = [newest_run(tmp_path) if argument == "RUN" else argument for argument in arguments]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)


def newest_run(folder: Path) -> str:
    """Of those that tell aliens from predators."""
    from pipeline.runs import runs
    from pipeline.stages.serving import MODEL_STAGES

    known = [run for run in runs(folder / "reports") if run.stage in MODEL_STAGES]
    return [run.id for run in known if run.class_names == ["alien", "predator"]][-1]


def write_small_set(source: Path, target: Path) -> None:
    import numpy as np

    with np.load(source) as file:
        np.savez(
            target,
            x_train=file["x_train"][:200],
            y_train=file["y_train"][:200],
            x_test=file["x_test"][:50],
            y_test=file["y_test"][:50],
            class_names=file["class_names"],
        )


def test_python_of_the_readme_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_every_module_names_what_it_offers() -> None:
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        assert sorted(module.__all__) == sorted(set(module.__all__)), found.name
        for name in module.__all__:
            assert hasattr(module, name), (found.name, name)
        assert module.__doc__, found.name
