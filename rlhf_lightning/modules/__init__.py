"""The phases as LightningModules."""

from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.preference import PreferenceModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.modules.sft import SFTModule
from rlhf_lightning.modules.unpaired import UnpairedPreferenceModule

__all__ = ["PPOModule", "PreferenceModule", "RewardModule", "SFTModule", "UnpairedPreferenceModule"]
