"""A stage that will not fit is told before it is loaded."""

from dataclasses import replace

import pytest
from transformers import MambaConfig, T5Config

from rlhf_lightning.config.compose import compose
from rlhf_lightning.models.footprint import Setup
from rlhf_lightning.stages import estimate
from rlhf_lightning.stages.estimate import setup_of, warn_of_size
from tests.support import tiny

WORDS = ["stage=ppo", "task=custom", "data.prompts=p", "scorer=reward_model", "scorer.model.path=r"]


def test_a_config_says_how_a_run_lies_on_its_devices():
    config = compose([*WORDS, "model.path=m", "trainer=fsdp2", "trainer.devices=8", "trainer.precision=bf16-mixed"])
    expected = Setup(8, True, True, "shared_trunk", True, 4, tokens=16 * 320, sampled=8, context=320)
    assert setup_of(config, "ppo") == expected
    hybrid = ["trainer=hsdp", "trainer.devices=4", "trainer.num_nodes=2", "trainer.precision=bf16-mixed"]
    hybrid = setup_of(compose([*WORDS, "model.path=m", *hybrid]), "ppo")
    assert hybrid == replace(expected, replicas=2) and (hybrid.parts, expected.parts) == (4, 8)
    more = ["ppo.critic=policy", "model.offload=true", "model.activation_checkpointing=2",
            "scorer.model.dtype=bfloat16", "model.lora={r: 4}", "ppo.settings.micro_batch_size=2"]  # fmt: skip
    config = compose([*WORDS, "model.path=m", "trainer.precision=32-true", *more])
    expected = Setup(1, False, False, "own", True, 2, True, 4, 0.5, 2 * 320, 64, 320)
    assert setup_of(config, "ppo") == expected
    config = compose(["stage=dpo", "task=custom", "model.path=m", "data.comparisons=p", "trainer.precision=32-true"])
    assert setup_of(config, "dpo") == Setup(
        mixed=False, critic="none", reward_bytes=0, tokens=2 * 512 * 2, sampled=0, context=512
    )


@pytest.mark.parametrize(("memory", "warned"), [(100_000, True), (10**9, False), (None, False)])
def test_a_stage_that_needs_more_than_there_is_is_told(tmp_path, monkeypatch, caplog, memory, warned):
    tiny.policy(positions=512).save_pretrained(tmp_path)
    monkeypatch.setattr(estimate, "device_memory", lambda trainer: memory)
    config = compose([*WORDS, f"model.path={tmp_path}", "trainer.precision=32-true"])
    warn_of_size(config, "ppo")
    assert ("GB of each device in the phase learn" in caplog.text) == warned
    warn_of_size(compose([*WORDS, "model.path=of/the_hub", "trainer.precision=32-true"]), "ppo")
    assert estimate.device_memory(config["trainer"]) == memory


@pytest.mark.parametrize(("devices", "ranks"), [("[0,3]", 2), ("4", 4), ("auto", 1), ("-1", 1)])
def test_devices_are_counted_however_they_are_named(devices, ranks):
    words = [*WORDS, "model.path=m", "trainer.precision=32-true", "trainer.accelerator=gpu"]
    assert setup_of(compose([*words, "trainer=ddp", f"trainer.devices={devices}"]), "ppo").ranks == ranks


@pytest.mark.parametrize("config", [MambaConfig(num_hidden_layers=1, hidden_size=8), T5Config(num_layers=1)])
def test_a_model_that_cannot_be_counted_ends_no_run(tmp_path, monkeypatch, caplog, config):
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(estimate, "device_memory", lambda trainer: 1)
    caplog.set_level("INFO")
    warn_of_size(compose([*WORDS, f"model.path={tmp_path}", "trainer.precision=32-true"]), "ppo")
    assert "ppo: how much memory it takes is not known" in caplog.text and "GB" not in caplog.text


def test_parts_of_another_form_end_no_run(tmp_path, monkeypatch, caplog):
    tiny.policy(positions=512).save_pretrained(tmp_path)
    monkeypatch.setattr(estimate, "device_memory", lambda trainer: 1)
    config = compose([*WORDS, f"model.path={tmp_path}", "trainer.precision=32-true"])
    config["ppo"]["data"] = {"_target_": "my.Data", "batch_size": "all"}
    caplog.set_level("INFO")
    warn_of_size(config, "ppo")
    assert "ppo: how much memory it takes is not known (TypeError" in caplog.text and "GB" not in caplog.text
