"""PPO that samples each rollout while it learns from the one before: with which weights, and that nothing else changes."""

import threading
from functools import partial

import pytest
import torch

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.rollout import LoopEngine, ServerEngine
from tests.support import phases, tiny
from tests.support.fake_vllm import fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
AHEAD = {"sample_ahead": True, "correction": "token_truncate"}


class Seen(LoopEngine):
    """Notes the thread and the answers of each rollout, and is slow in other threads than the main one."""

    def __init__(self, hold=None):
        super().__init__()
        self.rollouts, self.threads, self.hold = [], [], hold

    def generate(self, prompts, sampling, tokenizer=None):
        if self.hold and threading.current_thread() is not threading.main_thread():
            self.hold()
        rollout = super().generate(prompts, sampling, tokenizer)
        self.rollouts.append(rollout)
        self.threads.append(threading.current_thread().name)
        return rollout


def run(folder, engine=None, rollouts=4, lr=1e-2, callbacks=(), module=None, **options):
    module = module or phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=lr), **AHEAD)
    module.engine = engine or Seen()
    return phases.ppo(
        folder, module, rollouts=rollouts, batch=4, callbacks=callbacks, plugins=[DurableCheckpointIO()], **options
    )


@pytest.fixture
def folder(tmp_path):
    return phases.write(tmp_path)


def test_x(folder):
    module, _ = run(folder)
    print(module.engine.threads, [r.weight_version.tolist() for r in module.engine.rollouts], module.optimizer_steps)
