"""The phases as LightningModules."""

from rlhf_lightning.modules.dpo import DPOModule
from rlhf_lightning.modules.kto import KTOModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.modules.sft import SFTModule

__all__ = ["PPOModule", "DPOModule", "RewardModule", "SFTModule", "KTOModule"]
