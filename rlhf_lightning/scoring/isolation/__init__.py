"""Reward functions in a process of their own."""
