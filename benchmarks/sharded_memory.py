"""What a forward keeps of sharded weights until the backward: torchrun --nproc-per-node 2 -m benchmarks.sharded_memory

A random Llama of 71 million parameters, sharded over the ranks, computed with in bfloat16. Beside the shards there
should be left what the root holds, embedding and head; and not a copy of every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lightning.models.sharding import shard

SIZES: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


def weights_left(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of weights and copies of them that are alive after a forward, beside the shards.

    A tensor that is kept for the backward pass counts as a copy if it has the shape of a matrix of the model, so
    choose a batch that no activation shares a shape with.

    Args:
        model: sharded.
        forward: runs it with gradients.
    """
    shapes = {tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    whole = [weight.untyped_storage() for weight in model.parameters() if not isinstance(weight, DTensor)]
    left = {storage.data_ptr(): storage.nbytes() for storage in [*kept.values(), *whole]}  # FSDP2 empties what it frees
    del result
    return sum(left.values())


def bytes_per_parameter(config: LlamaConfig, compute: torch.dtype | None) -> float:
    """See `weights_left`, for a random Llama over all ranks, under autocast in bfloat16."""
    model = LlamaForCausalLM(config)
    count = sum(weight.numel() for weight in model.parameters())
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), compute)
    ids = torch.arange(33)[None]

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids, use_cache=False).logits

    return weights_left(model, forward) / count


def main() -> None:
    """Print both ways."""
    dist.init_process_group("gloo")
    for compute in (None, torch.bfloat16):
        found = bytes_per_parameter(LlamaConfig(**SIZES), compute)
        if dist.get_rank() == 0:
            print(f"gathered in {compute or 'float32, autocast makes the copies'}: {found:.2f} bytes per parameter")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
