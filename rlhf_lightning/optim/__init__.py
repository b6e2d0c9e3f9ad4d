"""Optimisers, learning-rate schedules, and controllers of the KL coefficient."""
