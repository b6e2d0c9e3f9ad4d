import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import omegaconf
import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning.config.compose import compose, config_text, load_config, redact, safe_instantiate
from rlhf_lightning.config.hydra_loader import composing
from rlhf_lightning.errors import ConfigError, DataError


@dataclass(frozen=True)
class Setting:
    size: int


class Part:
    def __init__(self, width: int = 3, setting: Setting | None = None, children: list | None = None) -> None:
        if width < 0:
            raise DataError("width is negative")
        if width == 0:
            raise ValueError("division is not possible")
        self.width, self.setting, self.children = width, setting, children


TARGET = f"{Part.__module__}.Part"


def build(trusted=(TARGET,), **node):
    objects = node.pop("objects", {})
    return safe_instantiate({"_target_": TARGET, **node}, trusted=trusted, **objects)


def test_interpolations_become_plain_python():
    config = load_config(OmegaConf.create({"a": [1, {"b": "${c}"}], "c": 2}))
    assert config == {"a": [1, {"b": 2}], "c": 2, "trusted_targets": []}
    assert type(config["a"]) is list
    assert type(config["a"][1]) is dict


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("judge=null", r"judge=null: there is no such option\. Did you mean judge=none\?\nOptions of judge: fun"),
        ("scorer=null", "scorer=null: there is no such option"), ("kl=null", "Did you mean kl=none"),
        ("rollout=3", "rollout=3: there is no such option"), ("kl=adptive", "Did you mean adaptive"),
        ("sft.max_epoch=3", "sft.max_epoch: there is no such key"), ("seed", "EQUAL"),
        ("logger=[null,csv]", r"^logger=\[null,csv\]: only names of options may stand in the list\.\nOptions: comet"),
        ("kl=[3]", r"^kl=\[3\]: only names"),
        ("evaluate.judges=[null]", r"^evaluate\.judges\[0\]: is null; leave it out of the list$"),
        ("+trainer.callbacks=[null]", r"callbacks\[0\]: is null"), ("data.prompts=[x,null]", r"prompts\[1\]: is null"),
        ("objective=[val/loss,null]", r"objective\[1\]: is null"), ("sampling.stop=[null]", r"stop\[0\]: is null"),
    ],
)  # fmt: skip
def test_python_is_told_of_a_wrong_word_as_the_command_is(word, says):
    with pytest.raises(ConfigError, match=says):
        compose([word])


def test_lists_of_parts_that_are_not_ours_may_hold_null():
    words = [f"+callbacks.mine={{_target_: {TARGET}, children: [null]}}", f"trusted_targets=[{TARGET}]"]
    assert compose(words)["callbacks"]["mine"]["children"] == [None]


def test_missing_value_names_its_key_and_the_remedy():
    with pytest.raises(ConfigError, match=r"data\.train has no default .* data\.train=VALUE .*Also missing: z"):
        load_config(OmegaConf.create({"data": {"train": "???"}, "z": "???"}))


def test_interpolation_to_nowhere_names_the_key_that_holds_it():
    with pytest.raises(ConfigError, match=r"^a\.b: .*nowhere"):
        load_config(OmegaConf.create({"a": {"b": "${nowhere}"}}))


def test_unset_environment_variable_is_a_config_error():
    with pytest.raises(ConfigError, match="Is the environment variable set"):
        load_config(OmegaConf.create({"key": "${oc.env:SURELY_NOT_SET}"}), ["key=${oc.env:SURELY_NOT_SET}"])


def test_a_file_cannot_trust_targets():
    cfg = OmegaConf.create({"trusted_targets": ["os"], "x": {"_target_": "os.system"}})
    with pytest.raises(ConfigError, match="command line only"):
        load_config(cfg)


def test_the_command_line_can_trust_targets():
    cfg = OmegaConf.create({"trusted_targets": ["mine"], "x": {"_target_": "mine.Thing"}})
    assert load_config(cfg, ["trusted_targets=[mine]"])["trusted_targets"] == ["mine"]
    assert load_config(cfg, ["+trusted_targets=[mine]"])["trusted_targets"] == ["mine"]


@pytest.mark.parametrize(
    "override", ["scorer.function=mine.reward", "+a.function='mine.reward'", "x._target_=mine.reward"]
)
def test_a_name_written_on_the_command_line_is_trusted_and_only_that_name(override):
    cfg = OmegaConf.create({"scorer": {"_target_": "rlhf_lightning.scoring.FunctionScorer", "function": "mine.reward"}})
    assert load_config(cfg, [override])["trusted_targets"] == ["mine.reward"]
    with pytest.raises(ConfigError, match=r"scorer\.function: mine\.reward is not on the list"):
        load_config(cfg, [])
    cfg.scorer.function = "mine.other"
    with pytest.raises(ConfigError, match=r"mine\.other"):
        load_config(cfg, [override])


def test_the_composed_config_is_left_as_it_was():
    cfg = OmegaConf.create({"a": "${b}", "b": 1})
    load_config(cfg)
    assert OmegaConf.to_container(cfg) == {"a": "${b}", "b": 1}


def test_objects_arrive_as_they_are():
    setting, tensor = Setting(4), torch.ones(2)
    part = build(width=5, objects={"setting": setting, "children": [tensor]})
    assert part.width == 5
    assert part.setting is setting
    assert part.children[0] is tensor


def test_nested_parts_are_built_and_containers_are_plain():
    part = build(children=[{"_target_": TARGET, "width": 7}, {"k": [1]}])
    assert part.children[0].width == 7
    assert type(part.children[1]) is dict
    assert type(part.children[1]["k"]) is list


def test_partial_takes_the_rest_later():
    make = build(_partial_=True, width=2, objects={"children": [1]})
    assert make(setting=None).children == [1]


def test_null_is_none_and_a_dict_without_target_keeps_its_keys():
    assert safe_instantiate(None) is None
    built = safe_instantiate({"a": {"_target_": TARGET}, "b": None}, trusted=[TARGET])
    assert isinstance(built["a"], Part)
    assert built["b"] is None


def test_own_errors_keep_their_type():
    with pytest.raises(DataError, match="width is negative"):
        build(width=-1)
    with pytest.raises(DataError, match="width is negative"):
        build(children=[{"_target_": TARGET, "width": -1}])


def test_unknown_argument_is_a_config_error_that_names_the_target():
    with pytest.raises(ConfigError, match=r"Part: .*widht"):
        build(widht=1)
    with pytest.raises(ConfigError, match=r"Part.*widht"):
        build(children=[{"_target_": TARGET, "widht": 1}])


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"widht": 1}, r"callbacks\.part: .*Part: .*'widht'\. Did you mean width"),
        ({"setting": {"_target_": TARGET, "wide": 1}}, r"callbacks\.part\.setting: .*Part: .*'wide'"),
        ({"_target_": f"{TARGET}s"}, rf"callbacks\.part\._target_: {Part.__module__} has no Parts; did you mean"),
        ({"_target_": "os.path.join"}, r"callbacks\.part\._target_: os\.path\.join is not on the list"),
        ({"children": [{"k": "${x}"}]}, r"callbacks\.part\.children\[0\]\.k: the text"),
    ],
)
def test_every_mistake_of_a_part_names_its_key(node, says):
    with pytest.raises(ConfigError, match=says):
        safe_instantiate({"_target_": TARGET, **node}, "callbacks.part", trusted=[Part.__module__])


def test_a_part_that_is_called_later_is_to_be_partial():
    with pytest.raises(ConfigError, match=r"ppo\.critic: .*missing 1 required.*add _partial_: true"):
        safe_instantiate({"_target_": f"{Setting.__module__}.Setting"}, "ppo.critic", trusted=[Setting.__module__])


def test_other_errors_pass_through():
    with pytest.raises(ValueError, match="division"):
        build(width=0)


def test_literal_interpolation_is_refused():
    with pytest.raises(ConfigError, match=r"children\[0\]\.k"):
        build(children=[{"k": "${x}"}])


def test_saved_config_reads_back_and_hides_secrets():
    config = {
        "model": {"path": "a", "hub_token": "s3cret"},
        "eos_token": "</s>",
        "new_tokens": 5,
        "api_key": "s3cret",
    }
    text = config_text(config)
    assert "s3cret" not in text
    back = OmegaConf.to_container(OmegaConf.create(text))
    assert back == {
        "model": {"path": "a", "hub_token": "***"},
        "eos_token": "</s>",
        "new_tokens": 5,
        "api_key": "***",
    }


def test_redaction_leaves_unset_secrets_visible_as_unset():
    assert redact({"password": None, "list": [{"token": "x"}]}) == {"password": None, "list": [{"token": "***"}]}


def test_config_imports_neither_torch_nor_lightning():
    parts = "rlhf_lightning.cli.main, rlhf_lightning.config.compose"
    code = f"import sys, {parts}; print({{'torch', 'lightning'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "ppo", "best_of_n"])
def test_what_limits_a_step_has_the_same_address_in_every_stage(stage):
    section = compose([f"stage={stage}", f"{stage}.max_grad_norm=2.5", f"{stage}.max_skipped_steps=7"])[stage]
    part = section["settings"] if stage == "ppo" else section.get("sft", section)["module"]
    assert (part["max_grad_norm"], part["max_skipped_steps"]) == (2.5, 7)
    assert {"optimizer", "scheduler"} <= section.keys()


def test_one_switch_turns_every_exact_shortcut_off():
    config = OmegaConf.create(dict(compose(["stage=ppo", "exact_shortcuts=false", "ppo.settings.num_minibatches=8"])))
    settings = config.ppo.settings
    switches = [config.model.pack_rows, config.rollout.share_prefill, settings.by_length, settings.reuse_logprobs]
    assert switches == [False] * 4
    named = re.compile(r"(pack_rows|share_prefill|by_length|reuse_logprobs): (\S+)")
    values = [
        value
        for file in (Path(__file__).parents[2] / "conf").rglob("*.yaml")
        for _, value in named.findall(file.read_text())
    ]
    assert len(values) == 7 and set(values) == {"${exact_shortcuts}"}


def test_a_text_that_was_parsed_before_is_resolved_anew_and_omegaconf_is_left_as_it_was():
    before = omegaconf.base.parse
    with composing():
        assert omegaconf.base.parse is not before
        assert [OmegaConf.create({"a": "${b}-${c.d}", "b": n, "c": {"d": -n}}).a for n in (1, 2)] == ["1--1", "2--2"]
    assert omegaconf.base.parse is before
