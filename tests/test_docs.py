"""The README and the help texts are part of the product."""

from __future__ import annotations

import importlib
import json
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
from pipeline.config import HeadConfig

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
    from pipeline.heads import KINDS, make_head

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
    lines = [shlex.split(line)[1:] for line in example_commands()]
    commands = [made_small(arguments) for arguments in lines if arguments[0] != "demo"]  # which has a test of its own
    # One process for all: most of each would be spent on importing TensorFlow.
    script = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import test_docs; test_docs.run_all()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(commands),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def made_small(arguments: list[str]) -> list[str]:
    """The same command with a small backbone and few epochs."""
    small = {"conv5": "block13", "conv4+conv5": "block11+block13", "conv4,conv5": "block12,block13"}
    arguments = [small.get(argument, argument) for argument in arguments]
    if arguments[0] == "extract" and "--backbone" not in arguments:
        arguments += ["--backbone", "mobilenet025", "--image-size", "64"]
    if arguments[0] == "finetune" and "--epochs" not in arguments:
        arguments += ["--epochs", "1"]
    if arguments[0] == "sweep" and ("--head" not in arguments or "linear" in arguments):
        arguments += ["--epochs", "2"]
    if arguments[0] == "bench":
        arguments += ["--seconds", "0.1", "--backbone", "mobilenet025", "--image-size", "32"]
    return arguments


def run_all() -> None:
    """Run the commands on standard input, one after another, and end at the first that fails."""
    for arguments in json.load(sys.stdin):
        words = [newest_run(Path()) if argument == "RUN" else argument for argument in arguments]
        done = CliRunner().invoke(app, words)
        if done.exit_code:
            sys.exit(f"{words} {done.output} {done.exception!r}")


def newest_run(folder: Path) -> str:
    """Of those that tell aliens from predators."""
    from pipeline.runs.classifier import MODEL_STAGES
    from pipeline.runs.find import all_runs

    known = [run for run in all_runs(folder / "reports") if run.stage in MODEL_STAGES]
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
