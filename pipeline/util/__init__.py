"""Files, progress, the machine and the memo: what knows nothing of images."""
