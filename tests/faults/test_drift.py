"""Case 27: a policy that learns to please a faulty reward is noticed, in the log and in TensorBoard."""

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.callbacks import RewardHackingGuard
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.evaluation.hacking import Limits
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.scoring import FunctionScorer
from tests.support import jobs, phases, tiny


def longer(prompts, completions, **columns):
    """The faulty reward: one for each word."""
    return [float(len(completion.split())) for completion in completions]


def good(prompts, completions, **columns):
    """What is really wanted: short answers."""
    return [-float(len(completion.split())) for completion in completions]


@pytest.mark.filterwarnings("ignore:reward hacking")  # the other causes
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_case_27_a_policy_that_only_gets_longer_raises_an_alarm_in_the_log_and_in_tensorboard(tmp_path):
    folder = phases.write(tmp_path)
    module = phases.ppo_module(optimizer=jobs.ADAM, micro_batch_size=None, max_approx_kl=None, missing_eos_penalty=0.0)
    module.scorer, module.kl_controller = FunctionScorer(longer), FixedKL(coef=0.0)
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=8, rollouts=8, validation_fraction=0.0
    )
    limits = Limits(max_kl=50.0, window=2, noise=1.0)
    guard = RewardHackingGuard(limits, gold=FunctionScorer(good))
    run = phases.trainer(callbacks=[guard], log_every_n_steps=1)
    logger = TensorBoardLogger(tmp_path, name="log", version="")
    run.loggers = [logger]
    with pytest.warns(UserWarning, match=r"reward hacking. rollout \d+, gold: gold has lost") as caught:
        run.fit(module, datamodule=data)
    assert "gold" in {alarm.cause for alarm in guard.alarms}
    assert sum("reward hacking" in str(warning.message) for warning in caught) == len(guard.alarms)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert events.Scalars("guard/alarm")[-1].value >= 1.0
