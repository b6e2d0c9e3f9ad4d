"""The command line: compose, judge, run, and start several processes."""
