"""What is measured: the sizes of each preset, the suites, and who takes part in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Sizes:
    """Numbers that both sides share."""

    batch: int  # rows of an optimizer step; responses of a rollout
    steps: int  # measured, after the warm-up
    warm_up: int = 1  # steps
    micro: int = 8  # rows at once on the peer's side, which is its default; ours decides for itself
    max_length: int = 512
    max_prompt_length: int = 152
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Entry:
    """Someone who is measured in a suite.

    Args:
        name: shown in tables.
        side: "ours", "bare" (a plain loop over our module), or "trl".
        variant: of the peer's batching: padded, shuffled, grouped, padding_free or packed.
        overrides: of our config, beside those every run has.
        growth: times the number of rows in the file, without more steps.
        stretch: every row is filled up to so many times the longest length, at about the same tokens in a step; None
            takes rows as they are.
    """

    name: str
    side: str
    variant: str = "padded"
    overrides: tuple[str, ...] = ()
    growth: int = 1
    stretch: float | None = None


@dataclass(frozen=True)
class Bar:
    """What we want: the first entry at least ``factor`` times as fast as the other, with at most so much memory."""

    entry: str
    other: str  # name of an entry, or "fastest" of the peer's
    factor: float
    memory: float | None = None  # share of the other's


@dataclass(frozen=True)
class Suite:
    """A comparison. All entries of a repeat run one after the other, then all again."""

    name: str
    learner: str  # sft, reward, dpo, grpo, rloo or ppo
    rows: str  # file of the assets
    unit: str  # what is counted per second
    entries: tuple[Entry, ...]
    bars: tuple[Bar, ...] = ()
    group_size: int = 1
    epochs: int = 1
    kl_coef: float = 0.05


OURS, TRL = Entry("ours", "ours"), Entry("trl", "trl")
OWN = Entry("ours", "ours", overrides=("ppo.critic=policy",))
SHARED = Entry("ours shared", "ours", overrides=("ppo.critic=shared_trunk",))
FROZEN = ("model.freeze_below=6",)  # of the 8 layers of the small kit
SFT_PEERS = tuple(
    Entry(f"trl {variant}", "trl", variant) for variant in ("padded", "shuffled", "grouped", "padding_free", "packed")
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite("sft", "sft", "sft", "tokens", (OURS, *SFT_PEERS),
              (Bar("ours", "trl padded", 3.0), Bar("ours", "fastest", 1.3))),
        Suite("reward", "reward", "pref", "pairs", (OURS, TRL), (Bar("ours", "trl", 2.0),)),
        Suite("rankings", "reward", "rankings", "rankings", (OURS, TRL), (Bar("ours", "trl", 3.0),)),
        Suite("dpo", "dpo", "pref", "pairs", (OURS, TRL), (Bar("ours", "trl", 2.0),)),
        Suite("grpo4", "grpo", "prompts", "episodes", (OURS, TRL), (Bar("ours", "trl", 1.8),), group_size=4),
        Suite("grpo8", "grpo", "prompts", "episodes", (OURS, TRL), (Bar("ours", "trl", 1.8),), group_size=8),
        Suite("rloo", "rloo", "prompts", "episodes", (OURS, TRL), (Bar("ours", "trl", 1.8),), group_size=4),
        Suite("ppo", "ppo", "prompts", "episodes", (OWN, SHARED, TRL),
              (Bar("ours", "trl", 2.0), Bar("ours shared", "trl", 3.5, memory=0.6)), epochs=4),
        Suite("frozen", "rloo", "prompts", "episodes",
              (Entry("ours", "ours", overrides=FROZEN),
               Entry("ours unpacked", "ours", overrides=(*FROZEN, "model.pack_rows=false"))),
              (Bar("ours", "ours unpacked", 1.0),), group_size=4),
        Suite("overhead", "sft", "sft", "tokens", (OURS, Entry("bare", "bare")), (Bar("ours", "bare", 1 / 1.05),)),
        Suite("scaling", "sft", "sft", "tokens",
              (OURS, Entry("ours 10x rows", "ours", growth=10), Entry("ours full 1/4", "ours", stretch=0.25),
               Entry("ours full 1", "ours", stretch=1.0), Entry("ours full 2", "ours", stretch=2.0)),
              (Bar("ours 10x rows", "ours", 1 / 1.05),)),
    )
}  # fmt: skip

SHORT_NAMES = {"grpo": ("grpo4", "grpo8"), "all": tuple(SUITES), "ppo_shared": ("ppo",)}


@dataclass(frozen=True)
class Preset:
    """Sizes of each learner, and where and how it is computed."""

    sizes: dict[str, Sizes]
    device: str = "cpu"
    dtype: str = "float32"
    overrides: tuple[str, ...] = ()  # of our config
    of_suite: dict[str, Sizes] = field(default_factory=dict)  # where a suite differs from its learner

    def of(self, suite: Suite, entry: Entry) -> Sizes:
        """The sizes of an entry of a suite."""
        sizes = self.of_suite.get(suite.name, self.sizes[suite.learner])
        if entry.stretch is None:
            return sizes
        rows = max(round(sizes.batch / 4 / entry.stretch), 1)  # a full row is about four times as long as most
        return replace(sizes, max_length=round(sizes.max_length * entry.stretch), batch=rows)


_CPU = {
    "sft": Sizes(batch=16, steps=3),
    "reward": Sizes(batch=8, steps=3),
    "dpo": Sizes(batch=8, steps=2),
    "grpo": Sizes(batch=32, steps=2),
    "rloo": Sizes(batch=32, steps=2),
    "ppo": Sizes(batch=16, steps=1),
}
_SMOKE = {
    name: replace(sizes, batch=8, steps=1, micro=4, max_length=64, max_prompt_length=16, max_new_tokens=8)
    for name, sizes in _CPU.items()
}
_LONG = Sizes(batch=16, steps=8, warm_up=2, max_length=2048, max_prompt_length=512, max_new_tokens=256)

ONLINE = ("grpo", "rloo", "ppo")

PRESETS = {
    "cpu": Preset(_CPU, of_suite={"rankings": Sizes(batch=4, steps=2)}),
    "smoke": Preset(_SMOKE),
    # Needs assets of `benchmarks.kit --size 1b`, or any folder with a model of that order.
    "gpu": Preset(
        {name: replace(_LONG, batch=64, steps=3) if name in ONLINE else _LONG for name in _CPU},
        device="cuda",
        dtype="bfloat16",
        overrides=("trainer=default", "model.dtype=bfloat16", "trainer.precision=bf16-true"),
    ),
}


def named_suites(names: str) -> list[Suite]:
    """The suites of a comma-separated list.

    >>> [suite.name for suite in named_suites("sft,grpo")]
    ['sft', 'grpo4', 'grpo8']

    Raises:
        SystemExit: there is no such suite.
    """
    found = [full for name in names.split(",") for full in SHORT_NAMES.get(name, (name,))]
    if unknown := [name for name in found if name not in SUITES]:
        raise SystemExit(f"--suite: no {', '.join(unknown)}; choose from {', '.join([*SUITES, *SHORT_NAMES])}")
    return [SUITES[name] for name in dict.fromkeys(found)]
