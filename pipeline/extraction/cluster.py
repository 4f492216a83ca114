"""The pass on a Ray cluster (ray.io): actors that each hold an engine compute blocks of rows and publish their shards.

Ray places the actors, starts them again elsewhere if their node dies, and gives them the block again that they had.
"""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.config import ExtractConfig, FeatureSpec
from pipeline.data import ImageSource
from pipeline.errors import EngineError, StoppedError, TlpipeError
from pipeline.extraction import pass_
from pipeline.extraction.engines import Engine
from pipeline.extraction.pass_ import SHARD_ROWS, PassReport, Row
from pipeline.extraction.plan import Plan, open_plan
from pipeline.util import log, runtime
from pipeline.util.progress import progress
from pipeline.util.ray_cluster import Shares, connected
from pipeline.util.remote import shared
from pipeline.util.stopping import Stopping, stopping
from pipeline.util.text import counted, first_line

RESTARTS = 5  # of an actor that died, with its node or over a block that kills whoever computes it
ROUNDS = 8  # blocks for each actor, at least, so that all end at about the same time
ROOM = 30.0  # seconds after which it is told that no actor has found room yet
HEARD = 1.0  # seconds after which Ctrl-C is looked for

Opened = Callable[[], tuple[Plan, Engine]]
"""Opens the plan and the engine where they are needed."""


class Member(Protocol):
    """What Ray gives for an actor."""

    versions: Any
    compute: Any
    stop: Any


@dataclass(frozen=True, slots=True)
class Versions:
    """What must be the same on all nodes.

    Attributes:
        tlpipe: Version of tlpipe.
        python: Major and minor version of Python.
    """

    tlpipe: str
    python: str

    @classmethod
    def here(cls) -> Versions:
        """Those of this process."""
        return cls(runtime.version("tlpipe") or "", ".".join(platform.python_version_tuple()[:2]))


@dataclass(frozen=True, slots=True)
class Task:
    """What all actors are told, once each.

    Attributes:
        parts: References to what opens plan and engine, and to the images; in a list, as Ray would fetch them for every
            block otherwise.
    """

    parts: list[Any]

    def opened(self) -> tuple[Plan, Engine]:
        """Open the plan and the engine on this node."""
        import ray

        found: tuple[Plan, Engine] = ray.get(self.parts[0])()
        return found

    def source(self) -> ImageSource:
        """The images."""
        import ray

        found: ImageSource = ray.get(self.parts[1])
        return found


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of a block.

    Attributes:
        node: Name of the machine.
        report: Of the pass.
    """

    node: str
    report: PassReport


class Worker:
    """Holds an engine on a node of the cluster."""

    def __init__(self) -> None:
        self._task: tuple[Plan, Engine, ImageSource] | None = None
        self._wish = Stopping()

    def versions(self) -> Versions:
        """The versions of this node."""
        return Versions.here()

    def compute(self, task: Task, rows: list[Row], workers: int | None) -> Computed:
        """Compute a block and publish its shards.

        Args:
            task: What is the same for all blocks.
            rows: The block.
            workers: Decoding threads.
        """
        if self._task is None:
            self._task = (*task.opened(), task.source())
        plan, engine, source = self._task
        report = pass_.compute(
            plan.store,
            source,
            rows,
            plan.images,
            plan.augment,
            engine,
            workers=workers,
            written_by=plan.written_by(),
            wish=self._wish,
        )
        plan.store.shards.clear()  # what others publish is of no use here
        return Computed(platform.node(), report)

    def stop(self) -> None:
        """End the block that is being computed, with all that is ready published."""
        self._wish.signal = 1


def opener(config: ExtractConfig, plan: Plan, cache: str, batch_size: int | None) -> Opened:
    """What opens the engine of a plan on another machine, as it is here; one that would compute otherwise is refused.

    Args:
        config: With whole paths.
        plan: As it is here.
        cache: Where the cache lies, from any folder.
        batch_size: As in `Plan.engine`.
    """
    spec = plan.spec
    pinned = replace(config, engine=plan.choice.engine, precision=plan.choice.precision)

    def opened() -> tuple[Plan, Engine]:
        there = open_plan(pinned, shared(cache))
        _check_spec(there.spec, spec)
        return there, there.engine(batch_size)

    return opened


def _check_spec(there: FeatureSpec, here: FeatureSpec) -> None:
    if there != here:
        raise EngineError(
            f"The node {platform.node()} would compute other features ({there.to_json()}) than were planned "
            f"({here.to_json()}); give its machines the same weights and libraries"
        )


def compute(
    on: str,
    opened: Opened,
    source: ImageSource,
    rows: Sequence[Row],
    *,
    cpus: int | None = None,
    use_gpu: bool = False,
    workers: int | None = None,
) -> PassReport:
    """Compute rows of features on a cluster, as `pass_.compute` does on this machine.

    There is an actor for each GPU, or for each `cpus` processors; and one more, which waits for room, so that a cluster
    that grows by demand does.

    Args:
        on: The cluster, as in `ray_cluster.connected`.
        opened: Opens the plan and the engine on a node.
        source: Where the images come from, on every node.
        rows: What to compute.
        cpus: Processors of an actor; by default those of the smallest node.
        use_gpu: Whether an actor takes a GPU, if the cluster has such.
        workers: Decoding threads.

    Raises:
        EngineError: If the cluster can't be reached, or its versions differ from those here.
        StoppedError: After Ctrl-C or SIGTERM, with all that was computed stored.
    """
    ray = connected(on)
    shares = Shares.of(ray, use_gpu=use_gpu, cpus=cpus)
    block = max(1, min(SHARD_ROWS, math.ceil(len(rows) / (ROUNDS * shares.n))))
    blocks = (list(rows[start : start + block]) for start in range(0, len(rows), block))
    kind = ray.remote(Worker).options(
        **shares.demands(),
        max_restarts=RESTARTS,
        max_task_retries=-1,  # a node that is gone refuses many times before Ray takes it for dead
        max_concurrency=2,  # so that it hears that it shall stop
        runtime_env={"env_vars": {} if shares.gpu else {"LOKY_MAX_CPU_COUNT": str(shares.cpus)}},
    )
    task = Task([ray.put(opened), ray.put(source)])
    log.info("Computing with %s of Ray, in blocks of up to %s", counted(shares.n, "actor"), counted(block, "row"))
    most = math.ceil(len(rows) / block)
    takes = "a GPU" if shares.gpu else counted(shares.cpus, "processor")
    pool = _Pool(ray, kind.remote, min(shares.n + 1, most), most, takes)
    start = time.perf_counter()
    report = pool.run(lambda actor, some: actor.compute.remote(task, some, workers), blocks, len(rows))
    report.compute = time.perf_counter() - start
    return report


class _Pool:
    """Actors, each with the block that it computes.

    Args:
        ray: The library.
        make: Makes an actor, which may have to wait for room.
        n: Actors at first.
        most: Actors that would have something to do.
        takes: What an actor takes of a node, for people.
    """

    def __init__(self, ray: Any, make: Callable[[], Member], n: int, most: int, takes: str = "a processor") -> None:
        self._ray, self._make, self._most, self._takes = ray, make, most, takes
        self._n = 0
        self._asked: dict[Any, Member] = {}
        self._by_node: Counter[str] = Counter()
        self._report = PassReport()
        for _ in range(n):
            self._add()

    def _add(self) -> None:
        actor = self._make()
        self._n += 1
        self._asked[actor.versions.remote()] = actor

    def run(self, ask: Callable[[Member, list[Row]], Any], blocks: Iterator[list[Row]], n_rows: int) -> PassReport:
        """Have all blocks computed, each by the next actor that is free.

        Args:
            ask: Asks an actor for a block.
            blocks: Made as they are asked for.
            n_rows: Rows in all of them.
        """
        start = time.perf_counter()
        running: set[Any] = set()
        waits = True  # until an actor is there
        rest: list[Row] | None = next(blocks, None)
        with stopping() as stop, progress("Extracting", n_rows) as advance:
            told = False
            try:
                while running or (rest is not None and not told):
                    ready, _ = self._ray.wait(list(self._asked), timeout=HEARD)
                    if waits and (ready or time.perf_counter() > start + ROOM):
                        waits = False
                        if not ready:
                            self._tell_what_is_free()
                    if stop.signal is not None and not told:
                        told = True
                        for actor in self._asked.values():
                            actor.stop.remote()
                    for asked in ready:
                        actor = self._asked.pop(asked)
                        answer = self._answer(asked)
                        running.discard(asked)
                        if isinstance(answer, Computed):
                            self._take(answer)
                            advance(answer.report.n_computed)
                        elif self._n < self._most:  # it found room, so there may be more
                            self._add()
                        if rest is not None and not told:
                            again = ask(actor, rest)
                            self._asked[again] = actor
                            running.add(again)
                            rest = next(blocks, None)
                        else:  # its room may be what one that died waits for
                            self._ray.kill(actor)
            finally:
                for actor in self._asked.values():
                    self._ray.kill(actor)
        seconds = time.perf_counter() - start
        for node, n in sorted(self._by_node.items()):
            log.info("  %s: %s, %.3g a second", node, counted(n, "row"), n / seconds)
        if stop.signal is not None:
            raise StoppedError(
                f"Stopped; {self._report.n_computed:,} of {n_rows:,} are computed and kept. "
                "The same command again goes on from there.",
                signal=stop.signal,
            )
        return self._report

    def _answer(self, asked: Any) -> Computed | Versions:
        """What an actor found.

        Raises:
            TlpipeError: What it raised there.
            EngineError: If it could not be run at all, or is of another version.
        """
        try:
            answer: Computed | Versions = self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TlpipeError):
                raise error.cause from None
            raise EngineError(
                f"A node of the cluster failed: {first_line(error.cause)}; it needs tlpipe with the same extras as here"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise EngineError(
                f"An actor of the cluster died {RESTARTS + 1} times: {first_line(error)}; what was computed is kept, "
                "and the same command goes on from there"
            ) from error
        if isinstance(answer, Versions) and answer != (here := Versions.here()):
            raise EngineError(
                f"A node of the cluster has tlpipe {answer.tlpipe} on Python {answer.python}, this machine tlpipe "
                f"{here.tlpipe} on Python {here.python}; install the same on both"
            )
        return answer

    def _tell_what_is_free(self) -> None:
        free = self._ray.available_resources()
        log.warning(
            "No node of the cluster has had room for an actor yet, which takes %s; free in all are %s and %s. What "
            "runs there beside this must end, or the cluster grow (ray status); waiting",
            self._takes,
            counted(int(free.get("CPU", 0)), "processor"),
            counted(int(free.get("GPU", 0)), "GPU"),
        )

    def _take(self, computed: Computed) -> None:
        self._report.n_computed += computed.report.n_computed
        self._report.unreadable |= computed.report.unreadable
        self._by_node[computed.node] += computed.report.n_computed
