"""The pages of the reference, each made of what the code declares: `make docs` writes them."""

from pipeline.cli.reference import commands, files, heads, python

__all__ = ["PAGES"]

PAGES = {"commands.md": commands.page, "python.md": python.page, "heads.md": heads.page, "files.md": files.page}
"""What makes each page."""
