"""The cache on disk: shards of features, datasets, records of extracts, and the table that joins them."""
