"""Deciding, from a few numbers per rollout, whether a policy has begun to game its score.

No Trainer is needed: feed `HackingDetector.observe` what was logged, or curves read from a history file.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_lightning.rules.ranges import require

PROXY, PROXY_STD = "objective/scores", "objective/scores_std"
KL, KL_P99, KL_TARGET = "objective/kl", "objective/kl_p99", "objective/kl_target"
LENGTH, REPETITION = "completions/mean_length", "completions/repetition_3"
DUPLICATES, EOS_RATE = "completions/duplicates", "completions/eos_rate"
LENGTH_CORRELATION = "guard/score_length_pearson"
DISAGREEMENT = "disagreement/mean"  # the end of the tag, which begins with rewards/
KL_SLACK = 1.5  # without `max_kl`, this many controller targets are allowed

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """Where an alarm is raised; None never raises it. Everything is a mean over ``window`` rollouts.

    Args:
        max_kl: nats per response; None allows 1.5 controller targets, or anything without a target.
        max_kl_p99: of the worst percent of responses, nats per response.
        max_gold_drop: share of its gain since the start that gold may lose from its peak while the proxy rises.
        max_gap: rise of the proxy minus rise of gold, each in standard deviations over the first responses.
        max_length_drift: relative change of the mean length since the first rollouts, either way.
        max_repetition_rise: of the share of repeated token triples.
        max_duplicates_rise: of the share of responses that equal another.
        max_eos_drop: of the share of responses that end by themselves.
        max_length_correlation_rise: of the size of the correlation between score and length.
        max_disagreement: of an ensemble, relative to the first rollouts.
        window: rollouts in a mean, and first rollouts that later ones are compared with.
        noise: a fall of gold must also exceed so many standard errors, which are estimated from its jumps from one
            rollout to the next. The peak is the luckiest of many means, so 2 or 3 are soon exceeded by chance.
    """

    max_kl: float | None = None
    max_kl_p99: float | None = None
    max_gold_drop: float | None = 0.03
    max_gap: float | None = 2.0
    max_length_drift: float | None = 0.5
    max_repetition_rise: float | None = 0.1
    max_duplicates_rise: float | None = 0.25
    max_eos_drop: float | None = 0.2
    max_length_correlation_rise: float | None = 0.5
    max_disagreement: float | None = 2.0
    window: int = 5
    noise: float = 4.0

    def __post_init__(self) -> None:
        require("max_kl", self.max_kl, above=0, why="null switches it off")
        require("max_kl_p99", self.max_kl_p99, above=0, why="null switches it off")
        require("max_gold_drop", self.max_gold_drop, above=0, why="null switches it off")
        require("max_gap", self.max_gap, above=0, why="null switches it off")
        require("max_length_drift", self.max_length_drift, above=0, why="null switches it off")
        require("max_repetition_rise", self.max_repetition_rise, above=0, why="null switches it off")
        require("max_duplicates_rise", self.max_duplicates_rise, above=0, why="null switches it off")
        require("max_eos_drop", self.max_eos_drop, above=0, why="null switches it off")
        require("max_length_correlation_rise", self.max_length_correlation_rise, above=0, why="null switches it off")
        require("max_disagreement", self.max_disagreement, above=0, why="null switches it off")
        require("window", self.window, at_least=1, whole=True)
        require("noise", self.noise, at_least=0)


class Alarm(NamedTuple):
    """One cause, raised once."""

    rollout: int
    cause: str
    reason: str


SENTENCES = {
    "kl": "KL from the reference is {:.3g} nats per response (limit {:.3g}); raise kl.init_coef or lower kl.target",
    "kl_p99": "the worst percent of responses is {:.3g} nats from the reference (limit {:.3g}); read the sample table",
    "gold": "gold has lost {:.0%} of its gain since its peak (limit {:.0%}) while the proxy rises; the best policy is "
    "behind: stop, or lower kl.target",
    "gap": "the proxy has risen {:.2g} standard deviations more than gold (limit {:.2g}); rank answers of this policy",
    "length": "responses have changed their length by {:.0%} (limit {:.0%}); add a length penalty",
    "repetition": "repeated token triples have risen by {:.2g} (limit {:.2g}); read the sample table",
    "duplicates": "the share of equal responses has risen by {:.2g} (limit {:.2g}); the policy is collapsing",
    "eos": "the share of responses that end fell by {:.2g} (limit {:.2g}); raise ppo.settings.missing_eos_penalty",
    "length_correlation": "score and length correlate by {:.2g} more than at first (limit {:.2g}); the score is length",
    "disagreement": "the ensemble disagrees {:.2g} times as much as at first (limit {:.2g}): it has left what it knows",
}
"""What an alarm says, with the measured value and its limit."""


class Track:
    """A series: its first value, the mean of the first few, and the mean of the last few."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=window)

    def add(self, value: float) -> None:
        """The next value; one that is no number is left out."""
        if math.isfinite(value):
            if len(self.first) < self.window:
                self.first.append(value)
            self.recent.append(value)

    @property
    def full(self) -> bool:
        """Whether there are enough values for a mean."""
        return len(self.first) >= self.window

    @property
    def start(self) -> float:
        """Mean of the first values."""
        return math.fsum(self.first) / len(self.first)

    @property
    def now(self) -> float:
        """Mean of the last values."""
        return math.fsum(self.recent) / len(self.recent)


class GoldTrack:
    """Gold beside the proxy, both smoothed: where gold peaked, how far it fell since, and how noisy it is."""

    def __init__(self, window: int) -> None:
        self.gold, self.proxy = Track(window), Track(window)
        self.spread = (math.nan, math.nan)  # standard deviation over the first responses, of gold and of the proxy
        self.peak = self.proxy_at_peak = -math.inf
        self.jumps, self.count = 0.0, 0  # sum of squared differences of neighbours, and how many

    def add(self, gold: float, proxy: float, gold_std: float, proxy_std: float) -> None:
        """One rollout on which gold was measured."""
        if not (math.isfinite(gold) and math.isfinite(proxy)):
            return
        if not self.gold.first:
            self.spread = (gold_std, proxy_std)
        else:
            self.jumps, self.count = self.jumps + (gold - self.gold.recent[-1]) ** 2, self.count + 1
        self.gold.add(gold)
        self.proxy.add(proxy)
        if self.gold.full and self.gold.now > self.peak:
            self.peak, self.proxy_at_peak = self.gold.now, self.proxy.now

    def drop(self, noise: float) -> float | None:
        """Share of its gain that gold has lost since its peak; 0 within the noise, or unless the proxy has risen."""
        if not self.gold.full:
            return None
        fall = self.peak - self.gold.now
        error = math.sqrt(self.jumps / (2 * max(self.count, 1)) / self.gold.window)
        if fall <= noise * math.sqrt(2) * error or self.proxy.now <= self.proxy_at_peak:
            return 0.0
        return fall / max(self.peak - self.gold.first[0], fall / 10)  # of a gain next to nothing at most tenfold

    def gap(self) -> float | None:
        """Rise of the proxy minus that of gold, each in its first standard deviation; None where that is not known."""
        if not self.gold.full or not min(self.spread) > 0:
            return None
        gold, proxy = ((t.now - t.first[0]) / s for t, s in zip((self.gold, self.proxy), self.spread, strict=True))
        return proxy - gold


class HackingDetector:
    """Compares each rollout with the first ones and with `Limits`; raises each cause once.

    Attributes:
        alarms: all that were raised, oldest first.
        measured: what was compared last, by cause; a cause whose numbers are missing is not in it.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.alarms: list[Alarm] = []
        self.measured: dict[str, float] = {}
        self._tracks: dict[str, Track] = {}
        self._gold = GoldTrack(self.limits.window)

    def observe(
        self, rollout: int, metrics: Metrics, gold: float | None = None, gold_std: float = math.nan
    ) -> list[Alarm]:
        """Take in one rollout; returns the alarms it raised.

        Args:
            rollout: its number, from 1.
            metrics: numbers by the tags that PPO logs; those that are missing are not watched.
            gold: mean of the score that matters, on this rollout or on held-out prompts; None where it was not
                measured.
            gold_std: its standard deviation over the responses; NaN where unknown, which leaves out the gap.
        """
        watched = (KL, KL_P99, LENGTH, REPETITION, DUPLICATES, EOS_RATE, LENGTH_CORRELATION)
        for tag, value in metrics.items():
            if tag in watched or (tag.startswith("rewards/") and tag.endswith(DISAGREEMENT)):
                self._tracks.setdefault(tag, Track(self.limits.window)).add(value)
        if gold is not None:
            self._gold.add(gold, metrics.get(PROXY, math.nan), gold_std, metrics.get(PROXY_STD, math.nan))
        self.measured = {cause: value for cause, value in self._measure().items() if value is not None}
        limits = self._limits(metrics.get(KL_TARGET, math.nan))
        known = {alarm.cause for alarm in self.alarms}
        fresh = [
            Alarm(rollout, cause, SENTENCES[cause].format(value, limits[cause]))
            for cause, value in self.measured.items()
            if cause not in known and value > limits[cause]
        ]
        self.alarms += fresh
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """All it knows, as plain data."""
        gold = self._gold
        return {
            "alarms": [list(alarm) for alarm in self.alarms],
            "tracks": {tag: _state(track) for tag, track in self._tracks.items()},
            "gold": {"gold": _state(gold.gold), "proxy": _state(gold.proxy), "spread": list(gold.spread)}
            | {name: getattr(gold, name) for name in ("peak", "proxy_at_peak", "jumps", "count")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.alarms = [Alarm(*alarm) for alarm in state["alarms"]]
        self._tracks = {tag: _track(saved, self.limits.window) for tag, saved in state["tracks"].items()}
        gold, saved = GoldTrack(self.limits.window), state["gold"]
        gold.gold, gold.proxy = (_track(saved[name], self.limits.window) for name in ("gold", "proxy"))
        gold.spread = tuple(saved["spread"])
        for name in ("peak", "proxy_at_peak", "jumps", "count"):
            setattr(gold, name, saved[name])
        self._gold = gold

    def _measure(self) -> dict[str, float | None]:
        """What is compared with the limits, by cause."""
        t = {tag: track for tag, track in self._tracks.items() if track.full}
        rise = {tag: track.now - track.start for tag, track in t.items()}
        ratio = {tag: track.now / track.start for tag, track in t.items() if track.start > 0}
        length, correlation = ratio.get(LENGTH), t.get(LENGTH_CORRELATION)
        return {
            "kl": t[KL].now if KL in t else None,
            "kl_p99": t[KL_P99].now if KL_P99 in t else None,
            "gold": self._gold.drop(self.limits.noise),
            "gap": self._gold.gap(),
            "length": None if length is None else abs(length - 1),
            "repetition": rise.get(REPETITION),
            "duplicates": rise.get(DUPLICATES),
            "eos": -rise[EOS_RATE] if EOS_RATE in rise else None,
            "length_correlation": None if correlation is None else abs(correlation.now) - abs(correlation.start),
            "disagreement": max((r for tag, r in ratio.items() if tag.endswith(DISAGREEMENT)), default=None),
        }

    def _limits(self, kl_target: float) -> dict[str, float]:
        given = self.limits
        found = {
            "kl": KL_SLACK * kl_target if given.max_kl is None and kl_target > 0 else given.max_kl,
            "kl_p99": given.max_kl_p99,
            "gold": given.max_gold_drop,
            "gap": given.max_gap,
            "length": given.max_length_drift,
            "repetition": given.max_repetition_rise,
            "duplicates": given.max_duplicates_rise,
            "eos": given.max_eos_drop,
            "length_correlation": given.max_length_correlation_rise,
            "disagreement": given.max_disagreement,
        }
        return {cause: math.inf if limit is None else limit for cause, limit in found.items()}


def _state(track: Track) -> dict[str, list[float]]:
    return {"first": list(track.first), "recent": list(track.recent)}


def _track(state: Mapping[str, list[float]], window: int) -> Track:
    track = Track(window)
    track.first = list(state["first"])
    track.recent.extend(state["recent"])
    return track
