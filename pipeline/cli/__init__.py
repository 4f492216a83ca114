"""The command line: parse, call one function, print."""

from pipeline.cli.main import main

__all__ = ["main"]
