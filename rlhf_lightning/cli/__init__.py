"""The command line: compose, judge, run, and start several processes."""

HANDOVER_VARIABLE = "RLHF_LIGHTNING_RANK_CONFIG"  # in the environment of a rank that a command has started
