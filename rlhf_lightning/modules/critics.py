"""The model that learns how good a state is."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained, ScalarModel, ValueHead
from rlhf_lightning.rules.combinations import WHICH_CRITIC

Critic = Pretrained | ScalarModel | Literal["policy", "shared_trunk"]
"""A reward model to start from, a copy of the ``policy`` with a zero head, or a zero head on the trunk that the policy
trains (``shared_trunk``)."""


def build_critic(source: Critic, policy: PreTrainedModel, freeze_below: int) -> ScalarModel | ValueHead:
    """The critic's model.

    Args:
        source: see `Critic`.
        policy: already loaded; with frozen lower layers they are shared with it.
        freeze_below: number of frozen lower layers.

    Raises:
        ConfigError: ``source`` is a string without meaning here.
    """
    if source == "shared_trunk":
        return ValueHead(policy.config.get_text_config().hidden_size)
    if source == "policy":
        return ScalarModel.from_policy(policy, freeze_below)
    critic = source
    if isinstance(source, Pretrained):
        critic = ScalarModel(source.adapted(source.reward_model()), freeze_below)
    if not isinstance(critic, ScalarModel):
        raise ConfigError(WHICH_CRITIC.format(critic))
    if freeze_below:
        critic.share_lower(policy)
    return critic
