"""What a training leaves behind, and how it is opened again: run.json, predictions, heads, classifiers, formats."""
