"""Files at addresses that fsspec opens, such as s3://bucket/folder, beside those of this machine.

A path of `place` has the methods of `pathlib.Path`, wherever it lies: at an address it is a `UPath` of
universal_pathlib, which knows its file system (filesystem-spec.readthedocs.io). Accounts, endpoints and retries are
those of that file system, set by its own variables and files.
"""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, DataError
from pipeline.util.addresses import in_plain_words, is_remote

READERS = 96  # requests at a time: each waits long and needs little

LOUD = {"gs": ("gcsfs",), "gcs": ("gcsfs",)}
"""Loggers that print a traceback before the error that the caller gets, by protocol."""

HERE = re.compile(r"(?i)(file|local)://")
"""How an address of this machine begins."""
LED_ASTRAY = re.compile(r"(?i)(asynclocal|dir|dvc|generic|git|reference):")
"""How addresses begin that may lead to files of this machine which they don't name."""
ARCHIVE = re.compile(r"(?i)(zip|tar|libarchive)://")
"""How a link of a chain begins that takes all its bytes from the next one."""
BY_TURNS = ("tar", "libarchive", "ftp", "sftp", "ssh", "smb")
"""Protocols of file systems that have one open file, or one connection, for all threads."""

WITHOUT_ACCOUNT = ("zip", "tar", "libarchive", "github")
"""Protocols in whose addresses a colon before an @ is part of a name."""

_turns: dict[Any, Lock] = {}  # by file system
_first = Lock()  # as two threads must not each make one

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": READERS}},
    "http": {"use_listings_cache": True},
    "https": {"use_listings_cache": True},
}


class Entry(NamedTuple):
    """What lies in a folder at an address; like `os.DirEntry`."""

    name: str
    folder: bool

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.folder


def is_address(text: str) -> bool:
    """Whether a text is an address, not a path of this machine."""
    return re.match(r"(?i)([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+://", text) is not None


def whole_address(text: str) -> str:
    """An address that means the same from any folder: a file at the end of zip://flowers::flowers.zip gets its path."""
    head, chained, end = text.rpartition("::")
    return f"{head}::{Path(end).absolute()}" if chained and not is_address(end) else text.rstrip("/")


def place(text: str, *, cached: bool = True) -> Path:
    """The path that a text means, on this machine or at an address.

    Args:
        text: What a user named.
        cached: Whether lists of folders at an address may be kept.

    Raises:
        DataError: If it is an address of a kind that can't be opened here.
    """
    if not is_address(text):
        return Path(text).expanduser()
    check_address(text)
    protocol, _, rest = text.partition("://")
    protocol = protocol.lower()
    if HERE.match(text):
        return Path(rest)
    from upath import UPath

    with reaching(text):
        options = _OPTIONS.get(protocol, {}) | ({} if cached else {"use_listings_cache": False})
        found: Path = UPath(f"{protocol}://{rest.rstrip('/')}", **options)
        found.fs.protocol  # type: ignore[attr-defined]  # noqa: B018, opens what the address begins with, such as a zip
        return found


def check_address(text: str) -> None:
    """Refuse an address of a kind that can't be opened here, before anybody looks whether something lies there.

    Raises:
        DataError: If it is of such a kind, or holds a password.
    """
    protocol = text.partition("://")[0].lower()
    if "::" in protocol:
        first, _, address = text.partition("::")
        if "cache" in first.lower():
            raise DataError(f"{text} names a cache of fsspec; tlpipe keeps local copies itself, so give {address}")
        raise DataError(f"{text} says nothing of what is meant in {address}; for all of it, give {first}://::{address}")
    if any(_holds_password(link) for link in text.split("::")):
        raise DataError(
            f"{protocol}://... holds a password, which would be kept beside the features; give it to fsspec instead "
            "(filesystem-spec.readthedocs.io, configuration)"
        )
    try:
        import fsspec
        import upath  # noqa: F401
        from fsspec.archive import AbstractArchiveFileSystem

        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{text} can't be opened: {error}; for s3, gs, hf and https: pip install 'tlpipe[remote]'"
        ) from error
    if issubclass(kind, AbstractArchiveFileSystem) and "::" not in text:
        raise DataError(
            f"{text} names no {protocol} file; put it behind ::, as in {protocol}://::{text.partition('://')[2]}"
        )
    for logger in LOUD.get(protocol, ()):
        logging.getLogger(logger).setLevel(logging.CRITICAL)


def _holds_password(link: str) -> bool:
    protocol, _, rest = link.partition("://")
    return protocol.lower() not in WITHOUT_ACCOUNT and re.match(r"[^/:]*:[^/]*@", rest) is not None


def shared(text: str) -> Path:
    """The folder of a cache, or of runs, that a text means; what others put there at an address is seen at once.

    Raises:
        DataError: If it is an address of a kind that can't be opened here.
        ConfigError: If nothing could be kept there, or found again.
    """
    if is_address(text):
        protocol, _, rest = text.partition("://")
        if protocol.lower() == "memory" or not rest.strip("/"):
            raise ConfigError(f"{text} keeps nothing; give a folder in a bucket, such as s3://bucket/cache")
        if found := set("*?[]") & set(rest):
            raise ConfigError(
                f"{text} holds {' and '.join(sorted(found))}, which stand for patterns; take another name"
            )
    return place(text, cached=False)


def of_this_machine(text: str) -> Path:
    """The file or folder that is to be written here.

    Raises:
        ConfigError: If the text is an address.
    """
    if is_address(text):
        raise ConfigError(f"{text} is an address, and this is written on this machine; give a path, and copy it there")
    return Path(text)


def divided(address: str) -> tuple[str, str]:
    """The root of the file system that an address names, such as a bucket or a zip file, and the path from there."""
    head, chained, rest = address.partition("::")
    protocol, named, path = head.partition("://")
    if not named:  # what can't be opened, as `check_address` says
        return address, ""
    if chained:
        return f"{protocol}://::{rest}", path
    host, _, name = path.partition("/")
    return f"{protocol}://{host}", name


def joined(root: Path, name: str) -> str:
    """The address that `divided` took apart."""
    head, chained, rest = str(root).partition("::")
    slash = "" if head.endswith("/") else "/"
    return f"{head}{slash}{name}{chained}{rest}"


def reaching(address: object) -> AbstractContextManager[None]:
    """Say in plain words that an address can't be reached.

    Raises:
        DataError: In place of any error, of which each file system has its own kinds.
    """
    return in_plain_words(address, DataError)


def turn(path: Path) -> AbstractContextManager[object]:
    """Wait for one's turn at a file system that would mix up what several threads ask at a time."""
    if not (is_remote(path) and path.protocol in BY_TURNS):  # type: ignore[attr-defined]
        return nullcontext()
    with _first:
        return _turns.setdefault(path.fs, Lock())  # type: ignore[attr-defined]


def forget_lists(path: Path) -> None:
    """Have what lies at addresses listed again: lists that were kept may be older than what is asked for now."""
    path.fs.invalidate_cache()  # type: ignore[attr-defined]


def look_through(root: Path) -> None:
    """List a folder at an address and all below it, each level's folders at the same time.

    The lists are kept by the file system, where `entries` and `stamps.stamps_of` find them.

    Raises:
        DataError: If a folder can't be listed to its end.
    """
    with ThreadPoolExecutor(READERS) as pool:
        level = [root]
        while level:
            level = [
                inside(folder, entry.name)
                for folder, found in zip(level, pool.map(entries, level), strict=True)
                for entry in found
                if entry.folder
            ]


def inside(folder: Path, name: str) -> Path:
    """A folder in a folder at an address.

    Raises:
        DataError: If its name can't stand in an address.
    """
    if "::" in name:
        raise DataError(
            f"{folder} holds the folder {name!r}, whose name can't stand in an address, as :: joins; rename it"
        )
    return folder / name


def entries(folder: Path) -> list[Entry]:
    """What lies in a folder at an address, by name.

    Raises:
        DataError: If it can't be listed to its end.
    """
    return sorted(Entry(name, info["type"] == "directory") for name, info in listed(folder).items())


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """What the file system says of all in a folder, by name."""
    own = folder.path.rstrip("/")  # type: ignore[attr-defined]
    with reaching(folder), turn(folder):
        infos = folder.fs.ls(folder.path, detail=True)  # type: ignore[attr-defined]
    named = {info["name"].rstrip("/"): info for info in infos}
    named.pop(own, None)  # some object stores name the folder itself
    return {name.rpartition("/")[2]: info for name, info in named.items()}


def path_in(folder: Path, name: str) -> str:
    """What a file is called in its file system, where `::` in a name joins nothing."""
    own: str = folder.path  # type: ignore[attr-defined]
    return f"{own.rstrip('/')}/{name}" if own and name else own or name
