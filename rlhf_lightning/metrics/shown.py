"""What a progress line shows of each kind of training: a word, a tag and how its number is written.

What matters most comes first; a narrow terminal shows fewer. A subclass of a module shows something else by its own
``shown``: ``shown = (*ONLINE, ("words", "train/words", ".1f"))``.
"""

from __future__ import annotations

Shown = tuple[tuple[str, str, str], ...]

LIKELIHOOD: Shown = (("loss", "train/loss", ".3f"), ("ppl", "train/perplexity", ".2f"), ("val loss", "val/loss", ".3f"))
REWARD: Shown = (
    ("loss", "train/loss", ".3f"),
    ("acc", "train/accuracy", ".3f"),
    ("margin", "train/margin", ".2f"),
    ("val acc", "val/accuracy", ".3f"),
)
PREFERENCE: Shown = (
    ("loss", "train/loss", ".3f"),
    ("acc", "train/rewards/accuracies", ".3f"),
    ("margin", "train/rewards/margins", ".2f"),
    ("val loss", "val/loss", ".3f"),
)
ONLINE: Shown = (
    ("reward", "objective/scores", ".3f"),
    ("kl", "objective/kl", "z.2f"),
    ("beta", "objective/kl_coef", ".3g"),
    ("len", "completions/mean_length", ".1f"),
    ("clip", "policy/clipfrac_avg", ".1%"),
)
TARGETS = {"objective/kl": "objective/kl_target"}  # shown behind what is steered towards it
