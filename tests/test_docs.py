"""The README and the help texts are part of the product."""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline
from pipeline.cli.main import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, item in app.commands.items():
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
    from pipeline.heads import KINDS

    done = CliRunner().invoke(app, ["train-head", "--help"], env={"COLUMNS": "200"})
    text = " ".join(done.output.split()).replace("- ", "-")  # a word that was broken at its dash
    for kind in KINDS:
        assert kind.form in text, kind.form
        for name, value in kind.defaults.items():
            own = text.split(f"--{name.replace('_', '-')} ")[1].split(" --")[0]
            if value is not None and not isinstance(value, bool):
                assert f"{kind.name}" in own.split("[")[-1], (kind.name, name)
                assert f": {value}" in own.split("[")[-1], (kind.name, name)


def example_blocks() -> list[str]:
    """The shell blocks of the README that are marked as runnable by their first line."""
    return re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def example_commands() -> list[str]:
    lines = "\n".join(example_blocks()).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("tlpipe ")]


def test_readme_has_examples() -> None:
    assert len(example_commands()) > 12


def test_every_command_of_the_readme_is_understood() -> None:
    """Its words and options are known; what they do is asked below."""
    for line in example_commands():
        words = shlex.split(line)[1:]
        with app.make_context("tlpipe", words) as context:
            name, command, rest = app.resolve_command(context, [*context._protected_args, *context.args])
            while rest and rest[0] in getattr(command, "commands", ()):
                name, command, rest = command.resolve_command(context, rest)
            with command.make_context(name, rest, parent=context):
                pass


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "whole"])
def test_every_command_of_the_readme_runs(whole: bool, tmp_path: Path, data: Path) -> None:
    """In the order of the page, in one folder; the pictures are a few of a public set, the backbone is made small.

    The quick half leaves out what takes seconds and differs from another line by options that have tests of their own.
    """
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
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name},{path.name}" for path in tmp_path.glob("pictures/*/*/*")]
    (tmp_path / "list.csv").write_text("\n".join(["path,species,camera", *sorted(rows)]))
    (tmp_path / "tars").mkdir()
    for number, name in enumerate(("alien", "predator")):
        with tarfile.open(tmp_path / "tars" / f"train-{number:06d}.tar", "w") as tar:
            for path in sorted((tmp_path / "pictures" / "train" / name).iterdir()):
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = len(name)
                tar.addfile(label, io.BytesIO(name.encode()))
    lines = [shlex.split(line)[1:] for line in example_commands()]
    commands = [made_small(arguments) for arguments in lines if arguments[0] != "demo"]  # which has a test of its own
    if not whole:
        commands = [arguments for arguments in commands if " ".join(arguments) not in LONG]
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


LONG = {
    "finetune --blocks block12,block13 --epochs 2",
    "finetune --blocks block13 --views 1 --augment flip --epochs 1",
    "finetune --blocks block13 --augment flip,crop --epochs 1",
    "finetune --blocks all --layer-decay 0.5 --remat --epochs 1",
    "finetune --blocks all --weights random --epochs 1",
    "finetune --head mlp512-128 --resume --epochs 1",
    "sweep --epochs 2",
    "sweep --head linear --grid full --epochs 2",
    "train-head --head mlp512-128 --label-smoothing 0.1 --calibrate",
    "export RUN --format openvino --output model",
    "export RUN --output model.onnx",
    "export RUN --format tflite",
    "report",
    "bench --seconds 0.1 --backbone mobilenet025 --image-size 32",
}


def made_small(arguments: list[str]) -> list[str]:
    """The same command with a small backbone and few epochs."""
    small = {"conv5": "block13", "conv4+conv5": "block11+block13", "conv4,conv5": "block12,block13"}
    arguments = [small.get(argument, argument) for argument in arguments]
    if arguments[0] == "extract" and not {"--backbone", "--again"} & set(arguments):
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
    from pipeline.runs.find import all_runs
    from pipeline.runs.run import FinetuneRun, HeadRun

    known = [run for run in all_runs(folder / "reports") if isinstance(run, (HeadRun, FinetuneRun))]
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


def test_every_module_says_what_it_is_and_every_face_what_it_offers() -> None:
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        assert module.__doc__, found.name
        if not found.ispkg:
            assert not hasattr(module, "__all__"), f"{found.name}: only a package shows its face"
        names = getattr(module, "__all__", [])
        assert sorted(names) == sorted(set(names)), found.name
        for name in names:
            assert hasattr(module, name), (found.name, name)


def test_the_page_of_the_house_names_every_door() -> None:
    page = (Path(pipeline.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 60
    root = Path(pipeline.__file__).parent
    doors = [
        path.name for path in root.iterdir() if path.name[0] not in "_." and path.name not in ("README.md", "py.typed")
    ]
    for door in doors:
        assert f"`{door.removesuffix('.py')}" in page, door
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page):
        assert (root / path).is_file() or (root.parent / path).is_file(), path


def test_the_reference_is_that_of_the_code() -> None:
    """Made anew by `make docs`."""
    from pipeline.cli.reference import reference

    page = Path(pipeline.__file__).parent.parent / "docs" / "commands.md"
    assert page.read_text(encoding="utf-8") == reference()
