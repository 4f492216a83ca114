"""`python -m pipeline` is `tlpipe`."""

from pipeline.cli import main

main()
