"""tlpipe from Python: the commands, their results, what was trained, and estimators for scikit-learn.

Everything here is had from `pipeline` itself: `from pipeline import extract, train_head, FeatureExtractor`.
"""
