"""Maps the families of `golden_shared.json` to library calls: lists to tensors, a call, results by name.

There is no formula here. The dtype comes from the environment variable GOLDEN_DTYPE (float64 by default).
"""

import os
from functools import partial
from itertools import chain

import torch

from rlhf_lightning.functional import (
    advantage,
    aggregate,
    diagnostics,
    kl,
    logprobs,
    masking,
    ppo,
    ratios,
    reward,
    scores,
    sft,
)
from rlhf_lightning.kl_control import AdaptiveKL

NOT_BUILT_YET = {
    "dpo_family",
    "kto",
    "gao",
    "kl_optimal",
    "kl_sequence_gradients",
    "bon/exact_n2",
    "bon/exact_n8",
    "adam/tf1",
}
"""Families and single cases that no library function answers yet."""


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
    out = logprobs.token_logprobs(logits, whole(inputs["input_ids"]), temperature=temperature)
    return {
        "token_logprobs": out,
        "response_logprobs": out[:, params["prompt_len"] - 1 :],
        "entropy": logprobs.entropy(logits, temperature=temperature),
    }


def sft_nll(inputs, params, case_id):
    labels = whole(inputs["labels"])
    out = sft.token_nll(real(inputs["logits"]), labels.clamp(min=0), labels != params["ignore_index"])
    token_mean = aggregate.token_mean(out.nll, out.mask)
    return {
        "per_token_nll": out.nll,
        "mask": out.mask,
        "token_mean": token_mean,
        "seq_mean_token_mean": aggregate.seq_mean_token_mean(out.nll, out.mask),
        "sum": masking.masked_sum(out.nll, out.mask),
        "num_tokens": out.mask.sum(),
        "perplexity": sft.perplexity(token_mean),
        "token_accuracy": aggregate.token_mean(out.correct.double(), out.mask),
    }


def response_mask(inputs, params, case_id):
    ids, eos = whole(inputs["response_ids"]), [params["eos_id"]]
    mask = masking.response_mask(ids, eos)
    return {"mask": mask, "length": mask.sum(1), "has_eos": masking.has_eos(ids, eos)}


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
    out = {
        f"shift{int(shift)}_ddof{ddof}": masking.masked_whiten(x, mask, shift_mean=shift, ddof=ddof)
        for shift in (False, True)
        for ddof in (0, 1)
    }
    return out | {
        "mean": masking.masked_moments(x, mask).mean,
        "var_ddof0": masking.masked_moments(x, mask).var,
        "var_ddof1": masking.masked_var(x, mask, ddof=1),
    }


def gae(inputs, params, case_id):
    advantages, returns = advantage.gae(
        real(inputs["rewards"]),
        real(inputs["values"]),
        flags(inputs["mask"]),
        gamma=params["gamma"],
        lam=params["lam"],
        bootstrap=real(inputs["bootstrap"]),
    )
    return {"advantages": advantages, "returns": returns}


def discounted_returns(inputs, params, case_id):
    return {"returns": advantage.reward_to_go(real(inputs["rewards"]), flags(inputs["mask"]), gamma=params["gamma"])}


def shaped_rewards(inputs, params, case_id):
    verdicts, finished, mask = real(inputs["scores"]), flags(inputs["has_eos"]), flags(inputs["mask"])
    knobs = {
        "score_clip": params.get("score_clip") and tuple(params["score_clip"]),
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
    out = shape(verdicts, **knobs)
    price_only = shape(torch.zeros_like(verdicts))
    return {
        "token_rewards": out.rewards,
        "kl": out.kl,
        "kl_sum_mean": aggregate.seq_mean_token_sum(out.kl, mask),
        "kl_token_mean": aggregate.token_mean(out.kl, mask),
        "non_score_reward_mean": aggregate.seq_mean_token_sum(price_only.rewards, mask),
        "score_mean": kl.shape_scores(verdicts, finished, **knobs).mean(),
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
    out = reward.pairwise_logistic_loss(
        chosen,
        rejected,
        margin=real(inputs["margin"]),
        weights=real(inputs["weights"]),
        label_smoothing=params["label_smoothing"],
        center_coef=params["center_coef"],
    )
    grad_chosen, grad_rejected = gradients(out.loss, chosen, rejected)
    return {
        "loss": out.loss,
        "per_pair": out.per_pair,
        "grad_chosen": grad_chosen,
        "grad_rejected": grad_rejected,
        "accuracy": out.accuracy,
        "tie_rate": out.tie_rate,
        "margin_mean": out.margin,
    }


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
    rewards, ranking = leaf(inputs["rewards"]), whole(inputs["ranking"])
    ranks = ranking.argsort() + 1
    arguments = (rewards, ranks, torch.zeros_like(ranks))
    loss = reward.plackett_luce_loss(*arguments, top_k=params["top_k"])
    steps = reward.plackett_luce_steps(*arguments, top_k=params["top_k"])[ranking]
    return {
        "loss": loss,
        "per_step": steps[: params["top_k"] or len(ranking) - 1],
        "grad": gradients(loss, rewards)[0],
    }


def reward_norm(inputs, params, case_id):
    rewards = real(inputs["rewards"])
    norm = scores.normalisation(rewards, **params)
    return {"gain": norm.gain, "bias": norm.bias, "normalised": scores.normalise(rewards, norm)}


def calibration(inputs, params, case_id):
    out = diagnostics.calibration(real(inputs["chosen"]), real(inputs["rejected"]), n_bins=params["n_bins"])
    return out._asdict()


def length_bias(inputs, params, case_id):
    out = diagnostics.length_bias(real(inputs["rewards"]), real(inputs["lengths"]))
    return out._asdict() | {"residual_rewards": out.residuals}


def ensemble(inputs, params, case_id):
    members = real(inputs["rewards"])
    return {
        "mean": scores.ensemble_mean(members),
        "worst_case": scores.worst_case(members),
        "uncertainty_weighted": scores.uncertainty_weighted(members, coef=params["coef"], ddof=params["ddof"]),
    }


def reward_shaping(inputs, params, case_id):
    verdicts, references = real(inputs["reward"]), real(inputs["ref_rewards"])
    return {
        "par": scores.preference_as_reward(verdicts, references, k=params["k"]),
        "lsc": scores.log_sigmoid_centered(verdicts, references),
        "centered": scores.centered(verdicts, references),
    }


def ppo_policy(inputs, params, case_id):
    aggregates = {
        "token_mean": aggregate.token_mean,
        "seq_mean_token_mean": aggregate.seq_mean_token_mean,
        "seq_mean_token_sum": aggregate.seq_mean_token_sum,
        "token_sum_norm": partial(aggregate.token_sum_norm, norm=params["norm"]),
    }
    logp = leaf(inputs["logp"])
    out = ppo.clipped_policy_loss(
        logp,
        real(inputs["old_logp"]),
        real(inputs["advantages"]),
        flags(inputs["mask"]),
        clip_range=params["clip_low"],
        clip_range_high=params["clip_high"],
        dual_clip=params["dual_clip"],
        weights=real(inputs["is_weights"]),
        aggregate=aggregates[params["agg"]],
    )
    return out._asdict() | {
        "grad_logp": gradients(out.loss, logp)[0],
        "clipfrac": out.clip_fraction,
        "dual_clipfrac": out.dual_clip_fraction,
        "approx_kl_k3": out.approx_kl,
    }


def ppo_value(inputs, params, case_id):
    values, returns, mask = leaf(inputs["values"]), real(inputs["returns"]), flags(inputs["mask"])
    out = ppo.clipped_value_loss(values, real(inputs["old_values"]), returns, mask, clip_range=params["clip"])
    return out._asdict() | {
        "grad_values": gradients(out.loss, values)[0],
        "clipfrac": out.clip_fraction,
        "explained_variance": ppo.explained_variance(values.detach(), returns, mask),
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
    loss = ratios.cispo_loss(
        logp,
        real(inputs["old_logp"]),
        real(inputs["advantages"]),
        flags(inputs["mask"]),
        clip_range=params["clip_low"],
        clip_range_high=params["clip_high"],
    )
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
    return {"returns": returns, "advantages": masking.masked_whiten(advantages, mask, ddof=params["ddof"])}


def reinforce(inputs, params, case_id):
    logits = leaf(inputs["logits"])
    loss = ratios.reinforce_loss(
        logprobs.gather_logprobs(logits, whole(inputs["actions"])),
        real(inputs["advantages"]),
        flags(inputs["mask"]),
        aggregate=getattr(aggregate, params["agg"]),
    )
    return {"loss": loss, "grad_logits": gradients(loss, logits)[0]}


def bon(inputs, params, case_id):
    if case_id == "bon/kl_bound":
        return {"bound": [diagnostics.best_of_n_kl_bound(n) for n in inputs["n"]]}
    if "exact" in case_id:
        raise NotImplementedError(case_id)
    out = diagnostics.best_of_n(real(inputs["proxy"]), real(inputs["gold"]), params["n"])
    return {"proxy": out.proxy, "gold": out.gold, "weights_sorted": out.weights}


def wilson(inputs, params, case_id):
    return diagnostics.wilson_interval(**inputs, z=params["z"])._asdict()


def adam(inputs, params, case_id):
    if params["style"] != "torch":
        raise NotImplementedError(case_id)
    theta = leaf(inputs["theta0"])
    betas = (params["beta1"], params["beta2"])
    optimizer = torch.optim.Adam([theta], lr=params["lr"], betas=betas, eps=params["eps"])
    thetas = []
    for grad in inputs["grads"]:
        theta.grad = real(grad)
        optimizer.step()
        thetas.append(theta.item())
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
        token_logprobs,
        sft_nll,
        response_mask,
        aggregate_microbatch,
        masked_whiten,
        gae,
        discounted_returns,
        shaped_rewards,
        kl_estimators,
        kl_gradients,
        kl_full,
        adaptive_kl,
        bradley_terry,
        kwise_pairs,
        plackett_luce,
        reward_norm,
        calibration,
        length_bias,
        ensemble,
        reward_shaping,
        ppo_policy,
        ppo_value,
        rollout_weights,
        seq_ratio,
        cispo,
        group_advantages,
        reinforce_pp,
        reinforce,
        bon,
        wilson,
        adam,
        diversity,
    )
} | {"aggregate": aggregates}
