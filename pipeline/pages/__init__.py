"""Pages: a leaderboard of runs, a page for each run, and one for each dataset that was inspected."""

from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import Map, RunData
from pipeline.pages.write import (
    RUN_PAGE,
    Figure,
    Section,
    is_made_of,
    write_curve,
    write_index,
    write_inspection,
    write_run,
)

__all__ = [
    "RUN_PAGE",
    "Figure",
    "Map",
    "Pictures",
    "RunData",
    "Section",
    "is_made_of",
    "write_curve",
    "write_index",
    "write_inspection",
    "write_run",
]
