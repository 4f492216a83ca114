"""Errors a user can mend. The command line prints them as one or two lines and exits with 1.

TlpipeError
├── ConfigError              an option or a name that is not legal
│   ├── UnknownBackboneError
│   └── EndpointError        no such layer or block, or it can't be used this way
├── DataError                the dataset, not a single image
├── ImageError               one image that can't be read; quarantined, never fatal
├── WeightsError             weights that can't be found, fetched or loaded
├── EngineError              an engine that isn't installed or can't run the graph
├── StoreError               the cache on disk
│   └── CacheMismatchError   features of one kind where another is expected
├── RunError                 a run folder that is missing, damaged or of the wrong kind
├── QuarantineError          --strict: images could not be read
└── StoppedError             Ctrl-C or SIGTERM, after what was done had been saved
"""

from __future__ import annotations


class TlpipeError(Exception):
    """Base of all errors that tlpipe raises on purpose."""


class ConfigError(TlpipeError):
    """An option or a name that is not legal."""


class UnknownBackboneError(ConfigError):
    """No backbone of this name."""


class EndpointError(ConfigError):
    """No such layer or block, or it can't be used this way."""


class DataError(TlpipeError):
    """A dataset that can't be used."""


class ImageError(TlpipeError):
    """An image that can't be read.

    Attributes:
        lasting: True if the bytes themselves are the cause, so that reading them again would fail again.
    """

    def __init__(self, cause: str, *, lasting: bool = True) -> None:
        super().__init__(cause)
        self.lasting = lasting


class WeightsError(TlpipeError):
    """Weights that can't be found, fetched or loaded."""


class EngineError(TlpipeError):
    """An engine that isn't installed or can't run the graph."""


class StoreError(TlpipeError):
    """The cache on disk can't be read or written."""


class CacheMismatchError(StoreError):
    """Features of one kind where another is expected."""


class RunError(TlpipeError):
    """A run folder that is missing, damaged or of the wrong kind."""


class QuarantineError(TlpipeError):
    """Images could not be read, and `strict` was asked for."""


class StoppedError(TlpipeError):
    """Stopped by Ctrl-C or SIGTERM; what was done is saved.

    Attributes:
        signal: Number of the signal that stopped the work.
    """

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
