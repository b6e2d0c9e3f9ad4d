"""One honest sentence about a run, and the policies it speaks of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CLEAR = 1.96  # standard errors that make a difference clear (95 percent)
PEOPLE = "people"  # the judge where people voted; the evaluation then has a part of this name
REPEATS = 0.1  # share by which repetition has to rise before it is told
OUTRUN = 1.0  # standard deviations by which a proxy may rise more than the judge


def winner(evaluation: Mapping[str, Any]) -> str:
    """The newest policy: the one the run was made for."""
    return list(evaluation["policies"])[-1]


def opponent(evaluation: Mapping[str, Any]) -> str:
    """What the newest policy is compared with: ``sft`` if there is one before it, else the policy just before."""
    before = list(evaluation["policies"])[:-1]
    if not before:
        return winner(evaluation)
    return "sft" if "sft" in before else before[-1]


def scores_of_answers(evaluation: Mapping[str, Any]) -> list[str]:
    """Those of judge and proxy that each answer has; people vote on policies."""
    judges = [evaluation["judge"]] if PEOPLE not in evaluation else []
    return list(filter(None, dict.fromkeys((*judges, evaluation.get("proxy")))))


def conclusion(evaluation: Mapping[str, Any]) -> str:
    """What happened to the judge's score at which KL, who won how often, and whether the proxy can be trusted.

    A change counts as up or down only where it is clear of its standard error (1.96 of them); the errors are taken as
    independent, which overstates them for policies that answered the same prompts. The proxy is the score that was
    optimised. Proxy up and judge down is reward hacking; a proxy that rose by a standard deviation more than the judge
    is over-optimisation, and the sentence says so, as it does where there is no other judge than the proxy.
    """
    new, old, judge = winner(evaluation), opponent(evaluation), evaluation["judge"]
    if new == old:
        return f"Only {new} was evaluated: there is nothing to compare it with."
    change, stderr = _change(evaluation, judge)
    direction = _direction(change, stderr)
    if math.isinf(stderr):
        sentence = f"{judge} {change:+.3f} from {old} to {new} on a single prompt, which is too few to tell,"
    elif direction:
        sentence = (
            f"{judge} {'up' if direction > 0 else 'down'} by {abs(change):.3f} (± {stderr:.3f}) from {old} to {new}"
        )
    else:
        sentence = f"{judge} did not clearly change from {old} to {new} ({change:+.3f} ± {stderr:.3f})"
    kl = evaluation["policies"][new]["summary"].get("kl")
    if kl is not None:
        sentence += f" at a KL of {kl['mean']:z.2f} nats per response"
    parts = [sentence, *_win_part(evaluation, new, old)]
    warning = ""
    proxy = evaluation.get("proxy")
    if proxy == judge:
        warning = f" No independent judge: {judge} is what was optimised, and says nothing of what it cannot see."
    elif proxy is not None:
        proxy_change, proxy_stderr = _change(evaluation, proxy)
        parts.append(f"{proxy}, which was optimised, {proxy_change:+.3f}")
        rises = _rises(evaluation, proxy_change, change)
        warning = _warning(_direction(proxy_change, proxy_stderr), direction, proxy, judge, rises)
    return "; ".join(parts) + "." + warning


def repetitions(evaluation: Mapping[str, Any]) -> list[str]:
    """A sentence where answers of the newest policy repeat themselves, and one where they repeat each other.

    Both are told where the share has risen by more than a tenth from the policy that it is compared with.
    """
    new, old = winner(evaluation), opponent(evaluation)
    after, before = (evaluation["policies"][name]["summary"] for name in (new, old))
    within, among = ([of.get(name) for of in (after, before)] for name in ("repetition_3", "same_answers"))
    told = []
    if None not in within and within[0] > within[1] + REPEATS:
        told.append(
            f"{new} repeats itself: {100 * within[0]:.0f} % of three words in a row stood in the same answer before, "
            f"of {old} {100 * within[1]:.0f} %"
        )
    if None not in among and among[0] > among[1] + REPEATS:
        told.append(
            f"{new} gives the same answer again: {100 * among[0]:.0f} % of its answers are those to another prompt, "
            f"word for word, of {old} {100 * among[1]:.0f} %"
        )
    return told


def _change(evaluation: Mapping[str, Any], score: str) -> tuple[float, float]:
    """The change of a score and its standard error, which is infinite with a single prompt."""
    new, old = (
        evaluation["policies"][name]["summary"]["scores"][score] for name in (winner(evaluation), opponent(evaluation))
    )
    errors = [math.inf if one["stderr"] is None else one["stderr"] for one in (new, old)]
    return new["mean"] - old["mean"], math.hypot(*errors)


def _rises(evaluation: Mapping[str, Any], proxy_change: float, judge_change: float) -> tuple[float, float] | None:
    """Both changes in standard deviations over prompts of the policy compared with; None where one does not vary,
    as a rating by people, which is 0 for that policy.

    The two scores have units of their own; only such a common scale lets them be compared.
    """
    summary = evaluation["policies"][opponent(evaluation)]["summary"]
    names = (evaluation["proxy"], evaluation["judge"])
    spreads = [(summary["scores"][name]["stderr"] or 0.0) * summary["prompts"] ** 0.5 for name in names]
    return None if min(spreads) <= 0 else (proxy_change / spreads[0], judge_change / spreads[1])


def _direction(change: float, stderr: float) -> int:
    return 0 if abs(change) <= CLEAR * stderr else 1 if change > 0 else -1


def _win_part(evaluation: Mapping[str, Any], new: str, old: str) -> list[str]:
    result = evaluation["win_rates"].get(f"{new} vs {old}")
    if result is None:
        return []
    shown = rate_text(result["win_rate"], result["low"], result["high"])
    return [f"win rate {shown} against {old}, judged by {result['judge']}"]


def rate_text(rate: float, low: float, high: float) -> str:
    """A share with its interval, in percent."""
    return f"{100 * rate:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _warning(proxy: int, judge: int, name: str, judge_name: str, rises: tuple[float, float] | None) -> str:
    """What the directions and the rises, in standard deviations, of proxy and judge say together."""
    if proxy > 0 and judge < 0:
        return (
            f" WARNING, reward hacking: {name} rose while {judge_name} fell. Stop earlier, lower the KL target, "
            "or train the reward model on samples of this policy."
        )
    if proxy > 0 and judge == 0:
        return f" Caution: {name} rose without a clear gain in {judge_name}."
    if proxy > 0 and rises is not None and rises[0] - rises[1] > OUTRUN:
        return (
            f" Caution, over-optimisation: {name} rose by {rises[0]:.1f} standard deviations and {judge_name} by "
            f"{rises[1]:.1f}, so part of what was learned pleases {name} only. Lower kl.target, or train the reward "
            "model on samples of this policy."
        )
    return ""
