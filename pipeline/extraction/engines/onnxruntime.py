"""ONNX Runtime, for backbones from ONNX files: the reference that they are compared with, and what runs them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import OnnxGraph
from pipeline.backbones.onnx_graph import IMAGE, session_of
from pipeline.errors import EngineError
from pipeline.extraction.engines.base import padded
from pipeline.util import machine


class OnnxruntimeEngine:
    """Runs the graph of an ONNX file on the processor, in the precision that the file itself has."""

    def __init__(self, graph: OnnxGraph, batch_size: int) -> None:
        """Load the graph.

        Args:
            graph: From uint8 [n, height, width, 3] to features.
            batch_size: Images in a batch, unless the file takes another number.

        Raises:
            EngineError: If it can't be run.
        """
        self.batch_size = graph.batch_size or batch_size
        try:
            self._session = session_of(graph.proto, threads=machine.cpu_count())
            found = self._run(np.zeros((self.batch_size, *graph.image_size, 3), np.uint8))
        except Exception as error:  # onnxruntime raises many kinds
            lines = str(error).splitlines() or [type(error).__name__]
            raise EngineError(f"ONNX Runtime can't run {graph.name}: {lines[0][:300]}") from error
        self.shape = found.shape[1:]

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        (found,) = self._session.run(None, {IMAGE: batch})
        return np.asarray(found)

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """As `Engine.stream`; one batch takes all processors."""
        for batch in batches:
            yield self._run(padded(batch, self.batch_size))[: len(batch)]
