"""What a dataset holds and what is wrong with it: duplicates, leaks, doubtful labels, outliers."""
