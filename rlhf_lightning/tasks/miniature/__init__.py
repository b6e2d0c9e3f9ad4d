"""Reviews in miniature: an embedded task, small enough for the whole pipeline to run in a minute on one CPU core."""
