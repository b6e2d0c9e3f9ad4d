"""Numbers that only make sense together, judged without torch: by the command line at once, and by the parts again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError

_ADVANTAGES = "rlhf_lightning.functional.advantage"
_GROUPED = tuple(f"{_ADVANTAGES}.{name}" for name in ("rloo", "grpo", "dr_grpo"))


NO_SCORER = (
    "scorer: no scorer is configured; add scorer=function scorer.function=my_project.fn, or "
    "scorer=reward_model scorer.model.path=FOLDER"
)
NO_JUDGE = (
    "evaluate: no judge is configured; add judge=function judge.function=my_project.fn, or "
    "evaluate.proxy=REWARD_MODEL_FOLDER"
)
VOTES_ALONE = (
    "{}: votes of people compare policies that are there already, and score no answer: only the judge of "
    "stage=evaluate, alone, can be people. Take {}"
)
ANOTHER_JUDGE = "another judge for {}; then let people vote (rlhf-lightning arena) and evaluate"
PEOPLE_RANK = (
    "judge=none, with which rank writes candidates; people rank those on the page of rlhf-lightning label, and "
    "rank.human_ranks=FILE learns from what they said"
)
NO_RANKING = (
    "rank: no judge is configured, so it writes candidates for people to rank, but {} learns from {}; add "
    "judge=function judge.function=my_project.fn, or stop after rank and go on with rank.human_ranks=FILE"
)
NOTHING_TO_CACHE = "{}.cache_reference=true: the loss compares answers without a reference; set it to false"
WARM_HEAD = (
    "ppo.settings.critic_warmup={}: a head on the policy would move the policy with it; set ppo.critic=policy, a copy "
    "of its own"
)
OTHER_IDS = (
    "ppo.critic={}: reads the policy's token ids, and its own tokenizer gives other ones; take a reward model that was "
    "trained from this policy, or policy or shared_trunk"
)
WHICH_CRITIC = (
    "ppo.critic={}: choose policy, shared_trunk, the folder of a reward model, or a node that makes one. Without a "
    "critic: ppo.settings.baseline=none, as in algorithm=rloo or grpo."
)

UNPENALISED = (
    "a reward model scores, and no KL penalty keeps the policy near its reference: it will learn to exploit the reward "
    "model and get worse. Use kl=adaptive, or kl=fixed kl.coef=0.15"
)


def votes_judge(judge: Mapping[str, Any] | None) -> bool:
    """Whether the judge is what people voted, which has a score for policies and none for answers."""
    return (judge or {}).get("_target_") == "rlhf_lightning.evaluation.votes.PeopleJudge"


def check_schedule(settings: Any, rollout: int, world_size: int) -> None:
    """Judge whether a rollout can be cut as the settings say.

    Args:
        settings: `PPOSettings`, or an object with the same numbers.
        rollout: responses of a rollout, over all ranks.
        world_size: ranks.

    Raises:
        ConfigError: sizes do not divide; the message shows the whole chain.
    """
    parts = settings.num_minibatches
    minibatch = rollout // parts
    per_rank = minibatch // world_size
    micro = min(settings.micro_batch_size or per_rank, per_rank)
    faults = [
        (rollout % parts, f"{parts} minibatches do not divide a rollout of {rollout}"),
        (minibatch % world_size, f"{world_size} ranks do not divide a minibatch of {minibatch}"),
        (
            rollout % (world_size * settings.group_size),
            f"{world_size} rank(s) x groups of {settings.group_size} do not divide a rollout of {rollout}",
        ),
        (
            not settings.by_length and per_rank % max(micro, 1),
            f"micro-batches of {micro} do not divide the {per_rank} responses of a rank",
        ),
    ]
    found = [text for fault, text in faults if fault]
    if found:
        raise ConfigError(
            f"ppo: {found[0]}.\n"
            f"  rollout       {rollout} responses in groups of {settings.group_size}   "
            "ppo.data.batch_size, ppo.settings.group_size\n"
            f"  -> epochs     {settings.ppo_epochs} over each rollout   ppo.settings.ppo_epochs\n"
            f"  -> minibatch  {rollout / parts:g} responses per optimizer step   ppo.settings.num_minibatches\n"
            f"  -> rank       {rollout / parts / world_size:g} responses on each of {world_size}   trainer.devices\n"
            f"  -> micro      {micro} responses per forward   ppo.settings.micro_batch_size\n"
            "Each must divide the one before, and each rank needs whole groups."
        )


def check_batch(
    batch_size: int, micro_batch_size: int | None, world_size: int, by_length: bool, where: str = ""
) -> None:
    """Judge whether a batch of rows can be cut into micro-batches.

    Args:
        batch_size: rows per optimizer step, over all ranks.
        micro_batch_size: rows a rank holds at once; None takes its whole share.
        world_size: ranks.
        by_length: micro-batches are cut by length and need no equal number of rows; the ranks still do.
        where: key of the data with a dot, for the message.

    Raises:
        ConfigError: the sizes do not divide.
    """
    share = batch_size // world_size
    micro = share if micro_batch_size is None else min(micro_batch_size, share)
    if micro < 1 or batch_size < 1 or batch_size % (world_size if by_length else micro * world_size):
        divisor = "" if by_length else f"micro_batch_size {micro_batch_size} x "
        raise ConfigError(
            f"{where}batch_size {batch_size} is not a multiple of {divisor}{world_size} processes; choose sizes that "
            f"divide: batch of {batch_size} -> {world_size} rank(s) of {batch_size / world_size:g} -> micro-batches of "
            f"{micro_batch_size or micro} ({where}batch_size, trainer.devices, {where}micro_batch_size)"
        )


def check_context(prompt_length: int, max_new_tokens: int, positions: int, where: str = "") -> None:
    """Judge whether the longest prompt and answer fit a model.

    Args:
        prompt_length: tokens of the longest prompt.
        max_new_tokens: tokens of the longest answer.
        positions: of the model.
        where: key of the stage with a dot, for the message.

    Raises:
        ConfigError: prompt and answer together have more tokens than the model has positions.
    """
    if prompt_length + max_new_tokens > positions:
        raise ConfigError(
            f"prompt of {prompt_length} tokens + {where}sampling.max_new_tokens={max_new_tokens} exceeds the model's "
            f"{positions} positions; shorten one of them ({where}data.max_prompt_length)"
        )


def check_sampling(top_k: int, top_p: float, min_new_tokens: int) -> None:
    """Refuse what training cannot score, see `Sampling.require_scorable`.

    Raises:
        ConfigError: top_k, top_p or min_new_tokens is active.
    """
    active = [f"sampling.top_k={top_k}"] * (top_k > 0)
    active += [f"sampling.top_p={top_p}"] * (top_p < 1)
    active += [f"sampling.min_new_tokens={min_new_tokens}"] * (min_new_tokens > 0)
    if active:
        raise ConfigError(
            f"{', '.join(active)}: PPO scores tokens under the untruncated distribution, so it must sample from it; "
            "use top_k=0, top_p=1, min_new_tokens=0 (temperature is applied in both)"
        )


def sampling_note(sections: Mapping[str, Any]) -> str | None:
    """What to say where stages of a run do not draw their answers alike; None where they do.

    Args:
        sections: of the stages, by name; those without a node ``sampling``, or with people's rankings, draw none.

    >>> sampling_note({"rank": {"sampling": {"top_k": 0, "temperature": 1.2}}, "ppo": {"sampling": {"temperature": 1}}})
    'Answers are not drawn alike in all stages: rank.sampling.temperature=1.2, ppo.sampling.temperature=1'
    """
    values: dict[str, dict[str, Any]] = {}
    for stage, section in sections.items():
        sampling = None if section.get("human_ranks") else section.get("sampling")
        for key, value in sampling.items() if isinstance(sampling, Mapping) else ():
            values.setdefault(key, {})[f"{stage}.sampling.{key}"] = value
    differing = [
        found for found in values.values() if any(value != next(iter(found.values())) for value in found.values())
    ]
    listed = ", ".join(f"{key}={value}" for found in differing for key, value in found.items())
    return f"Answers are not drawn alike in all stages: {listed}" if listed else None


def check_servers(urls: Any, start: bool) -> None:
    """Refuse servers that are neither there nor started.

    Args:
        urls: of servers that run.
        start: whether the run starts one.

    Raises:
        ConfigError: neither or both, or one address where a list belongs.
    """
    if isinstance(urls, str) or bool(urls) == start:
        raise ConfigError(
            f"rollout.urls={urls} and rollout.start={str(start).lower()}: give rollout.urls=[http://127.0.0.1:8000] "
            "for servers that run, or rollout.start=true for one of the run's own"
        )


def check_algorithm(
    settings: Any, advantage: str, bound: Mapping[str, Any], policy_loss: str, critic: Any = "policy"
) -> None:
    """Refuse combinations that are mathematically invalid; user-defined functions pass.

    Args:
        settings: `PPOSettings`, or an object with the same numbers.
        advantage: import path of the advantage function.
        bound: the arguments it is given.
        policy_loss: import path of the policy loss.
        critic: what the critic starts from.

    Raises:
        ConfigError: the combination cannot learn what it says it learns.
    """
    has_critic = settings.baseline == "critic"
    _check_groups(settings, advantage, bound)
    if settings.kl_placement == "loss" and settings.kl_estimator == "k1":
        raise ConfigError(
            "ppo.settings.kl_placement=loss with kl_estimator=k1: the expected gradient of k1 as a loss is zero, so "
            "nothing would hold the policy near the reference; put it in the reward, or use k2 in the loss"
        )
    lam = bound.get("lam", 0.95)
    if advantage == f"{_ADVANTAGES}.gae" and not has_critic and lam != 1:
        raise ConfigError(
            f"ppo.settings.baseline={settings.baseline} with advantage gae at lam={lam}: lambda mixes in a critic's "
            "values, and without a critic it only fades the score out; set ppo.advantage.lam=1.0 or baseline=critic"
        )
    if settings.bootstrap_truncated and not has_critic:
        raise ConfigError(
            f"ppo.settings.bootstrap_truncated with baseline={settings.baseline}: only a critic knows what a truncated "
            "answer would still earn; set ppo.settings.baseline=critic, as in algorithm=ppo"
        )
    if settings.bootstrap_truncated and (settings.mask_truncated or settings.missing_eos_penalty):
        other = "mask_truncated" if settings.mask_truncated else "missing_eos_penalty"
        raise ConfigError(
            f"ppo.settings.bootstrap_truncated=true and {other}={getattr(settings, other)}: truncated answers either "
            "go on, are left out or pay for being truncated; choose one"
        )
    if settings.critic_warmup and not has_critic:
        raise ConfigError(f"ppo.settings.critic_warmup={settings.critic_warmup}: there is no critic to warm up")
    if settings.critic_warmup and isinstance(critic, str) and critic == "shared_trunk":
        raise ConfigError(WARM_HEAD.format(settings.critic_warmup))
    if settings.ppo_epochs > 1 and policy_loss == "rlhf_lightning.functional.policy.reinforce_loss":
        raise ConfigError(
            f"ppo.settings.ppo_epochs={settings.ppo_epochs} with reinforce_loss: its gradient holds only for the "
            "policy that sampled, which it no longer is after one pass; set ppo_epochs=1 or use clipped_policy_loss"
        )


def _check_groups(settings: Any, advantage: str, bound: Mapping[str, Any]) -> None:
    size, name = settings.group_size, advantage.rpartition(".")[2]
    if settings.max_resamples and size == 1:
        raise ConfigError("ppo.settings.max_resamples: a group of one always scores the same; raise group_size")
    if advantage not in _GROUPED:
        return
    if size == 1:
        raise ConfigError(
            f"ppo.settings.group_size=1 with advantage {name}: a response alone in its group is its own baseline, so "
            "every advantage is 0; set group_size to 2 or more"
        )
    if bound.get("group_size", size) != size:
        raise ConfigError(
            f"ppo.advantage.group_size={bound['group_size']} but ppo.settings.group_size={size}: they must agree"
        )
    if settings.baseline != "none":
        raise ConfigError(
            f"ppo.settings.baseline={settings.baseline} with advantage {name}: it compares responses with each other "
            "and never looks at another baseline; set baseline=none"
        )
    if name == "grpo" and settings.whiten_advantages:
        raise ConfigError(
            "ppo.settings.whiten_advantages=true with advantage grpo: each group is already standardised, and "
            "whitening again would rescale it by how the groups happened to turn out; set whiten_advantages=false"
        )
