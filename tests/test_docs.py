"""The documentation and the help texts are part of the product."""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import pipeline
from pipeline import commands
from pipeline.cli.main import app
from pipeline.cli.reference import PAGES
from pipeline.config import HeadConfig
from pipeline.config.folders import FILES
from pipeline.data import file_key
from pipeline.util.sealed import sealed

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OF_THE_CODE = [ROOT / ".github" / "CONTRIBUTING.md", ROOT / ".github" / "SECURITY.md", ROOT / "pipeline" / "README.md"]
MADE = [ROOT / "docs" / "reference" / name for name in PAGES]
WRITTEN = [README, *sorted(set((ROOT / "docs").rglob("*.md")) - set(MADE))]
"""The pages that people wrote; the others are made from the code."""

CANT_RUN = {
    "make demo": "is tested in tests/test_stages.py",
    "make setup": "has happened",
    "make lint": "and tests run one another",
    "make test": "would run this test",
    "make test-slow": "would run this test",
    "make docs": "is done below",
    ". .venv/bin/activate": "is for a shell; tests run in it",
    "export TLPIPE_WEIGHTS=/data/weights": "names a folder that isn't there",
    "pip wheel --wheel-dir wheels --constraint constraints.txt '.[cpu,dev]' hatchling editables": "needs the network",
    "PIP_NO_INDEX=1 PIP_FIND_LINKS=/data/wheels make demo": "needs the wheels of the line before",
    "docker build -f .ci/Containerfile -t tlpipe .": "needs Docker",
    "docker run tlpipe": "the same",
    "docker run tlpipe make test": "the same",
    'docker run -v "$PWD:/data" -w /data tlpipe /tlpipe/.venv/bin/tlpipe extract pictures': "the same",
    "python docs/recipes/run.py docs/recipes/aliens.sh alien-predator": "takes minutes: test_a_recipe_runs",
    "python docs/recipes/run.py docs/recipes/cifar10.sh cifar10-5k.npz --backbone densenet201": "the same",
    'eval "$(_TLPIPE_COMPLETE=bash_source tlpipe)"': "is for a shell; completion is tested in tests/test_cli.py",
    "array=$(sbatch --parsable --array=1-16 docs/how-to/slurm.sh pictures)": "needs Slurm; the script is read by bash below",
    "sbatch --dependency=afterany:$array docs/how-to/slurm.sh pictures": "needs Slurm",
    "tlpipe extract alien-predator --backbone hub:dinov2_small --pooling cls+avg": "fetches a preset: tests/test_hub.py",
    "tlpipe extract alien-predator --backbone hub:hf://keras/siglip_base_patch16_224 --endpoint block11": "the same",
    "tlpipe extract alien-predator --backbone hub:FOLDER": "the same",
    "tlpipe finetune --blocks block11": "goes on from a preset",
    "tlpipe extract alien-predator --backbone resnet.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225": (
        "needs a network as a file: tests/test_onnx_backbone.py"
    ),
    "tlpipe extract alien-predator --backbone vit.onnx --endpoint last_hidden_state --pooling cls+avg": "the same",
    "tlpipe label pictures --classes daisy,rose,tulip --backbone mobilenet025 --image-size 128": (
        "serves a page: tests/test_labelling.py"
    ),
    "tlpipe extract s3://bucket/flowers": "needs a bucket: tests/test_remote.py",
    "tlpipe extract s3://bucket/flowers --cache s3://bucket/cache": "the same: tests/test_shared_cache.py",
    "tlpipe train-head --cache s3://bucket/cache": "the same",
    "tlpipe extract s3://bucket/flowers --cache s3://bucket/cache --on ray": "the same: tests/test_cluster.py",
}
"""Lines that are shown and not run, with the reason; those of tlpipe are parsed all the same."""

QUICK = ("README.md", "docs/how-to/look-after-the-cache.md")
"""Pages that are run, but for their long commands, among the quick tests."""


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, item in app.commands.items():
        inner = getattr(item, "commands", None)
        found += [(name, part) for part in inner] if inner else [(name,)]
    return found


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_command_is_documented_and_has_help(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.output
    for option in re.findall(r"^ +(--[a-z-]+)(?: +[A-Z]+)? *$", done.output, re.MULTILINE):
        raise AssertionError(f"{option} has no help")
    text = "\n".join(page.read_text(encoding="utf-8") for page in WRITTEN)
    assert " ".join(["tlpipe", *command]) in text
    assert command[0] in README.read_text(encoding="utf-8")


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


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page that are run, in their order: "sh" or "python", and the text."""
    return re.findall(r"```(sh|python)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def lines_of(block: str) -> list[str]:
    """The lines of a block of the shell, without comments."""
    lines = [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_there_are_examples() -> None:
    assert sum(len(lines_of(text)) for page in WRITTEN for kind, text in blocks(page) if kind == "sh") > 60
    shown = {line for page in WRITTEN for kind, text in blocks(page) if kind == "sh" for line in lines_of(text)}
    assert not set(CANT_RUN) - shown
    started = {step.splitlines()[0] for page in WRITTEN if name_of(page) in QUICK for _, step in steps(page)}
    assert not LONG - started


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_line_is_understood(page: Path) -> None:
    """Words and options of tlpipe are known, Python compiles, extras and scripts exist; what they do is asked below."""
    for kind, text in blocks(page):
        if kind == "python":
            compile(text, name_of(page), "exec")
            continue
        for line in lines_of(text):
            words = shlex.split(line)
            if words[0] == "tlpipe":
                understood(words[1:])
            elif words[0] == "pip" and line not in CANT_RUN:
                assert set(re.findall(r"[a-z]+", words[-1])) <= extras(), line
            elif words[0] == "make":
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            else:
                assert line in CANT_RUN or words[0] in ("python", "mv", "rm"), line


@pytest.mark.parametrize("page", [*WRITTEN, *OF_THE_CODE], ids=name_of)
def test_commands_inside_of_sentences_are_understood(page: Path) -> None:
    """Such as those that stand beside a figure; a sentence may leave out what a command can't do without."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in re.findall(r"`(tlpipe [^`]+)`", text):
        with suppress(click.MissingParameter):
            understood(shlex.split(line)[1:])


def test_tables_name_commands() -> None:
    assert sum(page.read_text(encoding="utf-8").count("`tlpipe ") for page in WRITTEN) > 50


def understood(words: list[str]) -> None:
    with app.make_context("tlpipe", words) as context:
        name, command, rest = app.resolve_command(context, [*context._protected_args, *context.args])
        while rest and rest[0] in getattr(command, "commands", ()):
            name, command, rest = command.resolve_command(context, rest)
        with command.make_context(name, rest, parent=context):
            pass


def extras() -> set[str]:
    import importlib.metadata

    return set(importlib.metadata.metadata("tlpipe").get_all("Provides-Extra"))


def steps(page: Path) -> list[tuple[str, str]]:
    """What is run of a page: "tlpipe", "shell" or "python", and the text, made small."""
    found = []
    for kind, text in blocks(page):
        if kind == "python":
            found.append(("python", python_made_small(text)))
            continue
        for line in lines_of(text):
            if line in CANT_RUN or line.startswith("pip "):
                continue
            if line.startswith("tlpipe "):
                found.append(("tlpipe", shlex.join(made_small(shlex.split(line)[1:]))))
            else:
                found.append(("shell", line))
    return found


def run(pages: list[tuple[Path, list[tuple[str, str]]]], world: Path, folder: Path) -> None:
    """Run steps of pages, each in a folder of its own that holds what they speak of."""
    asked = []
    for number, (page, found) in enumerate(pages):
        place = folder / str(number)
        if any("draw_pictures.py" in text for _, text in found):
            place.mkdir()
            (place / "docs").symlink_to(ROOT / "docs")
        else:
            shutil.copytree(world, place)
        asked.append((name_of(page), str(place), found))
    # One process for all: most of each would be spent on importing TensorFlow.
    script = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import test_docs; test_docs.run_all()"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(asked),
        env={**environment, "TLPIPE_CACHE": "cache"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]


def run_all() -> None:
    """Run the steps on standard input, one after another, and end at the first that fails."""
    for page, place, found in json.load(sys.stdin):
        os.chdir(place)
        names: dict[str, Any] = {}
        for kind, text in found:
            start = time.perf_counter()
            if kind == "python":
                exec(compile(text, page, "exec"), names)
            elif kind == "shell":
                subprocess.run(["bash", "-e", "-c", text], check=True)
            else:
                words = [one.replace("RUN", newest_run(Path())) if "RUN" in one else one for one in shlex.split(text)]
                done = CliRunner().invoke(app, words)
                if done.exit_code:
                    sys.exit(f"{page}: {words} {done.output} {done.exception!r}")
            print(f"{time.perf_counter() - start:6.1f} s  {page}: {text.splitlines()[0]}", file=sys.stderr)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: a few pictures of a public set in every form that they name."""
    folder = tmp_path_factory.mktemp("world")
    data = Path(os.environ["TLPIPE_TEST_DATA"])
    for split in ("train", "validation"):
        for name in ("alien", "predator"):
            target = folder / "pictures" / split / name
            target.mkdir(parents=True)
            for number in range(1, 13):
                shutil.copy(data / "alien-predator" / split / name / f"{number}.jpg", target)
    write_small_set(data / "cifar10" / "cifar10-5k.npz", folder / "cifar10-5k.npz")
    shutil.copy(folder / "cifar10-5k.npz", folder / "cifar10-30k.npz")
    shutil.copytree(folder / "pictures", folder / "alien-predator")
    shutil.copytree(folder / "pictures" / "validation", folder / "more-pictures")
    shutil.copytree(folder / "pictures" / "validation" / "alien", folder / "unlabelled")
    shutil.copy(folder / "unlabelled" / "1.jpg", folder)
    pictures = [path.relative_to(folder) for path in sorted(folder.glob("pictures/*/*/*"))]
    rows = [f"{path},{path.parent.name},{path.name}" for path in pictures]
    (folder / "list.csv").write_text("\n".join(["path,species,camera", *rows]))
    said = zip(pictures[:4], ("alien", "predator", "drop", "alien"), strict=True)
    lines = [{"key": file_key((folder / path).read_bytes()).decode(), "label": label} for path, label in said]
    (folder / "labels.jsonl").write_text("".join(json.dumps(sealed(line)) + "\n" for line in lines))
    (folder / "labels.csv").write_text("path,label\ntrain/alien/1.jpg,predator\ntrain/alien/2.jpg,drop\n")
    with zipfile.ZipFile(folder / "flowers.zip", "w") as file:
        for path in pictures:
            file.write(folder / path, Path("flowers", *path.parts[1:]))
    (folder / "tars").mkdir()
    for number, name in enumerate(("alien", "predator")):
        with tarfile.open(folder / "tars" / f"train-{number:06d}.tar", "w") as tar:
            for path in sorted((folder / "pictures" / "train" / name).iterdir()):
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = len(name)
                tar.addfile(label, io.BytesIO(name.encode()))
    return folder


LONG = {
    "report",
    "export best --format keras",
    "from pipeline import export, extract, finetune, inspect, predict, report, train_head",
    "finetune --blocks block13 --epochs 1",
    "bench --seconds 0.1 --backbone mobilenet025 --image-size 32",
    "doctor",
}
"""What the quick tests leave out; of Python the first line of a block."""


def made_small(arguments: list[str]) -> list[str]:
    """The same command with a small backbone and few epochs."""
    small = {"conv5": "block13", "conv4+conv5": "block11+block13", "conv4,conv5": "block12,block13"}
    arguments = [small.get(argument, argument) for argument in arguments]
    if arguments[0] == "extract" and not {"--backbone", "--again"} & set(arguments):
        arguments += ["--backbone", "mobilenet025", "--image-size", "64"]
        # Heads of so few pictures are so steep that bfloat16, where the processor has it, shows in their probabilities.
        arguments += [] if "--precision" in arguments else ["--precision", "float32"]
    if arguments[0] == "finetune" and "--epochs" not in arguments:
        arguments += ["--epochs", "1"]
    if arguments[0] == "sweep" and ("--head" not in arguments or "linear" in arguments):
        arguments += ["--epochs", "2"]
    if arguments[0] == "bench":
        arguments += ["--seconds", "0.1", "--backbone", "mobilenet025", "--image-size", "32"]
    return arguments


def python_made_small(text: str) -> str:
    """The same block with a small backbone."""
    small = '"mobilenet025", image_size=64'
    text = text.replace('("densenet121")', f"({small})").replace('backbone="densenet121"', f"backbone={small}")
    return text.replace('extract("pictures")', f'extract("pictures", backbone={small})').replace('"conv5"', '"block13"')


def newest_run(folder: Path) -> str:
    """Of those that tell aliens from predators."""
    from pipeline.runs.find import all_runs
    from pipeline.runs.run import FinetuneRun, HeadRun

    known = [run for run in all_runs(folder / "reports") if isinstance(run, (HeadRun, FinetuneRun))]
    return [run.id for run in known if run.class_names == ["alien", "predator"]][-1]


def write_small_set(source: Path, target: Path) -> None:
    with np.load(source) as file:
        np.savez(
            target,
            x_train=file["x_train"][:200],
            y_train=file["y_train"][:200],
            x_test=file["x_test"][:50],
            y_test=file["y_test"][:50],
            class_names=file["class_names"],
        )


@pytest.mark.weights
@pytest.mark.data
def test_quick_pages_run(world: Path, tmp_path: Path) -> None:
    """Without what takes seconds and differs from another line by options that have tests of their own."""
    pages = [page for page in WRITTEN if name_of(page) in QUICK]
    run(
        [(page, [step for step in steps(page) if step[1].splitlines()[0] not in LONG]) for page in pages],
        world,
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize("page", [page for page in WRITTEN if steps(page)], ids=name_of)
def test_every_page_runs(page: Path, world: Path, tmp_path: Path) -> None:
    """All blocks of a page, in their order, in one folder; the backbone is made small."""
    run([(page, steps(page))], world, tmp_path)
    assert unknown_files(tmp_path / "0") == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [README, *OF_THE_CODE], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Those of the site are followed as it is built."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_the_site_is_built(tmp_path: Path) -> None:
    """With strict links; `make docs` does the same."""
    command = ["mkdocs", "build", "--strict", "--quiet", "--config-file", ".ci/mkdocs.yml", "--site-dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "reference" / "python.html").is_file()


def test_the_script_for_slurm_is_bash() -> None:
    subprocess.run(["bash", "-n", ROOT / "docs" / "how-to" / "slurm.sh"], check=True)


@pytest.mark.slow
@pytest.mark.weights
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "features-in-a-notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_screenshots_are_taken(tmp_path: Path) -> None:
    import screenshots

    screenshots.main(tmp_path)
    for path in (ROOT / "docs" / "pictures").iterdir():
        assert path.stat().st_size < 200_000
        shown, taken = (Image.open(one).convert("L") for one in (path, tmp_path / path.name))
        assert shown.size == taken.size, path.name
        # Seconds and dates differ, and a little of what is drawn; another page, or another place of it, differs by more.
        small = [np.asarray(one.resize((64, 64), Image.Resampling.BOX), float) for one in (shown, taken)]
        assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] > 0.9, path.name


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


def test_the_map_of_the_code_names_every_package_and_every_file_that_it_names_is_there() -> None:
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


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_that_of_the_code(name: str) -> None:
    """Made anew by `make docs`."""
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == PAGES[name]()


def unknown_files(folder: Path) -> list[str]:
    """Files in a cache and a reports folder that the table of files doesn't know."""
    known = [re.compile(pattern_of(f"{one.folder}/{one.path}")) for one in FILES]
    names = [
        path.relative_to(folder).as_posix()
        for place in ("cache", "reports")
        for path in sorted((folder / place).rglob("*"))
        if path.is_file()
    ]
    return [name for name in names if not any(one.fullmatch(name) for one in known)]


def pattern_of(path: str) -> str:
    """<any> stands for any names, other words in brackets for one name."""
    parts = re.split(r"(<[^>]+>)", path)
    return "".join(".+" if part == "<any>" else "[^/]+" if part.startswith("<") else re.escape(part) for part in parts)


def test_the_table_of_files_knows_what_is_written(extracted: Any, cache: Path, reports: Path, pictures: Path) -> None:
    """Pages, models and exports are asked about where the pages of the documentation run."""
    run = commands.train_head(HeadConfig("ridge"), cache, reports)
    commands.evaluate(run.id, None, cache, reports)
    commands.inspect(str(pictures), cache, reports)
    assert len(list(reports.rglob("*"))) > 8
    assert unknown_files(cache.parent) == []
    (reports / run.id / "other.bin").touch()
    assert unknown_files(cache.parent) == [f"reports/{run.id}/other.bin"]


RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.sh"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_line_of_a_recipe_is_understood(recipe: Path) -> None:
    lines = [line for line in lines_of(recipe.read_text(encoding="utf-8")) if line.startswith("tlpipe ")]
    assert len(lines) > 4
    for line in lines:
        understood(shlex.split(line)[1:])
    done = subprocess.run(["sh", "-n", str(recipe)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [recipe.stem for recipe in RECIPES])
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    """On scans of digits at 32 px, with real weights where there are any: those at random may diverge in one epoch."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row, (pixels, digit) in enumerate(zip(digits.images[:240] * 15.9, digits.target, strict=False)):
        folder = tmp_path / "digits" / ("train" if row < 160 else "validation") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{row}.png")
    recipes = ROOT / "docs" / "recipes"
    weights = () if name != "vgg16" and "TLPIPE_WEIGHTS" in os.environ else ("--weights", "random")
    small = (str(tmp_path / "digits"), *weights, "--image-size", "32")
    command = [sys.executable, str(recipes / "run.py"), str(recipes / f"{name}.sh"), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if " GB" in line]
    lines = [line for line in (recipes / f"{name}.sh").read_text().splitlines() if line.startswith("tlpipe ")]
    assert ["%" in row for row in rows] == [not line.startswith("tlpipe extract") for line in lines]
