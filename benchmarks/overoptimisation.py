"""Does optimising a learned score spoil the true one, is the guard in time, and does an ensemble help?

    python -m benchmarks.overoptimisation --seeds 4

Gold, the true score of `benchmarks.bigram.Toy`, adds up what each symbol of a sequence is worth, less a penalty for
every pair of equal symbols. Twenty proxies learn it from the same 50 noisy comparisons, each from random first weights
and a bootstrap sample. The first of them is optimised alone, through best-of-n and through `PPOModule` without a KL
penalty; then all twenty are, as an `EnsembleScorer` (mean minus variance). `RewardHackingGuard` watches both runs with
its default limits. Prints one row per seed and what was not reached, and draws gold and proxy against sqrt(KL). Exit
status 1 if, on any seed,

* gold does not fall while the proxy rises, through best-of-n or (by more than a tenth of its gain) through PPO;
* the guard does not name the fall of gold while gold still has 90 % of its gain, be it too late or too early;
* the ensemble does not at least halve the fall of gold, at the end and as far from the base policy as it went itself.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch

from benchmarks.bigram import LENGTH, Bigram, Linear, Prompts, Toy, tokenizer
from benchmarks.conclusion import conclude
from rlhf_lightning.callbacks import RewardHackingGuard
from rlhf_lightning.evaluation.plotting import BLUE, GREEN, GREY, ORANGE, label, legend, panels
from rlhf_lightning.functional.advantage import returns_only
from rlhf_lightning.functional.theory.best_of_n import best_of_n_law
from rlhf_lightning.functional.theory.overoptimisation import (
    CurveFit,
    best_of_n_curve,
    fit_best_of_n_curve,
    fit_rl_curve,
    rl_curve,
)
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import EnsembleScorer, Scorer
from rlhf_lightning.types import Experience

MEMBERS, COEF = 20, 1.0  # of the ensemble, and its coefficient of the variance
RESPONSES, HELD_OUT = 256, 8192  # per rollout: that PPO learns from, and that the guard takes gold from
ROLLOUTS, RATE = 200, 0.005  # of PPO, and its learning rate
CHUNK, CHUNKS = 100_000, 5  # samples of the base policy that best-of-n picks from
LARGEST = 12  # log2 of the largest n
WATCHED = ("episodes", "tokens", "objective/scores", "completions/repetition_3", "completions/duplicates", "rewards/")


class Curve(NamedTuple):
    """Gold and proxy on the way from the base policy, which is the first point."""

    distance: list[float]  # sqrt of nats per sequence
    gold: list[float]
    proxy: list[float]  # that was optimised
    alarm: int | None = None  # the point at which the guard named the fall of gold

    @property
    def peak(self) -> int:
        """The point with the most gold."""
        return max(range(len(self.gold)), key=self.gold.__getitem__)

    @property
    def fall(self) -> float:
        """What gold loses from its peak to the end."""
        return self.gold[self.peak] - self.gold[-1]

    @property
    def proxy_rises(self) -> bool:
        """Whether the proxy still rises after the peak of gold."""
        return self.proxy[-1] > self.proxy[self.peak]

    def until(self, distance: float) -> Curve:
        """The curve as far as it stays within a distance."""
        inside = next((i for i, d in enumerate(self.distance) if d > distance), len(self.distance))
        return Curve(self.distance[:inside], self.gold[:inside], self.proxy[:inside])

    def gain(self, point: int) -> float:
        """Gold at a point as a share of its gain from the start to the peak."""
        return (self.gold[point] - self.gold[0]) / max(self.gold[self.peak] - self.gold[0], 1e-9)

    def fit(self, *, rl: bool) -> CurveFit:
        """The coefficients of Gao's form of the gold curve."""
        distance, gain = torch.tensor(self.distance), torch.tensor(self.gold) - self.gold[0]
        return (fit_rl_curve if rl else fit_best_of_n_curve)(distance, gain)


class Outcome(NamedTuple):
    """What one seed showed."""

    seed: int
    best_of_n: Curve
    alone: Curve  # PPO on one proxy
    ensemble: Curve  # PPO on all of them
    seconds: float  # of CPU time

    @property
    def same_kl(self) -> Curve:
        """One proxy alone, as far from the base policy as the ensemble went."""
        return self.alone.until(self.ensemble.distance[-1])

    def faults(self) -> list[str]:
        """What this seed did not reach."""
        bon, alone, ensemble = self.best_of_n, self.alone, self.ensemble
        checks = {
            "best-of-n: gold falls while the proxy rises": bon.fall > 0 and bon.proxy_rises,
            "PPO: gold falls while the proxy rises": alone.gain(-1) < 0.9 and alone.proxy_rises,
            "the alarm while gold has 90 % of its gain": alone.alarm is not None and alone.gain(alone.alarm) >= 0.9,
            "the ensemble halves the fall": ensemble.fall <= alone.fall / 2,
            "the ensemble halves the fall at the same KL": ensemble.fall <= self.same_kl.fall / 2,
        }
        return [name for name, holds in checks.items() if not holds]


class Brief(PPOModule):
    """Logs only what the guard looks at; logging everything takes two thirds of the time of so small a policy."""

    def finish(self, experience: Experience, metrics: Mapping[str, float]) -> None:
        """See `OnlineModule.finish`."""
        super().finish(experience, {name: value for name, value in metrics.items() if name.startswith(WATCHED)})


class Recorder(lightning.pytorch.Callback):
    """Keeps where the policy is after each rollout: exact gold and KL, and the proxy's mean over the rollout."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.points = [toy.exact(toy.first, toy.after)]
        self.proxy: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        policy = pl_module.policy
        self.points.append(self.toy.exact(policy.first.detach(), policy.after.detach()))
        self.proxy.append(float(trainer.callback_metrics["objective/scores"]))


def through_best_of_n(toy: Toy, proxy: Linear, chunks: int = CHUNKS) -> Curve:
    """Best of n = 1, 2, 4, ... by the proxy, on the empirical distribution of many samples."""
    samples = [toy.sample(CHUNK) for _ in range(chunks)]
    scores, gold = (torch.cat([scorer.of(ids) for ids in samples]) for scorer in (proxy, toy.gold))
    even = torch.ones_like(scores)
    laws = [best_of_n_law(even, scores, 2**power) for power in range(LARGEST + 1)]
    return Curve(
        [max(float(law.kl), 0.0) ** 0.5 for law in laws],
        [float(law.probabilities @ gold) for law in laws],
        [float(law.expected_score) for law in laws],
    )


def through_ppo(
    toy: Toy,
    scorer: Scorer,
    seed: int,
    rollouts: int = ROLLOUTS,
    rate: float = RATE,
    held_out: int = HELD_OUT,
    action: Any = "warn",
) -> Curve:
    """PPO without a KL penalty, watched by the guard with its default limits and gold of answers of its own."""
    lightning.seed_everything(seed, verbose=False)
    settings = PPOSettings(baseline="none", ppo_epochs=2, missing_eos_penalty=0.0, max_approx_kl=None, seed=seed)
    policy: Any = Bigram(toy.first.float(), toy.after.float())
    module = Brief(
        policy, scorer, tokenizer(), optimizer=partial(torch.optim.Adam, lr=rate), sampling=Sampling(LENGTH),
        kl_controller=FixedKL(0.0), advantage=returns_only, settings=settings,
    )  # fmt: skip
    recorder = Recorder(toy)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text('{"prompt": "s0"}\n', encoding="utf-8")
        guard = RewardHackingGuard(action=action, gold=toy.gold, held_out=str(prompts), samples_per_prompt=held_out)
        warnings.simplefilter("ignore")  # the alarms, and Lightning's advice
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[guard, recorder],
        ).fit(module, Prompts(RESPONSES, rollouts))  # fmt: skip
    gold, kl = zip(*recorder.points, strict=True)
    proxy = [*recorder.proxy, recorder.proxy[-1]]  # of the policy before each rollout; nobody scored the last one
    alarm = next((alarm.rollout for alarm in guard.alarms if alarm.cause == "gold"), None)
    return Curve([max(x, 0.0) ** 0.5 for x in kl], list(gold), proxy, alarm)


def run_seed(seed: int, combine: Any) -> Outcome:
    """Everything for one draw of the toy."""
    start, toy = time.process_time(), Toy(seed)
    proxies = [toy.proxy(f"proxy_{number}") for number in range(MEMBERS)]
    ensemble = EnsembleScorer(proxies, combine, COEF)
    curves = through_best_of_n(toy, proxies[0]), through_ppo(toy, proxies[0], seed), through_ppo(toy, ensemble, seed)
    return Outcome(seed, *curves, time.process_time() - start)


def row(outcome: Outcome) -> dict[str, str]:
    """The numbers of one seed, by column."""
    bon, alone, many = outcome.best_of_n, outcome.alone, outcome.ensemble
    return {
        "seed": str(outcome.seed),
        "BoN gold peak > end": f"{bon.gold[bon.peak]:.2f} > {bon.gold[-1]:.2f}",
        "fit R2": f"{bon.fit(rl=False).r2:.3f}",
        "PPO gold peak > end": f"{alone.gold[alone.peak]:.2f} > {alone.gold[-1]:.2f}",
        "proxy then": f"{alone.proxy[alone.peak]:.2f} < {alone.proxy[-1]:.2f}",
        "RL fit R2": f"{alone.fit(rl=True).r2:.3f}",
        "peak, alarm": f"{alone.peak}, {alone.alarm}",
        "gain at alarm": "-" if alone.alarm is None else f"{alone.gain(alone.alarm):.1%}",
        "fall alone": f"{alone.fall:.2f}",
        "same KL": f"{outcome.same_kl.fall:.2f}",
        "ensemble": f"{many.fall:.2f}",
        "its gold peak > end": f"{many.gold[many.peak]:.2f} > {many.gold[-1]:.2f}",
        "its alarm": "-" if many.alarm is None else f"{many.alarm} at {many.gain(many.alarm):.1%}",
        "KL alone/ensemble": f"{alone.distance[-1] ** 2:.1f}/{many.distance[-1] ** 2:.1f}",
        "seconds": f"{outcome.seconds:.0f}",
    }


def table(outcomes: list[Outcome]) -> str:
    """One row per seed."""
    rows = [row(outcome) for outcome in outcomes]
    widths = {name: max(len(name), *(len(r[name]) for r in rows)) for name in rows[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())]
    return "\n".join([*lines, *("  ".join(f"{r[name]:>{width}}" for name, width in widths.items()) for r in rows)])


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Gold and proxy against distance, one thin line per seed, with Gao's forms fitted to gold."""
    figure, axes = panels(3, "A proxy optimised: what it says, and what is true")
    shown = [
        (axes[0], "best-of-n, one proxy", [o.best_of_n for o in outcomes], False),
        (axes[1], "PPO, one proxy", [o.alone for o in outcomes], True),
        (axes[2], "PPO, ensemble of twenty", [o.ensemble for o in outcomes], True),
    ]
    for axis, title, curves, rl in shown:
        for number, curve in enumerate(curves):
            first = number == 0
            axis.plot(curve.distance, curve.proxy, color=ORANGE, linewidth=1.2, label="proxy" if first else None)
            axis.plot(curve.distance, curve.gold, color=BLUE, linewidth=1.6, label="gold" if first else None)
            coefficients = curve.fit(rl=rl)
            reach = torch.linspace(0, max(curve.distance), 100)
            form = (rl_curve if rl else best_of_n_curve)(reach, coefficients.alpha, coefficients.beta) + curve.gold[0]
            name = ("d (α - β log d)" if rl else "d (α - β d)") if first else None
            axis.plot(reach, form, color=GREY, linewidth=1, linestyle="--", label=name)
            if curve.alarm is not None:
                point = curve.distance[curve.alarm], curve.gold[curve.alarm]
                axis.plot(*point, "o", color=GREEN, zorder=4, label="alarm" if first else None)
        axis.set_ylim(-3, 6)
        label(axis, "sqrt(KL), KL in nats per response", "score (standard deviations at the start)", title)
        legend(axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Parse the command line, run, print, draw, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--combine", default="uncertainty_weighted", help="of the ensemble: or mean, or worst_case")
    parser.add_argument("--figure", type=Path, default=Path("runs/overoptimisation.png"), help="where it is drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    outcomes = [run_seed(seed, options.combine) for seed in range(options.first, options.first + options.seeds)]
    print(table(outcomes))
    draw(outcomes, options.figure)
    conclude(outcomes)


if __name__ == "__main__":
    main()
