"""PPO on several ranks that sample from one server, which the first of them holds in threads."""

import os
import time
from contextlib import contextmanager

from rlhf_lightning.rollout import ServerEngine
from tests.support import phases, tiny
from tests.support.fake_vllm import fake_vllm


@contextmanager
def one_server(file):
    """The server on the first rank, and on every rank its address."""
    if os.environ["RANK"] == "0":
        with fake_vllm(tiny.policy(seed=9)) as server:
            file.with_suffix(".tmp").write_text(server.url)
            file.with_suffix(".tmp").rename(file)
            yield server.url, server
        return
    while not file.exists():
        time.sleep(0.01)
    yield file.read_text(), None


def served(where, name, **settings):
    """Two rollouts; what the server holds at the end beside the policy that sampled last."""

    def run(folder):
        with one_server(folder / name) as (url, server):
            module = phases.ppo_module(num_minibatches=1, ppo_epochs=1, **settings)
            module.engine = ServerEngine([url], folder=folder / f"{name}_server", ram_disk=False, deadline=60)
            module.engine.close = lambda: None  # what it holds is looked at below
            phases.ppo(folder, module, rollouts=2, **where())
            rollout = module.last_experience.rollout
            module.engine.sync(module.policy, (1,), 0, 99)
            return {
                "answers": [row[m].tolist() for row, m in zip(rollout.response_ids, rollout.mask, strict=True)],
                "seeds": [] if server is None else [body["seed"] for body in server.asked],
                "gap": module.check_engine.gap,
                "served": None if server is None else phases.flat(server.base),
                "policy": phases.flat(module.export_model()),
                "updates": 0 if server is None else server.paths.count("/update_weights"),
            }

    return run
