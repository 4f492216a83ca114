"""Labelling by hand: what is shown next, what was answered, and the page on which it happens."""
