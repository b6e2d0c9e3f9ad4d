"""The switch `head_chunk`: two tokens at a time, or all logits at once, and every phase learns the same."""

from functools import partial

import lightning
import pytest

from rlhf_lightning.modules import SFTModule
from tests.support import offline, phases, scene, tiny


class Curve(lightning.Callback):
    """All that was logged in each step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, *_):
        names = (n for n in trainer.callback_metrics if not n.startswith("perf/"))
        self.rows.append({name: float(trainer.callback_metrics[name]) for name in names})


def switched(chunk, **options):
    policy = tiny.policy(**options)
    policy.head_chunk = chunk
    return policy


def sft(folder, chunk):
    folder = phases.write(folder)
    data = phases.DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, validation_fraction=0.0
    )
    module, curve = SFTModule(switched(chunk), tiny.tokenizer(), phases.sgd(0.1)), Curve()
    phases.trainer(epochs=2, callbacks=[curve]).fit(module, datamodule=data)
    return module.policy, curve


def given_answers(make, rows, folder, chunk):
    curve = Curve()
    module = make(lr=0.1)
    module._sources[0].head_chunk = chunk
    offline.fit(module, rows(folder), 2, callbacks=[curve])
    return module.policy, curve


def ppo(folder, chunk, **options):
    curve = Curve()
    module = scene.ppo(switched(chunk, scale=0.3), kl=0.1, lr=0.1, ppo_epochs=2, **options)
    scene.fit(module, 2, [curve], repeats=2)
    return module.policy, curve


PHASES = {
    "sft": sft,
    "dpo": partial(given_answers, offline.preference, lambda folder: offline.pairs(offline.rankings(folder), 4, 4)),
    "kto": partial(given_answers, offline.unpaired, lambda folder: offline.answers(offline.feedback(folder), 4, 4)),
    "ppo, a critic of its own": partial(ppo, parts={"critic": "policy"}),
    "ppo, shared trunk and entropy bonus": partial(ppo, parts={"critic": "shared_trunk"}, entropy_coef=0.1),
}


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_on_or_off_every_step_logs_the_same_and_ends_with_the_same_weights(phase, tmp_path):
    (first, on), (second, off) = (phase(tmp_path, chunk) for chunk in (2, None))
    start = phases.flat(tiny.policy(scale=0.3 if phase in list(PHASES.values())[3:] else 1.0))
    way = (phases.flat(second) - start).norm()
    assert way > 1e-3
    assert (phases.flat(first) - phases.flat(second)).norm() < 1e-4 * way
    assert len(on.rows) == len(off.rows) >= 2
    for got, expected in zip(on.rows, off.rows, strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
