"""One honest sentence about a run, and the policies it speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLEAR = 1.96  # standard errors that make a difference clear (95 percent)


def winner(evaluation: Mapping[str, Any]) -> str:
    """The newest policy: the one the run was made for."""
    return list(evaluation["policies"])[-1]


def opponent(evaluation: Mapping[str, Any]) -> str:
    """What the newest policy is compared with: ``sft`` if there is one before it, else the policy just before."""
    before = list(evaluation["policies"])[:-1]
    if not before:
        return winner(evaluation)
    return "sft" if "sft" in before else before[-1]


def conclusion(evaluation: Mapping[str, Any]) -> str:
    """What happened to the judge's score at which KL, who won how often, and whether the proxy can be trusted.

    A change counts as up or down only where it is clear of its standard error (1.96 of them); the errors are taken as
    independent, which overstates them for policies that answered the same prompts. Proxy up and judge down is named for
    what it is: reward hacking.
    """
    new, old, judge = winner(evaluation), opponent(evaluation), evaluation["judge"]
    if new == old:
        return f"Only {new} was evaluated: there is nothing to compare it with."
    change, stderr = _change(evaluation, judge)
    direction = _direction(change, stderr)
    if direction:
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
    if proxy is not None and proxy != judge:
        proxy_change, proxy_stderr = _change(evaluation, proxy)
        parts.append(f"proxy {proxy} {proxy_change:+.3f}{_gap(evaluation, proxy_change, change)}")
        warning = _warning(_direction(proxy_change, proxy_stderr), direction, proxy, judge)
    return "; ".join(parts) + "." + warning


def _change(evaluation: Mapping[str, Any], score: str) -> tuple[float, float]:
    new, old = (
        evaluation["policies"][name]["summary"]["scores"][score] for name in (winner(evaluation), opponent(evaluation))
    )
    return new["mean"] - old["mean"], ((new["stderr"] or 0.0) ** 2 + (old["stderr"] or 0.0) ** 2) ** 0.5


def _gap(evaluation: Mapping[str, Any], proxy_change: float, judge_change: float) -> str:
    """Proxy change minus judge change, each in standard deviations over prompts of the policy compared with.

    The two scores have units of their own; only such a common scale lets them be subtracted.
    """
    summary = evaluation["policies"][opponent(evaluation)]["summary"]
    names = (evaluation["proxy"], evaluation["judge"])
    spreads = [(summary["scores"][name]["stderr"] or 0.0) * summary["prompts"] ** 0.5 for name in names]
    if min(spreads) <= 0:
        return ""
    gap = proxy_change / spreads[0] - judge_change / spreads[1]
    return f", proxy-gold gap {gap:+.2f} standard deviations of {opponent(evaluation)}"


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


def _warning(proxy: int, judge: int, proxy_name: str, judge_name: str) -> str:
    if proxy > 0 and judge < 0:
        return (
            f" WARNING, reward hacking: {proxy_name} rose while {judge_name} fell. Stop earlier, lower the KL target, "
            "or train the reward model on samples of this policy."
        )
    if proxy > 0 and judge == 0:
        return f" Caution: {proxy_name} rose without a clear gain in {judge_name}."
    return ""
