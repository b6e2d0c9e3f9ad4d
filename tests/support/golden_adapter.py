"""Maps the families of `golden_shared.json` to library calls: lists to tensors, a call, results by name.

Each formula is the one that training runs. The environment variable GOLDEN_DTYPE has the dtype, by default float64.
"""

import os
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the file is also run by its path, without installing the package

from rlhf_lightning.functional import (
    advantage,
    aggregate,
    diagnostics,
    kl,
    kto,
    logprobs,
    masking,
    policy,
    ppo,
    preference,
    ratios,
    reference_free,
    reward,
    scores,
)
from rlhf_lightning.functional.linear_logprobs import score_logits
from rlhf_lightning.functional.theory import best_of_n, optimum, overoptimisation
from rlhf_lightning.metrics.correlation import length_bias as bias_of
from rlhf_lightning.optim.adam import TF1Adam
from rlhf_lightning.optim.kl_controllers import AdaptiveKL
from rlhf_lightning.scoring.transforms import Normalise
from tests.support.plain import variance, whitened


def real(x):
    return None if x is None else torch.tensor(x, dtype=getattr(torch, os.environ.get("GOLDEN_DTYPE", "float64")))


def leaf(x):
    return real(x).requires_grad_()


def whole(x):
    return torch.tensor(x, dtype=torch.long)


def flags(x):
    return torch.tensor(x).bool()


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


def token_logprobs(inputs, params, case_id):
    logits, temperature = real(inputs["logits"]), params["temperature"]
    targets = whole(inputs["input_ids"])[:, 1:]
    out = score_logits(logits[:, :-1].flatten(0, 1), targets.flatten(), temperature=temperature).logprobs
    out = out.view(targets.shape)
    every = score_logits(logits, torch.zeros(logits.shape[:2]).long(), temperature=temperature, entropy=True)
    response = out[:, params["prompt_len"] - 1 :]
    return {"token_logprobs": out, "response_logprobs": response, "entropy": every.entropy}


def sft_nll(inputs, params, case_id):
    labels = whole(inputs["labels"])
    mask = (labels != params["ignore_index"])[:, 1:]
    out = score_logits(real(inputs["logits"])[:, :-1][mask], labels[:, 1:][mask], correct=True)
    nll, correct = masking.spread(-out.logprobs, mask), masking.spread(out.correct, mask)
    token_mean = aggregate.token_mean(nll, mask)
    return {
        "per_token_nll": nll, "mask": mask, "num_tokens": mask.sum(), "token_mean": token_mean,
        "seq_mean_token_mean": aggregate.seq_mean_token_mean(nll, mask), "sum": masking.masked_sum(nll, mask),
        "perplexity": logprobs.perplexity(float(token_mean)),
        "token_accuracy": aggregate.token_mean(correct.double(), mask),
    }  # fmt: skip


def response_mask(inputs, params, case_id):
    ids, eos = whole(inputs["response_ids"]), [params["eos_id"]]
    mask = masking.response_mask(ids, eos)
    return {"mask": mask, "length": mask.sum(1), "has_eos": masking.is_eos(ids, eos).any(1)}


def aggregates(inputs, params, case_id):
    x, mask = real(inputs["x"]), flags(inputs["mask"])
    return {
        "token_mean": aggregate.token_mean(x, mask),
        "seq_mean_token_mean": aggregate.seq_mean_token_mean(x, mask),
        "seq_mean_token_sum": aggregate.seq_mean_token_sum(x, mask),
        "token_sum_norm": aggregate.token_sum_norm(x, mask, params["norm"]),
    }


def aggregate_microbatch(inputs, params, case_id):
    x, mask = real(inputs["x"]), flags(inputs["mask"])
    parts = list(zip(x.split(params["micro_batch"]), mask.split(params["micro_batch"]), strict=True))
    return {
        "token_mean_full": aggregate.token_mean(x, mask),
        "token_mean_parts": [float(aggregate.token_mean(a, b, mask.sum())) for a, b in parts],
        "seq_mean_token_mean_full": aggregate.seq_mean_token_mean(x, mask),
        "seq_mean_token_mean_parts": [float(aggregate.seq_mean_token_mean(a, b, mask.any(1).sum())) for a, b in parts],
        "wrong_mean_of_micro_means": torch.stack([aggregate.token_mean(a, b) for a, b in parts]).mean(),
    }


def masked_whiten(inputs, params, case_id):
    x, mask = real(inputs["x"]), flags(inputs["mask"])
    mean, out = masking.masked_moments(x, mask).mean, {}
    for ddof in (0, 1):
        white = whitened(x, mask, ddof=ddof, **params)
        out |= {f"shift1_ddof{ddof}": white, f"shift0_ddof{ddof}": torch.where(mask, white + mean, 0)}
    return out | {"mean": mean, "var_ddof0": variance(x, mask, 0), "var_ddof1": variance(x, mask, 1)}


def gae(inputs, params, case_id):
    rewards, values, bootstrap = (real(inputs.get(key)) for key in ("rewards", "values", "bootstrap"))
    knobs = {"gamma": params["gamma"], "lam": params["lam"]}
    advantages, returns = advantage.gae(rewards, values, flags(inputs["mask"]), bootstrap=bootstrap, **knobs)
    return {"advantages": advantages, "returns": returns}


def discounted_returns(inputs, params, case_id):
    return {"returns": advantage.reward_to_go(real(inputs["rewards"]), flags(inputs["mask"]), gamma=params["gamma"])}


def shaped_rewards(inputs, params, case_id):
    given_scores, finished, mask = real(inputs["scores"]), flags(inputs["has_eos"]), flags(inputs["mask"])
    bounds = params.get("score_clip")
    knobs = {
        "score_clip": tuple(bounds) if isinstance(bounds, list) else bounds,
        "missing_eos_penalty": params.get("missing_eos_penalty") or 0.0,
    }
    shape = partial(
        kl.shaped_rewards,
        logprobs=real(inputs["logprobs"]),
        ref_logprobs=real(inputs["ref_logprobs"]),
        mask=mask,
        finished=finished,
        kl_coef=params["beta"],
        estimator=ESTIMATORS[params["kl_estimator"]],
    )
    out = shape(given_scores, **knobs)
    penalty_only = shape(torch.zeros_like(given_scores))
    return {
        "token_rewards": out.rewards,
        "kl": out.kl,
        "kl_sum_mean": aggregate.seq_mean_token_sum(out.kl, mask),
        "kl_token_mean": aggregate.token_mean(out.kl, mask),
        "non_score_reward_mean": aggregate.seq_mean_token_sum(penalty_only.rewards, mask),
        "score_mean": kl.shape_scores(given_scores, finished, **knobs).mean(),
        "rlhf_reward_mean": aggregate.seq_mean_token_sum(out.rewards, mask),
    }


ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "abs": kl.absolute}


def kl_estimators(inputs, params, case_id):
    mask = flags(inputs["mask"])
    out = {}
    for name, estimator in ESTIMATORS.items():
        x = estimator(real(inputs["logprobs"]), real(inputs["ref_logprobs"])).where(mask, 0)
        sums, means = aggregate.seq_mean_token_sum(x, mask), aggregate.token_mean(x, mask)
        out |= {name: x, f"{name}_seq_sum_mean": sums, f"{name}_token_mean": means}
    return out


def kl_gradients(inputs, params, case_id):
    logits, ref = leaf(inputs["logits_pi"]), real(inputs["logits_ref"])
    exact, forward = kl.full_kl(logits, ref), kl.full_kl(ref, logits)
    out = {
        "kl": exact,
        "forward_kl": forward,
        "grad_kl_exact": gradients(exact, logits)[0],
        "grad_forward_kl_exact": gradients(forward, logits)[0],
    }
    probabilities = logprobs.log_softmax(logits).exp().detach()
    for name in ("k1", "k2", "k3"):
        sampled = ESTIMATORS[name](logprobs.log_softmax(logits), logprobs.log_softmax(ref))
        expected = (probabilities * sampled).sum()
        out |= {f"expected_{name}": expected, f"expected_grad_{name}_loss": gradients(expected, logits)[0]}
    return out


def kl_full(inputs, params, case_id):
    p, q = real(inputs["logits_p"]), real(inputs["logits_q"])
    return {"kl_pq": kl.full_kl(p, q), "kl_qp": kl.full_kl(q, p)}


def adaptive_kl(inputs, params, case_id):
    controller = AdaptiveKL(params["init"], params["target"], params["horizon"], params["clip"])
    betas = []
    for value in inputs["kls"]:
        controller.update(value, num_sequences=params["n_steps"])
        betas.append(controller.coef)
    return {"betas": betas}


def bradley_terry(inputs, params, case_id):
    chosen, rejected = leaf(inputs["chosen"]), leaf(inputs["rejected"])
    margin, smoothing = real(inputs.get("margin")), params.get("label_smoothing") or 0.0
    per_pair = reward.logistic_loss(chosen - rejected, 0.0 if margin is None else margin, smoothing)
    if inputs.get("weights") is None:  # each pair is a prompt with two answers
        pairs, ranks = len(chosen), torch.tensor([1, 2])
        loss = reward.kwise_logistic_loss(
            torch.stack([chosen, rejected], 1).flatten(), ranks.repeat(pairs), torch.arange(pairs).repeat_interleave(2),
            margins=None if margin is None else margin.repeat_interleave(2), label_smoothing=smoothing,
            center_coef=params.get("center_coef") or 0.0,
        )  # fmt: skip
    else:
        assert not params.get("center_coef")
        loss = reward.pair_mean(per_pair, real(inputs["weights"]))
    grad_chosen, grad_rejected = gradients(loss, chosen, rejected)
    accuracy, tie_rate, margin_mean = reward.pair_statistics(chosen - rejected)
    return {
        "loss": loss, "per_pair": per_pair, "grad_chosen": grad_chosen, "grad_rejected": grad_rejected,
        "accuracy": accuracy, "tie_rate": tie_rate, "margin_mean": margin_mean,
    }  # fmt: skip


def kwise_pairs(inputs, params, case_id):
    sizes = [len(row) for row in inputs["rewards"]]
    flat, ranks = leaf(list(chain(*inputs["rewards"]))), whole(list(chain(*inputs["ranks"])))
    prompt = torch.arange(len(sizes)).repeat_interleave(whole(sizes))
    losses = {"prompt_mean": reward.kwise_logistic_loss, "pair_mean": reward.kwise_pair_mean_loss}
    loss = losses[params["reduction"]](flat, ranks, prompt)
    return {
        "loss": loss,
        "grads": gradients(loss, flat)[0],
        "num_pairs": reward.pairs_per_prompt(ranks, prompt),
        "per_prompt_loss": reward.kwise_prompt_losses(flat, ranks, prompt),
    }


def plackett_luce(inputs, params, case_id):
    rewards, ranking, top_k = leaf(inputs["rewards"]), whole(inputs["ranking"]), params.get("top_k")
    ranks = ranking.argsort() + 1
    arguments = (rewards, ranks, torch.zeros_like(ranks))
    loss = reward.plackett_luce_loss(*arguments, top_k=top_k)
    steps = reward.plackett_luce_steps(*arguments, top_k=top_k)[ranking]
    return {
        "loss": loss,
        "per_step": steps[: min(top_k or len(ranking), len(ranking) - 1)],
        "grad": gradients(loss, rewards)[0],
    }


def reward_norm(inputs, params, case_id):
    rewards = real(inputs["rewards"])
    std = float(rewards.std(correction=params.get("ddof", 0))) if len(rewards) > 1 else 0.0
    gain = params.get("target_std", 1.0) if std else 1.0
    norm = Normalise(float(rewards.mean()), std or 1.0)
    shift = params.get("target_mean", 0.0)
    gain, bias = gain / norm.std, shift - gain * norm.mean / norm.std
    return {"gain": gain, "bias": bias, "normalised": gain * norm.std * norm.rescale(rewards) + shift}


def calibration(inputs, params, case_id):
    return diagnostics.calibration(real(inputs["chosen"]), real(inputs["rejected"]), **params)._asdict()


def length_bias(inputs, params, case_id):
    rewards, lengths = real(inputs["rewards"]), real(inputs["lengths"])
    out = bias_of(rewards, lengths)
    return out._asdict() | {"residual_rewards": rewards - out.slope_per_token * (lengths - lengths.mean())}


def ensemble(inputs, params, case_id):
    members = real(inputs["rewards"])
    return {
        "mean": scores.ensemble_mean(members),
        "worst_case": scores.worst_case(members),
        "uncertainty_weighted": scores.uncertainty_weighted(members, **params),
    }


def reward_shaping(inputs, params, case_id):
    given_scores, references = real(inputs["reward"]), real(inputs["ref_rewards"])
    return {
        "par": scores.preference_as_reward(given_scores, references, **params),
        "lsc": scores.log_sigmoid_centered(given_scores, references),
        "centered": scores.centered(given_scores, references),
    }


def aggregation(params):
    name = params.get("agg") or "token_mean"
    function = getattr(aggregate, name)
    return partial(function, norm=params["norm"]) if name == "token_sum_norm" else function


def ppo_policy(inputs, params, case_id):
    logp = leaf(inputs["logp"])
    tensors = logp, real(inputs["old_logp"]), real(inputs["advantages"]), flags(inputs["mask"])
    out = ppo.clipped_policy_loss(
        *tensors,
        clip_range=params["clip_low"],
        clip_range_high=params.get("clip_high"),
        dual_clip=params.get("dual_clip"),
        weights=real(inputs.get("is_weights")),
        aggregate=aggregation(params),
    )
    return out._asdict() | {
        "grad_logp": gradients(out.loss, logp)[0],
        "clipfrac": out.clip_fraction,
        "dual_clipfrac": out.dual_clip_fraction,
        "approx_kl_k3": out.approx_kl,
    }


def ppo_value(inputs, params, case_id):
    values, returns, mask = leaf(inputs["values"]), real(inputs["returns"]), flags(inputs["mask"])
    out = ppo.clipped_value_loss(
        values, real(inputs["old_values"]), returns, mask, clip_range=params.get("clip"), aggregate=aggregation(params)
    )
    return out._asdict() | {
        "grad_values": gradients(out.loss, values)[0],
        "clipfrac": out.clip_fraction,
        "explained_variance": ppo.explained_variance(
            masking.masked_moments(returns, mask), masking.masked_moments(returns - values.detach(), mask)
        ),
    }


def rollout_weights(inputs, params, case_id):
    tensors = real(inputs["old_logp"]), real(inputs["rollout_logp"]), flags(inputs["mask"])
    low, high = params["low_for_mask_kinds"], params["high"]
    return {
        "token_truncate": ratios.truncated_token_weights(*tensors, high=high),
        "token_mask": ratios.masked_token_weights(*tensors, low=low, high=high),
        "seq_truncate": ratios.truncated_sequence_weights(*tensors, high=high),
        "seq_mask": ratios.masked_sequence_weights(*tensors, low=low, high=high),
    }


def seq_ratio(inputs, params, case_id):
    tensors = real(inputs["logp"]), real(inputs["old_logp"]), flags(inputs["mask"])
    return {"gspo": ratios.geometric_ratio(*tensors), "product": ratios.product_ratio(*tensors)}


def cispo(inputs, params, case_id):
    logp = leaf(inputs["logp"])
    tensors = logp, real(inputs["old_logp"]), real(inputs["advantages"]), flags(inputs["mask"])
    knobs = {"clip_range": params["clip_low"], "clip_range_high": params["clip_high"]}
    loss = policy.cispo_loss(*tensors, aggregate=aggregation(params), **knobs).loss
    return {"loss": loss, "grad_logp": gradients(loss, logp)[0]}


def group_advantages(inputs, params, case_id):
    totals, groups, eps = real(inputs["scores"]), whole(inputs["group_ids"]), params["eps"]
    return {
        "rloo": advantage.leave_one_out(totals, groups),
        "dr_grpo": advantage.center_by_group(totals, groups),
        "grpo": advantage.standardize_by_group(totals, groups, eps=eps),
        "grpo_pop": advantage.standardize_by_group(totals, groups, ddof=0, eps=eps),
        "batch": advantage.standardize_by_batch(totals, groups, eps=eps),
    }


def reinforce_pp(inputs, params, case_id):
    rewards, mask = real(inputs["token_rewards"]), flags(inputs["mask"])
    advantages, returns = advantage.returns_only(rewards, torch.zeros_like(rewards), mask, gamma=params["gamma"])
    knobs = {key: params[key] for key in ("ddof", "eps") if key in params}
    return {"returns": returns, "advantages": whitened(advantages, mask, **knobs)}


def reinforce(inputs, params, case_id):
    logits = leaf(inputs["logits"])
    logp = score_logits(logits, whole(inputs["actions"])).logprobs
    mask, aggregator = flags(inputs["mask"]), aggregation(params)
    loss = policy.reinforce_loss(logp, logp.detach(), real(inputs["advantages"]), mask, aggregate=aggregator).loss
    return {"loss": loss, "grad_logits": gradients(loss, logits)[0]}


def dpo_family(inputs, params, case_id):
    beta, smoothing, gamma = params["beta"], params.get("label_smoothing") or 0.0, params.get("gamma") or 0.0
    losses = {
        "sigmoid": partial(preference.dpo_loss, beta=beta, label_smoothing=smoothing),
        "robust": partial(preference.robust_dpo_loss, beta=beta, label_smoothing=smoothing),
        "hinge": partial(preference.hinge_loss, beta=beta),
        "ipo_sum": partial(preference.ipo_loss, beta=beta),
        "ipo_mean": partial(preference.ipo_per_token_loss, beta=beta),
        "simpo": partial(reference_free.simpo_loss, beta=beta, gamma=gamma),
        "orpo_or": reference_free.orpo_odds_ratio_loss,
    }
    chosen, rejected = leaf(inputs["policy_chosen"]), leaf(inputs["policy_rejected"])
    columns = real(inputs["ref_chosen"]), real(inputs["ref_rejected"])
    lengths = whole(inputs["len_chosen"]), whole(inputs["len_rejected"])
    name = case_id.split("/")[1]
    out = next(loss for key, loss in losses.items() if name.startswith(key))(chosen, rejected, *columns, *lengths)
    grad_chosen, grad_rejected = gradients(out.loss, chosen, rejected)
    # the file reports rewards relative to the reference for every loss, also for those that have none
    rewards = preference.dpo_loss(chosen, rejected, *columns, beta=beta)
    return {
        "loss": out.loss,
        "per_pair": out.per_pair,
        "grad_chosen": grad_chosen,
        "grad_rejected": grad_rejected,
        "rewards_chosen": rewards.chosen_rewards,
        "rewards_rejected": rewards.rejected_rewards,
        "accuracy": rewards.accuracy,
        "margin": rewards.margin,
    }


def kto_case(inputs, params, case_id):
    logp = leaf(inputs["logp"])
    z0 = kto.kto_reference_point(real(inputs["kl_logp"]), real(inputs["kl_ref_logp"]))
    weights = {"desirable_weight": params.get("w_pos", 1.0), "undesirable_weight": params.get("w_neg", 1.0)}
    out = kto.kto_loss(logp, real(inputs["ref_logp"]), flags(inputs["labels"]), z0, beta=params["beta"], **weights)
    return {"z0": z0, "loss": out.loss, "per_sample": out.per_sample, "grad_logp": gradients(out.loss, logp)[0]}


def bon(inputs, params, case_id):
    if "kl_bound" in case_id:
        return {"bound": [best_of_n.best_of_n_kl_bound(n) for n in inputs["n"]]}
    n = params["n"]
    if "exact" in case_id:
        law = best_of_n.best_of_n_law(real(inputs["p"]), real(inputs["scores"]), n)
        return law._asdict() | {"pi": law.probabilities, "bound": best_of_n.best_of_n_kl_bound(n)}
    out = best_of_n.best_of_n(real(inputs["proxy"]), real(inputs["gold"]), n)
    return out._asdict() | {"weights_sorted": out.weights}


def gao(inputs, params, case_id):
    forms = {
        "bon": (overoptimisation.best_of_n_curve, overoptimisation.best_of_n_peak),
        "rl": (overoptimisation.rl_curve, overoptimisation.rl_peak),
    }
    curve, peak = next(functions for key, functions in forms.items() if case_id.split("/")[1].startswith(key))
    top = peak(**params)
    return {"gold": curve(real(inputs["d"]), **params), "peak_d": top.distance, "peak_gold": top.gold}


def kl_optimal(inputs, params, case_id):
    beta = params["beta"]
    if "second_logits" in inputs:
        tree = optimum.tree_optimum(**{key: real(table) for key, table in inputs.items()}, beta=beta)
        tables = {"first": tree.first.exp(), "second": tree.second.exp(), "soft_value_after_first": tree.soft_values}
        return tree._asdict() | tables
    out = optimum.bandit_optimum(real(inputs["ref_logits"]), real(inputs["reward"]), beta=beta)
    return out._asdict() | {"pi": out.logprobs.exp(), "log_partition_times_beta": out.soft_value}


def kl_sequence_gradients(inputs, params, case_id):
    first, second = leaf(inputs["first_pi"]), leaf(inputs["second_pi"])
    tables = first, second, real(inputs["first_ref"]), real(inputs["second_ref"])
    exact = optimum.tree_kl(*tables)
    grad_first, grad_second = gradients(exact, first, second)
    return {
        "kl_sequence": exact,
        "grad_first_exact": grad_first,
        "grad_second_exact": grad_second,
        "grad_first_per_token_k2_loss": gradients(optimum.tree_token_loss(*tables, estimator=kl.k2), first)[0],
    }


def wilson(inputs, params, case_id):
    return diagnostics.wilson_interval(**inputs, z=params["z"])._asdict()


def adam(inputs, params, case_id):
    kinds = {"torch": torch.optim.Adam, "tf1": TF1Adam}
    theta, betas = leaf(inputs["theta0"]), (params["beta1"], params["beta2"])
    optimizer = kinds[params["style"]]([theta], lr=params["lr"], betas=betas, eps=params["eps"])
    thetas = []
    for grad in inputs["grads"]:
        theta.grad = real(grad)
        optimizer.step()
        thetas.append(theta.tolist())
    return {"thetas": thetas}


def diversity(inputs, params, case_id):
    responses = inputs["responses"]
    return {
        "distinct_1": diagnostics.distinct_n(responses, 1),
        "distinct_2": diagnostics.distinct_n(responses, 2),
        "repetition_2": [diagnostics.repetition_n(r, 2) for r in responses],
        "repetition_3": [diagnostics.repetition_n(r, 3) for r in responses],
    }


FAMILIES = {
    f.__name__: f
    for f in (
        token_logprobs, sft_nll, response_mask, aggregate_microbatch, masked_whiten, gae, discounted_returns,
        shaped_rewards, kl_estimators, kl_gradients, kl_sequence_gradients, kl_full, kl_optimal, adaptive_kl,
        bradley_terry, kwise_pairs, plackett_luce, reward_norm, calibration, length_bias, ensemble, reward_shaping,
        ppo_policy, ppo_value, rollout_weights, seq_ratio, cispo, group_advantages, reinforce_pp, reinforce,
        dpo_family, bon, gao, wilson, adam, diversity,
    )
} | {"aggregate": aggregates, "kto": kto_case}  # fmt: skip
