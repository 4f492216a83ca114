"""`extract --on ray`: rate by the number of actors, planning of a million blocks, clusters that grow, nodes that die.

    cluster.py rate            an engine that sleeps 20 ms an image, with 1 to 32 actors
    cluster.py plan            a million blocks
    cluster.py grow            a cluster of one node that may grow to four; other clusters of this machine are stopped
    cluster.py deaths [N]      N times (10) a node of two dies, with the data and the cache in a folder, then in S3

`deaths` puts the nodes into network namespaces, which takes root, and starts a server of the S3 protocol in a third.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import finish, small_images, verdict
from PIL import Image

from pipeline.config import FeatureSpec, ImageConfig
from pipeline.data import ArraySource
from pipeline.extraction import cluster
from pipeline.extraction.pass_ import PassReport, Row
from pipeline.store.shards import FeatureStore
from pipeline.util import remote

ACTORS = (1, 2, 4, 8, 16, 32)
SECONDS = 0.02  # that the engine sleeps for each image
LENGTH = 20  # seconds that each run would take if it were linear
LEAST = 0.9
MORE_NODES = 3
GROWING = 60  # seconds that all nodes together have work for; a node comes after some 10
AUTOSCALER = {  # of Ray's provider of nodes that are processes of one machine, for tests of its autoscaler
    "cluster_name": "growing",
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "max_workers": MORE_NODES,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MORE_NODES},
    },
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1,
    "file_mounts_sync_continuously": False,
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **dict.fromkeys(("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"), ()),
    **dict.fromkeys(("head_start_ray_commands", "worker_start_ray_commands"), ()),
    **dict.fromkeys(("cluster_synced_files", "rsync_exclude", "rsync_filter"), ()),
}
BLOCKS = 1_000_000
MOST_BYTES = 10e6  # while blocks are handed out

HEAD, OTHER, STORE = ("10.77.0.1", "tlpipe-a"), ("10.77.0.2", "tlpipe-b"), ("10.77.0.3", "tlpipe-s")
PORT = 6377
PICTURES = 1500
NETWORK = ("--weights", "random", "--image-size", "128", "--precision", "float32")


SPEC = FeatureSpec("sleeping", "0" * 32, None, "none", "avg", (32, 32), "stretch", "bicubic", "float32", "float32")


class Sleeping:
    """An engine that does nothing, and takes its time."""

    shape = (4,)
    batch_size = 8

    def stream(self, batches: Any) -> Iterator[np.ndarray]:
        for batch in batches:
            time.sleep(SECONDS * len(batch))
            yield batch.reshape(len(batch), -1)[:, :4].astype(np.float32)


def planned(store: FeatureStore) -> Any:
    """What an actor needs to know of a plan."""
    return SimpleNamespace(store=store, images=ImageConfig((32, 32)), augment=None, written_by=dict)


def drawn(n: int) -> tuple[ArraySource, list[Row]]:
    """Drawn images, and the rows to be computed of them."""
    source = ArraySource([(small_images(n), 1.0)])
    keys = source.keys(None, rehash=False).column.tolist()
    return source, [Row(key, key, 0, row, str(row)) for row, key in enumerate(keys)]


def rate(folder: Path) -> None:
    """Rates with more and more actors, from when all are there."""
    import ray

    ray.init(num_cpus=max(ACTORS), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    rates: dict[int, float] = {}
    for n in ACTORS:
        n_rows = int(n * LENGTH / SECONDS)
        source, rows = drawn(n_rows)
        store, meeting = FeatureStore(folder / f"{n}", SPEC), folder / f"meeting {n}"
        meeting.mkdir()

        def opened(store: FeatureStore = store, meeting: Path = meeting, n: int = n) -> Any:
            (meeting / str(os.getpid())).touch()
            while len(list(meeting.iterdir())) < n:
                time.sleep(0.01)
            return planned(store), Sleeping()

        report = cluster.compute("ray", opened, source, rows, cpus=max(ACTORS) // n, workers=1)
        end = time.time()
        began = max(path.stat().st_mtime for path in meeting.iterdir())
        assert report.n_computed == n_rows
        rates[n] = n_rows / (end - began)
        print(f"{n} actors: {rates[n]:.0f} images/s, {rates[n] / n / rates[1]:.3f} of linear", flush=True)
    worst = min(rates[n] / n / rates[1] for n in ACTORS)
    verdict(f"up to {max(ACTORS)} actors: at least {worst:.2f} of linear (wanted {LEAST})", worst >= LEAST)


def plan() -> None:
    """Hand out a million blocks of one row to 32 actors that need no time."""
    answers: dict[Any, Any] = {}

    class Actor:
        versions = SimpleNamespace(remote=lambda: (cluster.Versions.here(), object()))

    def get(asked: Any) -> Any:
        return answers.pop(asked, None) or asked[0]

    ray = SimpleNamespace(
        wait=lambda asked, timeout: (asked[:1], asked[1:]),
        get=get,
        kill=lambda actor: None,
        exceptions=SimpleNamespace(RayTaskError=KeyError, RayError=KeyError),
    )

    def ask(actor: Any, rows: list[Row]) -> Any:
        answers[name := ("block", rows[0].index)] = cluster.Computed("node", PassReport(n_computed=len(rows)))
        return name

    blocks = ([Row(b"", b"", 0, number, "")] for number in range(BLOCKS))
    tracemalloc.start()
    start = time.perf_counter()
    report = cluster._Pool(ray, Actor, 32, 32).run(ask, blocks, BLOCKS)
    peak = tracemalloc.get_traced_memory()[1]
    seconds = time.perf_counter() - start
    assert report.n_computed == BLOCKS
    verdict(
        f"{BLOCKS:,} blocks: {peak / 1e6:.1f} MB at most, {seconds / BLOCKS * 1e6:.0f} us a block", peak < MOST_BYTES
    )


def grow(folder: Path) -> None:
    """Extract on a cluster of one node with one processor, which Ray's autoscaler may extend by three such nodes."""
    import ray

    config = folder / "cluster.json"
    config.write_text(json.dumps(AUTOSCALER))
    command = Path(sys.executable).parent / "ray"
    run(command, "stop", "--force")
    run(
        *(command, "start", "--head", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"),
        f"--autoscaling-config={config}",
        env={**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
    )
    try:
        ray.init("auto", logging_level="ERROR", log_to_driver=False)
        before = len(ray.nodes())
        n_rows = int((1 + MORE_NODES) * GROWING / SECONDS)
        source, rows = drawn(n_rows)
        store, at_work = FeatureStore(folder / "cache", SPEC), folder / "nodes"
        at_work.mkdir()

        def opened() -> Any:
            (at_work / ray.get_runtime_context().get_node_id()).touch()
            return planned(store), Sleeping()

        report = cluster.compute("ray", opened, source, rows, cpus=1, workers=1)
        n_nodes = len(list(at_work.iterdir()))
    finally:
        ray.shutdown()
        run(command, "stop", "--force")
    done = report.n_computed == n_rows and before == 1
    verdict(f"from 1 node to {n_nodes} by demand (wanted {1 + MORE_NODES})", done and n_nodes == 1 + MORE_NODES)


def run(*command: object, check: bool = True, **known: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], text=True, capture_output=True, check=check, **known)


def inside(host: tuple[str, str], *command: object) -> list[str]:
    """A command in the namespace of a host."""
    return ["ip", "netns", "exec", host[1], *map(str, command)]


@contextmanager
def namespaces() -> Iterator[None]:
    """Three hosts on a network of their own; the bridge is in that of the store."""
    hosts = (HEAD, OTHER, STORE)
    try:
        for _, name in hosts:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", STORE[1], "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", STORE[1], "addr", "add", f"{STORE[0]}/24", "dev", "bridge")
        run("ip", "-n", STORE[1], "link", "set", "bridge", "up")
        for number, (address, name) in enumerate((HEAD, OTHER)):
            run("ip", "link", "add", f"tl{number}", "netns", STORE[1], "type", "veth", "peer", "eth0", "netns", name)
            run("ip", "-n", STORE[1], "link", "set", f"tl{number}", "master", "bridge", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        for _, name in hosts:
            end(name)
            run("ip", "netns", "del", name, check=False)


def end(name: str) -> None:
    """Kill all that runs on a host."""
    for process in run("ip", "netns", "pids", name, check=False).stdout.split():
        run("kill", "-9", process, check=False)


def node(host: tuple[str, str], folder: Path, *more: str) -> None:
    ray = Path(sys.executable).parent / "ray"
    known = ("--num-cpus=1", "--disable-usage-stats", f"--node-ip-address={host[0]}", "--object-store-memory=200000000")
    log = folder / f"{host[1]}.log"
    with log.open("a") as file:  # the processes of the node keep it open
        done = subprocess.run(inside(host, ray, "start", *known, *more), stdout=file, stderr=file)
    if done.returncode:
        sys.exit(log.read_text())


def deaths(folder: Path, times: int) -> None:
    """Extracts on two nodes, of which one dies at a random moment, against an undisturbed one on this machine."""
    draw = random.Random(0)
    for number, pixels in enumerate(small_images(PICTURES)):
        path = folder / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    tlpipe = [sys.executable, "-m", "pipeline"]
    run(*tlpipe, "extract", folder / "set", *NETWORK, "--cache", folder / "reference", "--quiet")
    expected = features(folder / "reference")
    os.environ |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"TLPIPE_LOCAL_CACHE": str(folder / "copies"), "RAY_ADDRESS": f"{HEAD[0]}:{PORT}"}
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{STORE[0]}:5000", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}
    with namespaces(), ExitStack() as ending:
        server = subprocess.Popen(
            inside(STORE, sys.executable, "-m", "moto.server", "-H", STORE[0], "-p", "5000"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ending.callback(server.kill)
        time.sleep(5)
        run(*inside(HEAD, sys.executable, __file__, "upload", folder / "set"))
        node(HEAD, folder, "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray")
        for data, where in ((str(folder / "set"), str(folder)), ("s3://pictures/set", "s3://pictures")):
            equal, after, at_work = [], [], 0
            for number in range(times):
                node(OTHER, folder, f"--address={HEAD[0]}:{PORT}")
                cache = f"{where}/cache{number}"
                command = inside(HEAD, *tlpipe, "extract", data, *NETWORK, "--on", "ray", "--cache", cache, "--quiet")
                start = time.monotonic()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                after.append(draw.uniform(5, 25))
                while process.poll() is None and time.monotonic() < start + after[-1]:
                    time.sleep(0.05)
                came = process.poll() is None
                end(OTHER[1])
                code = process.wait()
                found = run(*inside(HEAD, sys.executable, __file__, "digest", cache)).stdout.strip()
                equal.append(code == 0 and found == expected)
                print(
                    f"{where}: node killed after {after[-1]:.1f} s ({'at work' if came else 'all was done'}), "
                    f"ended after {time.monotonic() - start:.0f} s, exit {code}, "
                    f"features {'equal' if equal[-1] else 'DIFFER'}",
                    flush=True,
                )
                at_work += came
            text = f"{where}: {sum(equal)} of {times} equal, bit for bit; {at_work} died at work"
            verdict(text, all(equal) and at_work > 0)


def features(cache: Path) -> str:
    """A digest of all features in a cache, whatever shards they lie in; the distinct rows and their number count."""
    from pipeline.store.shards import stores
    from pipeline.util.files import digest_of

    (store,) = stores(cache)
    assert store.open() == []
    keys = np.unique(np.concatenate([shard.keys for shard in store.shards]))
    return f"{len(keys)} {digest_of(keys.tobytes() + store.read(keys).tobytes())}"


def upload(folder: Path) -> None:
    """Put a folder into the bucket of the server."""
    fs: Any = remote.place("s3://pictures").fs  # type: ignore[attr-defined]
    fs.mkdir("pictures")
    fs.put(str(folder), "pictures/set", recursive=True)


def main() -> None:
    what, *more = sys.argv[1:] or ["rate"]
    if what == "upload":
        return upload(Path(more[0]))
    if what == "digest":
        return print(features(remote.shared(more[0])))
    with tempfile.TemporaryDirectory() as name:
        if what == "rate":
            rate(Path(name))
        elif what == "plan":
            plan()
        elif what == "grow":
            grow(Path(name))
        else:
            deaths(Path(name), int(more[0]) if more else 10)
    finish()


if __name__ == "__main__":
    main()
