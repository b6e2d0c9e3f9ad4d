"""How models lie on devices, in how many bits and with which adapters: what does not go together; no torch."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError

FSDP1_REFUSED = (
    "trainer.strategy=fsdp (FSDP1) cannot run PPO's manual optimisation; use trainer=fsdp2, which shards as well"
)
FSDP2_LAYOUT = "trainer=fsdp2 needs model.freeze_below=0; use trainer=ddp with frozen layers"
FSDP2_OFFLOAD = "trainer=fsdp2 keeps the shards of each model on their devices; set model.offload=false"
FSDP2_4BIT = "trainer=fsdp2 shards weights in floating point; set model.load_in_4bit=false, or use trainer=ddp"
FOUR_BIT_LEARNS = (
    "model.load_in_4bit=true: 4-bit weights do not learn; set model.lora='{r: 16}', whose adapters do, or "
    "model.load_in_4bit=false"
)
OFFLOAD_OFFLINE = (
    "{0}: model.offload=true would move the reference in and out for each micro-batch; set {0}.cache_reference=true, "
    "which lets it go, or model.offload=false"
)
NO_ADAPTERS = (
    "rollout.weights=lora: {} has no adapters; set model.lora, run stage=ppo without the others, or take "
    "rollout.weights=files"
)


def check_replicas(replicate_size: int, world_size: int) -> None:
    """Judge whether so many processes can hold so many copies of the weights.

    Raises:
        ConfigError: names the key and both numbers.
    """
    if world_size % replicate_size:
        raise ConfigError(
            f"trainer.strategy.replicate_size={replicate_size}: copies of the weights must divide the {world_size} "
            "processes (trainer.devices x trainer.num_nodes); trainer=hsdp has one on each node"
        )


def check_adapter_dropout(dropout: float) -> None:
    """Refuse adapters with dropout in PPO.

    Args:
        dropout: probability, `rlhf_lightning.models.adapters.Lora.lora_dropout`.

    Raises:
        ConfigError: it is not 0.
    """
    if dropout:
        raise ConfigError(
            f"model.lora.lora_dropout={dropout}: PPO compares the policy with itself, which has to give the same "
            "numbers twice; set it to 0"
        )
