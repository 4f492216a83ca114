"""Pages: a leaderboard of runs, a page for each run, and one for each dataset that was inspected."""

from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import Map, RunData, shown_split
from pipeline.pages.write import RUN_PAGE, Figure, Section, write_index, write_inspection, write_run

__all__ = [
    "RUN_PAGE",
    "Figure",
    "Map",
    "Pictures",
    "RunData",
    "Section",
    "shown_split",
    "write_index",
    "write_inspection",
    "write_run",
]
