"""RLHF as PyTorch Lightning modules composed by Hydra: demonstrations, judgements, refinement."""

__version__ = "0.1.0"
