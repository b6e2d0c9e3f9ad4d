"""The stages of a run, each a function from the run to the metrics it ends with."""

from rlhf_lightning.stages.best_of_n import run_best_of_n
from rlhf_lightning.stages.dpo import run_dpo
from rlhf_lightning.stages.evaluate import run_evaluate
from rlhf_lightning.stages.kto import run_kto
from rlhf_lightning.stages.ppo import run_ppo
from rlhf_lightning.stages.rank import run_rank
from rlhf_lightning.stages.reward import run_reward
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.sft import run_sft

__all__ = [
    "Run",
    "run_best_of_n",
    "run_dpo",
    "run_evaluate",
    "run_kto",
    "run_ppo",
    "run_rank",
    "run_reward",
    "run_sft",
]
