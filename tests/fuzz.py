"""Files of every kind that tlpipe reads, changed at random: each is read, or refused in plain words.

    python tests/fuzz.py 2000 [SEED] [KIND ...]

No other error than tlpipe's own may come out, nothing may take more than 10 seconds or 2 GB, and no file outside of
the data may be opened. Prints a line for each kind, and keeps what failed in tests/findings, which the quick tests
read again.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from pipeline.config import FeatureSpec, Folders, HeadConfig, ImageConfig, SplitConfig
from pipeline.data import open_dataset
from pipeline.data.corrections import read_corrections
from pipeline.data.images import _formats, decode, from_array
from pipeline.errors import TlpipeError
from pipeline.heads import load_head, make_head
from pipeline.labelling.journal import Answer, Journal
from pipeline.runs.folder import read_run
from pipeline.store.shards import FeatureStore
from pipeline.util import log
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp
from pipeline.util.sealed import decoded, read_json, sealed, unsealed

HERE = Path(__file__).parent
FINDINGS = HERE / "findings"
(SHARDS,) = HERE.glob("before/cache/features/*/shards")
SPEC = decoded(FeatureSpec, read_json(SHARDS.parent / "spec.json"))
SECONDS = 10
BYTES = 2 * 2**30
SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc/localtime")
MODES = ("RGB", "P", "1", "F")


class TooLongError(BaseException):
    """It took longer than it may; no Exception, so that nothing that is tried takes it for its own."""


@contextmanager
def refused() -> Iterator[None]:
    """Let files be refused, but not because memory ended."""
    try:
        yield
    except TlpipeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise AssertionError(f"it took more memory than it may: {error}") from error
            cause = cause.__cause__ or cause.__context__


def picture(form: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def seeds(folder: Path) -> dict[str, list[Path]]:
    """Small sound files of each kind."""
    found: dict[str, list[Path]] = {}

    def keep(kind: str, name: str, data: bytes) -> None:
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found.setdefault(kind, []).append(path)

    for form in sorted(set(_formats()) & set(Image.SAVE)):  # all that can be made here
        for mode in MODES:
            with suppress(OSError, ValueError, SystemError, KeyError):
                keep("picture", f"a.{form.lower()}", picture(form, mode))
                break
    keep("picture", "palette.png", picture("PNG", "P"))
    keep("picture", "grey.jpg", picture("JPEG", "L"))
    keep("picture", "cmyk.jpg", picture("JPEG", "CMYK"))
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1, 0, 1])
    images += np.arange(6, dtype=np.uint8)[:, None, None, None]
    for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, images=images, labels=labels)
        keep("npz", name, buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, images)
    keep("npy", "train_images.npy", buffer.getvalue())
    rows = "".join(f"{number}.png,{'xy'[number % 2]},{('train', 'val', 'test')[number % 3]}\n" for number in range(6))
    keep("csv", "list.csv", f"path,label,split\n{rows}".encode())
    keep("csv", "list.tsv", f"path,label,split\n{rows}".replace(",", "\t").encode())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(6):
            for suffix, data in (("png", picture("PNG")), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    keep("tar", "a.tar", buffer.getvalue())
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = [{"bytes": picture("PNG") + bytes([number]), "path": None} for number in range(6)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": column, "label": ["x", "y"] * 3}), buffer)
    keep("parquet", "a.parquet", buffer.getvalue())
    before = HERE / "before" / "reports"
    for path in sorted(before.glob("*/run.json")):
        keep("run.json", path.parent.name, path.read_bytes())
    for name in ("ridge", "knn3", "centroid"):
        head, config = make_head(HeadConfig(name))
        with tempfile.TemporaryDirectory() as place:
            fitted(head).save(Path(place))
            keep("head", name, (Path(place) / "head.npz").read_bytes())
        assert config.head == name
    for path in sorted(SHARDS.glob("*.h5")):
        keep("shard", path.name, path.read_bytes())
    journal = Journal(folder / "labels.jsonl", "/data")
    journal.name_class("rose")
    for number in range(6):
        journal.append([Answer(f"{number:032x}", f"{number}.png", "rose", "me", shown={"tab": "label"})])
    journal.close()
    keep("labels", "labels.jsonl", journal.path.read_bytes())
    keep(
        "labels", "labels.csv", b"key,path,label\n" + b"".join(b"%032x,%d.png,rose\n" % (row, row) for row in range(6))
    )
    memo = Memo(folder / "memo")
    memo.remember("image", {folder / f"{number}": (Stamp(number, number), "0" * 32) for number in range(20)}, 2**62)
    keep("memo", "memo.sqlite", memo.path.read_bytes())
    return found


def fitted(head: Any) -> Any:
    """A head that was fitted on a few drawn rows."""
    from pipeline.store.rows import Part, nothing

    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    keys = np.array([f"{number:032x}".encode() for number in range(12)])
    part = Part(features, np.arange(12) % 2, keys, np.zeros(12, np.int64))
    head.fit(part, nothing(part), 2)
    return head


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A few changes of the kinds that find most: bits, bytes, cuts, copies, numbers at their ends."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        at = draw.randrange(len(found))
        kind = draw.randrange(7)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            end = min(len(found), at + draw.randrange(1, 64))
            found[at:at] = found[at:end]
        elif kind == 4:
            del found[at : at + draw.randrange(1, 64)]
        elif kind == 5:
            number = draw.choice((0, 2**31 - 1, 2**32 - 1, 2**63 - 1, 1))
            found[at : at + 8] = number.to_bytes(8, draw.choice(("little", "big")))
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            found[at : at + 32] = other[start : start + 32]
    return bytes(found)


def mutated_lines(data: bytes, draw: random.Random) -> bytes:
    """One line is another one, sealed again; or it is there twice."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    lines[at : at + 1] = [mutated_json(lines[at], draw)] if draw.random() < 0.9 else [lines[at]] * 2
    return b"\n".join([*lines, b""])


TOKENS = (b"../", b"../secret.png", b"{outside}/secret.png", b"{outside}/", b"file://", b"file://{outside}/secret.png")
TOKENS += (
    b"zip://x::",
    b"zip://a.png::{outside}/secret.zip",
    b"zip://a.png::file://{outside}/secret.zip::memory://x/",
    b"zip://a.png::{outside}/secret.zip::memory://x/",
    b"link.png",
    b"up/",
    b"up/secret.png",
    b"~/",
    b"./",
    b"/",
)


def mutated_names(data: bytes, draw: random.Random) -> bytes:
    """One of the paths in a table is another one, or begins with what may lead out of the folder."""
    name = draw.choice(list(re.finditer(rb"\d\.png", data)))
    return data[: name.start()] + draw.choice(TOKENS) + draw.choice((b"", name[0])) + data[name.end() :]


def mutated_shard(data: bytes, draw: random.Random) -> bytes:
    """A sound HDF5 file in which one thing is another one, or is missing."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "a") as file:
        holder, name = draw.choice(
            [(file, "key"), (file, "features"), (file.attrs, "spec"), (file.attrs, "written_by")]
        )
        if name in holder:  # shards of before 0.2 don't say what wrote them
            del holder[name]
        if (other := draw.choice(STRANGE_ARRAYS)) is not None:
            holder[name] = other
    return buffer.getvalue()


STRANGE_ARRAYS: tuple[Any, ...] = (None, 7, -1.5, "", "[", "a" * 5000, b"\xff", np.zeros(0), np.zeros((120, 0)))
STRANGE_ARRAYS += (np.zeros((2, 3)), np.full((1, 2, 2, 1), np.nan), np.array([b"x"] * 120), h5py.Empty("f"))
STRANGE_ARRAYS += (np.zeros(3, [("a", "f4"), ("b", "S2")]), np.zeros(2**12, "i8"))
STRANGE = (None, True, -1, 0, 1e308, "", "../../x", "\ud800", [], {}, [[]], 2**70, "a" * 5000, "9999-99-99T00:00:00")


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """One value or name inside is another one; sealed again, so that what reads it must look itself."""
    value = unsealed(json.loads(data))
    holders: list[Any] = []

    def collect(one: Any) -> None:
        if isinstance(one, (dict, list)) and one:
            holders.append(one)
            for inner in one.values() if isinstance(one, dict) else one:
                collect(inner)

    collect(value)
    for _ in range(draw.choice((1, 1, 2))):
        if not (left := [one for one in holders if one]):
            break
        holder = draw.choice(left)
        place = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if draw.random() < 0.2:
            with suppress(IndexError):
                holder.pop(place)
        else:
            holder[place] = draw.choice(STRANGE)
    return json.dumps(sealed(value)).encode()


def read_data(path: Path) -> None:
    """As `extract` does, up to the pixels."""
    opened = open_dataset(str(path), SplitConfig())
    for row in range(min(len(opened.dataset), 8)):
        with refused():
            content = opened.source.read(row)
            (decode(content, ImageConfig((16, 16))) if isinstance(content, bytes) else from_array(content))
    opened.dataset.counts()


def read_table(path: Path) -> None:
    for number in range(6):
        (path.parent / f"{number}.png").write_bytes(picture("PNG") + bytes([number]))
    read_data(path)


def read_picture(path: Path) -> None:
    decode(path.read_bytes(), ImageConfig((16, 16)))


def read_arrays(path: Path) -> None:
    np.save(path.with_name("train_labels.npy"), np.array([0, 1, 0, 1, 0, 1]))
    read_data(path.parent)


def read_a_run(path: Path) -> None:
    from pipeline.cli import render
    from pipeline.runs.run import RatedRun

    folder = path.with_name("run") / path.name
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "run.json")
    run = read_run(folder)
    json.dumps(run.to_json())
    render.runs_text([run])
    if isinstance(run, RatedRun):
        render.run_text(run, Folders())


def read_head(path: Path) -> None:
    folder = path.with_name("folder")
    folder.mkdir()
    shutil.copy(path, folder / "head.npz")
    head = load_head(folder, HeadConfig(path.name))
    with np.errstate(all="ignore"):
        head.predict_proba(np.zeros((2, head.n_features), np.float32))


def read_shard(path: Path) -> None:
    """As a store does that finds it among its own."""
    store = FeatureStore(path.with_name("cache"), SPEC)
    (store.folder / "shards").mkdir(parents=True)
    shutil.copy(path, store.folder / "shards" / path.name)
    if not store.open(set_aside=False):
        assert path.stem == digest_of(path.read_bytes()), "a changed shard passed"
        for shard in store.shards:
            store.read(shard.keys)


def read_labels(path: Path) -> None:
    with refused():
        for one in read_corrections(str(path)):
            assert one.label
    if path.suffix == ".jsonl":
        journal = Journal(path, "/data")
        assert all(isinstance(answer.label, str) for answer in journal.answers)
        journal.close()


def read_memo(path: Path) -> None:
    cache = path.with_name("cache")
    cache.mkdir()
    shutil.copy(path, cache / "memo.sqlite")
    memo = Memo(cache)
    found = memo.recall(
        "image", {path.parents[2] / "seeds" / f"{number}": Stamp(number, number) for number in range(20)}
    )
    assert set(found.values()) <= {"0" * 32}, "a changed row was believed"
    memo.remember_text("a", "b")


READERS: dict[str, Callable[[Path], None]] = {
    "picture": read_picture,
    "npz": read_data,
    "npy": read_arrays,
    "csv": read_table,
    "tar": read_data,
    "parquet": read_data,
    "run.json": read_a_run,
    "head": read_head,
    "shard": read_shard,
    "labels": read_labels,
    "memo": read_memo,
}
opened_outside: list[str] = []
watched: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened outside of the folder of the data, but for libraries and what the system tells."""
    if event != "open" or not watched or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  # libraries are known by links, too
    known = (sys.prefix, sys.base_prefix, str(HERE.parent / "pipeline"), *SYSTEM)
    if not is_below(os.path.realpath(path), watched[:1]) and not is_below(path, known):
        opened_outside.append(path)


def is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}{os.sep}") for folder in folders)


def problem_of(kind: str, path: Path) -> str:
    """What is wrong with how a file is read; "" if nothing is."""
    opened_outside.clear()
    watched[:] = [os.path.realpath(path.parent)]

    def alarm(*_: object) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    start = time.monotonic()
    try:
        with refused():
            READERS[kind](path)
        assert time.monotonic() - start < SECONDS, (
            f"more than {SECONDS} s"
        )  # the alarm may have been taken for something else
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        watched.clear()
    return f"opened {opened_outside[0]}" if opened_outside else ""


def main() -> None:
    words = sys.argv[1:]
    numbers = [int(word) for word in words if word.isdecimal()]
    n, seed = (numbers + [2000, 0][len(numbers) :])[:2]
    kinds = [word for word in words if word in READERS] or list(READERS)
    draw = random.Random(seed)
    log.disabled = True
    sys.addaudithook(watch)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        found = seeds(Path(name) / "seeds")
        for kind in kinds:
            for path in found[kind]:  # what isn't changed is read
                problem = problem_of(kind, fresh(Path(name) / "work", path.name, path.read_bytes()))
                assert not problem, (kind, path.name, problem)
        limit = Path("/proc/self/statm").read_text().split()[0]
        resource.setrlimit(resource.RLIMIT_AS, (int(limit) * resource.getpagesize() + BYTES, resource.RLIM_INFINITY))
        for kind in kinds:
            problems: Counter[str] = Counter()
            data = [path.read_bytes() for path in found[kind]]
            for _ in range(n // len(kinds)):
                number = draw.randrange(len(data))
                called, bad = changed(kind, found[kind][number].name, data[number], data, draw)
                path = fresh(Path(name) / "work", called, bad)
                if problem := problem_of(kind, path):
                    if not problems[problem]:
                        FINDINGS.mkdir(exist_ok=True)
                        (FINDINGS / f"{kind}+{len(problems)}+{path.name}").write_bytes(bad)
                    problems[problem] += 1
            print(
                f"{kind}: {n // len(kinds):,} files, {problems.total()} problems",
                *problems.items(),
                sep="\n  ",
                flush=True,
            )
            failed |= bool(problems)
    sys.exit(failed)


def changed(kind: str, name: str, data: bytes, others: list[bytes], draw: random.Random) -> tuple[str, bytes]:
    """The name of a changed file, and what it holds; half of those that have a seal, or name others, are sound so far."""
    plain = draw.random() < 0.5
    if kind == "run.json":
        return name, mutated_json(data, draw)
    if plain or kind not in ("csv", "shard", "labels") or name == "labels.csv":
        return name, mutated(data, others, draw)
    if kind == "csv":
        return name, mutated_names(data, draw)
    if kind == "labels":
        return name, mutated_lines(data, draw)
    bad = mutated_shard(data, draw)
    return f"{digest_of(bad)}.h5", bad


def fresh(work: Path, name: str, data: bytes) -> Path:
    """A file alone in a folder; a table beside links to what lies outside of it."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "data").mkdir(parents=True)
    path, outside = work / "data" / name, work / "outside"
    path.write_bytes(data.replace(b"{outside}", bytes(outside)))
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture("PNG"))
    with zipfile.ZipFile(outside / "secret.zip", "w") as file:
        file.writestr("a.png", picture("PNG"))
    if path.suffix in (".csv", ".tsv"):
        (path.parent / "link.png").symlink_to(outside / "secret.png")
        (path.parent / "up").symlink_to(outside)
    return path


if __name__ == "__main__":
    main()
