"""Pages: a leaderboard of runs, a page for each run, and one for each dataset that was inspected."""
