"""`extract` of a folder behind a slow object store, against the same folder on this machine."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import numpy as np
from common import finish, tlpipe, verdict
from PIL import Image

N = 3000
SECONDS = 0.05  # that each request takes
ROUNDS = 3
LEAST = 0.8
BUCKET = "pictures"
NETWORK = ("--weights", "random", *sys.argv[1:])


def draw(folder: Path) -> None:
    """JPEGs of about 20 kB in ten classes."""
    random = np.random.default_rng(0)
    for number in range(N):
        noise = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)
        fine = np.asarray(smooth) * 0.7 + random.integers(0, 60, (256, 256, 3))
        path = folder / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(fine.astype(np.uint8)).save(buffer, "JPEG", quality=72)
        path.write_bytes(buffer.getvalue())


async def serve(folder: Path) -> None:
    """Answer what S3 is asked to list and read a bucket, `SECONDS` late; in memory, so that it takes little time itself."""
    objects = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}

    def listed(query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        start = query.get("continuation-token", [""])[0]
        inside = [name for name in objects if name.startswith(prefix) and name > start]
        folders = sorted({name[: name.index("/", len(prefix)) + 1] for name in inside if "/" in name[len(prefix) :]})
        files = [name for name in inside if "/" not in name[len(prefix) :]]
        page = files[:1000]
        more = len(files) > len(page)
        keys = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{len(name)}-{len(objects[name])}"</ETag><Size>{len(objects[name])}</Size></Contents>'
            for name in page
        )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><IsTruncated>{str(more).lower()}</IsTruncated>'
            f"{token}{keys}{prefixes}</ListBucketResult>"
        ).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            address = urlsplit(target)
            name = address.path.removeprefix(f"/{BUCKET}").lstrip("/")
            await asyncio.sleep(SECONDS)
            found = objects.get(name) if name else listed(parse_qs(address.query))
            status = "404 Not Found" if found is None else "206 Partial Content" if b"\r\nRange:" in head else "200 OK"
            size = len(found or b"")
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Content-Type: application/xml", 'ETag: "a"']
            lines += ["Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", f"Content-Range: bytes 0-{size - 1}/{size}"]
            body = b"" if method == "HEAD" else found or b""
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(until_closed, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "set")
        mean = np.mean([path.stat().st_size for path in (folder / "set").rglob("*.jpg")])
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", folder / "set"], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        try:
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            tlpipe("extract", folder / "set" / "class0", *NETWORK, "--cache", folder / "first")  # converts the network
            rates: dict[str, list[float]] = {"here": [], "there": []}
            for number in range(ROUNDS):
                for where, data in (("here", folder / "set"), ("there", f"s3://{BUCKET}")):
                    cache = folder / f"{where}{number}"
                    shutil.copytree(folder / "first" / "graphs", cache / "graphs")
                    os.environ["TLPIPE_LOCAL_CACHE"] = str(folder / f"copies{number}")
                    result = tlpipe("extract", data, *NETWORK, "--cache", cache)
                    assert result["n_computed"] == N
                    rates[where].append(N / result["wall"])
                    of_pass = result["images_per_second"]
                    print(
                        f"{where}: {rates[where][-1]:.0f} images/s of the whole command, {of_pass:.0f} of the pass alone"
                    )
        finally:
            server.terminate()
            server.wait()
    here, there = (float(np.median(rates[where])) for where in ("here", "there"))
    print(f"{N:,} pictures of {mean / 1000:.0f} kB, {SECONDS * 1000:.0f} ms a request")
    ratio = there / here
    verdict(
        f"the whole command at the address: {ratio:.2f} of its rate on this machine (at least {LEAST})", ratio >= LEAST
    )
    finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(Path(sys.argv[2])))
    else:
        main()
