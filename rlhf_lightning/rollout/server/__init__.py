"""Sampling from vLLM servers: found or started, given the weights, asked row by row, and looked at."""

from rlhf_lightning.rollout.server.engine import ServerEngine

__all__ = ["ServerEngine"]
