"""The stages that there are, and what a command has to give them."""

from __future__ import annotations

NEEDED = {
    "sft": "add data.demonstrations=FILE with rows of prompt+completion or messages",
    "rank": "add data.prompts=FILE with rows that have a prompt, or rank.human_ranks=FILE",
    "reward": "add data.comparisons=FILE with rows of prompt+chosen+rejected or prompt+completions+ranks",
    "ppo": "add data.prompts=FILE with rows that have a prompt",
    "dpo": (
        "add data.comparisons=FILE with rows of prompt+chosen+rejected or prompt+completions+ranks, for example a "
        "rankings.jsonl of the rank stage"
    ),
    "kto": "add data.feedback=FILE with rows of prompt+completion+label, or data.comparisons=FILE with comparisons",
    "best_of_n": "add data.prompts=FILE with rows that have a prompt",
    "evaluate": "add data.prompts_validation=FILE with held-out prompts",
}
"""Stage: what to add to a command that gives it no rows."""
