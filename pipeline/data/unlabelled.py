"""Images without labels: files, folders and manifests, as a user names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.dataset import printable
from pipeline.data.folder import files_below, is_image
from pipeline.data.manifest import MANIFEST_SUFFIXES, read_paths
from pipeline.data.source import FileSource
from pipeline.errors import DataError


def list_images(names: Sequence[str], path_column: str | None = None) -> tuple[list[str], FileSource]:
    """The images that a user names, and where each lies, as a path from where the user stands.

    Args:
        names: Files, folders (with all that lies below them), and manifests.
        path_column: Column of a manifest that holds the paths; None for the common names.

    Raises:
        DataError: If one isn't there, or holds no images.
    """
    locations: list[str] = []
    paths: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if not name or not path.exists():
            raise DataError(f"There is no {name!r}; give images, folders, or a {', '.join(MANIFEST_SUFFIXES)} file")
        if path.is_dir():
            found = [str(path / file) for file in files_below(path) if is_image(file)]
        elif path.suffix.lower() in MANIFEST_SUFFIXES:
            found = [str(file) for file in read_paths(path, path_column)]
        else:
            found = [str(path)]
        if not found:
            raise DataError(f"{name} holds no images; give a folder or a manifest that does")
        paths += found
        locations += [printable(file) for file in found]
    return locations, FileSource(paths)
