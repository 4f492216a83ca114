"""What lies in a cache, for the scripts that see whether anything of it was lost or changed."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.shards import stores


def rows_of(cache: Path) -> dict[bytes, bytes]:
    """The features of all rows, each by the digest of its spec and its key.

    Raises:
        AssertionError: If a shard is damaged, or a row is there twice and differs.
    """
    found: dict[bytes, bytes] = {}
    for store in stores(cache):
        assert store.open(set_aside=False) == [], "a shard is damaged"
        for shard in store.shards:
            for key, row in zip(shard.keys, store.read(shard.keys), strict=True):
                name = store.digest.encode() + bytes(key)
                assert found.setdefault(name, row.tobytes()) == row.tobytes(), f"the row {key!r} differs from its copy"
    return found
