"""What leaves a stage and enters the next: verified folders with their provenance."""

from rlhf_lightning.checkpoint.folders import write_folder
from rlhf_lightning.checkpoint.provenance import read_json, read_provenance, verify_folder

__all__ = ["read_json", "read_provenance", "verify_folder", "write_folder"]
