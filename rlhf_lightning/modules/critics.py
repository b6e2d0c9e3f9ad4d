"""The model that learns how good a state is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.models import Pretrained, ScalarModel, ValueHead
from rlhf_lightning.models.tokens import same_ids
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rules.combinations import OTHER_IDS, WARM_HEAD, WHICH_CRITIC
from rlhf_lightning.types import Rollout

Critic = Pretrained | ScalarModel | Callable[[PreTrainedModel], nn.Module] | Literal["policy", "shared_trunk"]
"""A reward model to start from, a copy of the ``policy`` with a zero head, a zero head on the trunk that the policy
trains (``shared_trunk``), or a function of the policy that makes one: a `ValueHead` on the policy's trunk, or any
module that is called as `ScalarModel` is."""


def build_critic(
    source: Critic,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    freeze_below: int,
    settings: PPOSettings,
) -> nn.Module:
    """The critic's model.

    Args:
        source: see `Critic`.
        policy: already loaded; with frozen lower layers they are shared with it.
        tokenizer: of the policy.
        freeze_below: number of frozen lower layers.
        settings: of PPO; a critic that warms up learns alone.

    Raises:
        ConfigError: ``source`` is a string without meaning here, makes no module, or has a tokenizer of its own; or it
            would learn alone and is a head on the policy.
    """
    if source == "shared_trunk":
        return ValueHead(policy.config.get_text_config().hidden_size)
    if source == "policy":
        return ScalarModel.from_policy(policy, freeze_below)
    critic: object = source
    if isinstance(source, Pretrained):
        if not same_ids(tokenizer, source.tokenizer()):
            raise ConfigError(OTHER_IDS.format(source.path))
        critic = ScalarModel(source.adapted(source.reward_model()), freeze_below)
    elif callable(source) and not isinstance(source, nn.Module):
        critic = source(policy)
    if not isinstance(critic, nn.Module):
        raise ConfigError(WHICH_CRITIC.format(critic))
    if settings.critic_warmup and isinstance(critic, ValueHead):
        raise ConfigError(WARM_HEAD.format(settings.critic_warmup))
    if freeze_below and isinstance(critic, ScalarModel):
        critic.share_lower(policy)
    return critic


def critic_numbers(critic: nn.Module, rollout: Rollout, states: Tensor | None, hidden: Tensor | None) -> Tensor:
    """What a critic says before each response token, [B, T]; anything outside of the mask.

    Args:
        critic: a `ValueHead`, or called as `ScalarModel` is.
        rollout: B responses of T tokens.
        states: final hidden states of the policy at the tokens of the mask [N, D], for a `ValueHead`.
        hidden: output of the frozen lower layers, if it was computed before.
    """
    if isinstance(critic, ValueHead):
        assert states is not None
        return spread(critic(states), rollout.mask)
    return critic(rollout.input_ids, rollout.attention_mask, hidden)[:, -rollout.mask.shape[1] - 1 : -1]
