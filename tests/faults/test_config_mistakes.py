"""A wrong command line is answered on one screen, with the key, what is allowed and the nearest name, before torch."""

import json
import os
import resource
import subprocess
import sys

import pytest

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from tests.gates.gate_sources import ROOT

# (command, what the answer says); MODEL is a folder whose config.json allows 64 positions
MISTAKES = [
    # names: groups, options, stages, keys at any depth
    ("stage=poo", "Did you mean ppo?|Options of stage: best_of_n, dpo, evaluate, kto, pipeline, ppo"),
    ("stage=ppo algorithm=ppoo", "algorithm=ppoo|Did you mean ppo?|Options of algorithm: cispo, dapo"),
    ("stage=ppo kl=adaptve", "kl=adaptve|Did you mean adaptive?|Options of kl: adaptive, fixed, learned, none"),
    ("trainer=dpp", "trainer=dpp|Did you mean ddp?|Options of trainer: cpu, ddp"),
    ("stage=ppo scorer=reward_modl", "Did you mean reward_model?|Options of scorer"),
    ("stag=ppo", "stag: there is no such key|Did you mean stage?|Keys: seed, threads"),
    ("ppo.settings.clip=1", "ppo.settings.clip|Did you mean|Keys of ppo.settings: group_size, baseline"),
    ("stage=ppo ppo.setings.ppo_epochs=2", "Did you mean ppo.settings.ppo_epochs?|Keys of ppo: policy, reference"),
    ("stage=sft max_epochs=2", "max_epochs|Did you mean sft.max_epochs?"),
    ("stage=sft sft.lr=1", "Did you mean sft.optimizer.lr?|Keys of sft: policy, output, max_epochs"),
    ("stage=sft sft.optimiser.lr=1", "Did you mean sft.optimizer.lr?|Keys of sft: policy, output, max_epochs"),
    ("stage=ppo kl=fixed kl.target=6", "kl.target|Keys of kl: coef|kl=adaptive, kl=ziegler"),
    ("stage=sft kl=fixed", "stage=sft has no part kl|used by stage=ppo"),
    ("experiment=reviews_smollm2 stage=sft", "reviews_smollm2 chooses algorithm|stages=[sft] instead"),
    ("preset=miniature", "preset: say for which part: preset@best_of_n=OPTION, |Options of preset: miniature_best"),
    ("stages=[sftt]", "no stage sftt|Did you mean sft?|Stages: sft, rank, reward, ppo, dpo, kto"),
    ("stage=ppo +ppo.settings.epochs=2", "PPOSettings takes no epochs|It takes: group_size, baseline, ppo_epochs"),
    ("stage=sft +sft.optimizer.beta=0.9", "torch.optim.AdamW takes no beta|Did you mean betas?|It takes: params, lr"),
    ("stage=sft +model.dtyp=float16", "Pretrained takes no dtyp|Did you mean dtype?|It takes: path, dtype"),
    ("stage=sft +trainer.precison=32", "Trainer takes no precison|Did you mean precision?|It takes: accelerator"),
    ("stage=sft model.lora={rank:8}", "model.lora.rank|Lora takes no rank|It takes: r, lora_alpha, lora_dropout"),
    ("stage=sft data.columns={prompt: question}", "write quotes around all of it:|'data.columns={prompt: question}'"),
    ("stage=my.stages.distil", "a user-defined stage is one of a list: stages=[my.stages.distil]"),
    ("stage=dpo dpo.loss._target_=rlhf_lightning.functional.kto.kto_loss dpo.loss.desirable_weight=2",
     "rlhf_lightning.functional.kto.kto_loss takes it: write +dpo.loss.desirable_weight=2"),
    ("stage=dpo dpo.loss._target_=rlhf_lightning.functional.kto.kto_loss dpo.loss.bet=2",
     "takes no bet. Did you mean beta?|It takes: |+dpo.loss.beta="),
    # types
    ("stage=sft sft.max_epochs=ten", "sft.max_epochs=ten: must be a whole number"),
    ("stage=sft sft.max_epochs=1.5", "sft.max_epochs=1.5: must be a whole number"),
    ("stage=ppo ppo.settings.ppo_epochs=abc", "ppo.settings.ppo_epochs=abc: must be a whole number"),
    ("stage=ppo ppo.settings.whiten_advantages=2", "ppo.settings.whiten_advantages=2: must be true or false"),
    ("stage=ppo ppo.loss.clip_range=abc", "ppo.loss.clip_range=abc: must be a number"),
    ("stage=evaluate evaluate.sampling.stop=END", "evaluate.sampling.stop=END: must be a list"),
    ("stages=sft", "stages=sft: must be a list"),
    ("seed=1.5", "seed=1.5: must be a whole number"),
    ("stage=ppo +callbacks.x={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:x}",
     "callbacks.x: Lightning's EarlyStopping looks after each epoch|x._target_=rlhf_lightning.callbacks.StopEarly"),
    ("stage=sft +callbacks.x={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,scheduling:{0:2}}",
     "callbacks.x: GradientAccumulationScheduler would change the loss; set micro_batch_size of the stage's data"),
    ("stage=ppo +callbacks.x._target_=lightning.pytorch.callbacks.BackboneFinetuning",
     "callbacks.x: BackboneFinetuning looks for layers before a stage has loaded its model; set model.freeze_below=N"),
    ("stage=sft +callbacks.x={_target_:lightning.pytorch.callbacks.ModelPruning,pruning_fn:l1_unstructured}",
     "callbacks.x: ModelPruning looks for layers before a stage has loaded its model; prune the model"),
    ("stage=ppo +callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder",
     "callbacks.x: BatchSizeFinder would change what is learned"),
    ("stage=sft +callbacks.x._target_=lightning.pytorch.callbacks.LearningRateFinder",
     "callbacks.x: LearningRateFinder finds a rate that the schedule takes back; try some in a sweep"),
    ("stage=sft +callbacks.x._target_=lightning.pytorch.callbacks.RichProgressBar",
     "callbacks.x: RichProgressBar beside callbacks.progress; add '~callbacks.progress'"),
    ("stage=sft +callbacks.x={_target_:rlhf_lightning.callbacks.StopEarly,monitor:val/loss,patience:0}",
     "callbacks.x.patience=0: must be at least 1"),
    ("seed=-1", "seed=-1: must be at least 0"),
    ("stage=ppo ppo.settings.group_size=0", "ConfigError: ppo.settings.group_size=0: must be at least 1"),
    ("stage=sft data.shape=3", "ConfigError: data.shape=3: must be a part with a _target_ or null"),
    ("model.path=3", "ConfigError: model.path=3: must be text"),
    ("sft.policy=3", "ConfigError: sft.policy=3: must be text"),
    ("stages=[sft,ppo] sft.output=3", "ConfigError: sft.output=3: must be text"),
    ("threads=two", "threads=two: must be a whole number or null"),
    ("model.revision=1234567", "model.revision=1234567: must be text or null"),
    ("stage=sft trainer.devices=two", "trainer.devices=two: must be a number above 0"),
    ("stage=sft sft.data.batch_size=null", "sft.data.batch_size=null: must be a whole number"),
    ("seed=1,2", "Ambiguous value|--multirun"),
    ("stage=ppo seed", "missing EQUAL"),
    # choices
    ("stage=ppo ppo.settings.aggregation=token_men", "must be one of token_mean, seq_mean|Did you mean token_mean?"),
    ("stage=ppo ppo.settings.baseline=critc", "must be one of critic, greedy, none|Did you mean critic?"),
    ("stage=ppo callbacks.tensorboard.axes=[a]", "callbacks.tensorboard.axes=['a']: must be a list of episodes, token"),
    ("stage=ppo callbacks.guard.limits.max_gap=0", "callbacks.guard.limits.max_gap=0: must be above 0: null"),
    ("callbacks.progress.every_seconds=-1", "callbacks.progress.every_seconds=-1: must be at least 0"),
    ("model.dtype=float17", "model.dtype=float17: must be one of float32, bfloat16, float16|Did you mean float16?"),
    ("trainer.precision=16-mixd", "trainer.precision=16-mixd: must be one of|bf16-mixed|Did you mean 16-mixed?"),
    ("trainer.accelerator=gpuu", "trainer.accelerator=gpuu: must be one of auto, cpu|Did you mean gpu?"),
    ("stage=sft sft.data.on_long=dropp", "must be one of drop, truncate|Did you mean drop?"),
    ("judge=function judge.function=a.b judge.on_error=abstian", "must be one of raise, abstain or a number"),
    ("stage=ppo ppo.critic=shard_trunk", "choose policy, shared_trunk, the folder|Did you mean shared_trunk?"),
    ("stage=ppo ppo.critic=null", "ppo.critic=null: choose policy|Without a critic: ppo.settings.baseline=none"),
    ("resume=atuo", "resume=atuo: must be none, auto or the folder|Did you mean auto?"),
    # ranges
    ("stage=ppo ppo.loss.clip_range=-1", "ppo.loss.clip_range=-1: must be above 0"),
    ("stage=sft sft.optimizer.lr=0", "sft.optimizer.lr=0: must be above 0"),
    ("stage=reward reward.optimizer.lr=-1e-4 data.comparisons=x", "reward.optimizer.lr=-0.0001: must be above 0"),
    ("stage=ppo ppo.sampling.temperature=0", "ppo.sampling.temperature=0: must be above 0"),
    ("stage=sft sft.data.validation_fraction=1", "sft.data.validation_fraction=1: must be at least 0 and below 1"),
    ("stage=ppo ppo.advantage.gamma=1.5", "ppo.advantage.gamma=1.5: must be at least 0 and at most 1"),
    ("stage=ppo kl.target=-3", "kl.target=-3: must be above 0"),
    ("stage=sft sft.scheduler.warmup_ratio=3", "sft.scheduler.warmup_ratio=3: must be at least 0 and at most 1"),
    ("stage=sft sft.data.max_length=1", "sft.data.max_length=1: must be at least 2"),
    ("stage=dpo dpo.loss.beta=0 data.comparisons=x", "dpo.loss.beta=0: must be above 0"),
    ("stage=dpo dpo.loss.label_smoothing=0.6 data.comparisons=x", "dpo.loss.label_smoothing=0.6: must be at least 0"),
    ("stage=kto kto.data.batch_size=1 data.feedback=x", "kto.data.batch_size=1: must be at least 2"),
    ("stage=sft sft.max_grad_norm=-1", "ConfigError: sft.max_grad_norm=-1: must be at least 0"),
    ("stage=ppo ppo.max_skipped_steps=0", "ConfigError: ppo.max_skipped_steps=0: must be at least 1"),
    ("stage=ppo ppo.settings.max_grad_norm=2", "ppo.settings.max_grad_norm=2: set ppo.max_grad_norm instead"),
    ("stage=best_of_n best_of_n.n=1", "best_of_n.n=1: must be at least 2"),
    ("stage=ppo ppo.rollouts=0", "ppo.rollouts=0: must be at least 1"),
    ("stage=sft model.lora={r:0}", "model.lora.r=0: must be at least 1"),
    # combinations
    ("stage=ppo ppo.data.batch_size=60 ppo.settings.num_minibatches=7",
     "7 minibatches do not divide a rollout of 60|-> epochs|-> rank|-> micro"),
    ("stage=ppo trainer.devices=3", "3 ranks do not divide a minibatch of 16|ppo.settings.num_minibatches"),
    ("stage=ppo algorithm=grpo ppo.settings.group_size=5", "groups of 5 do not divide a rollout of 64"),
    ("stage=sft trainer.devices=3", "sft.data.batch_size 32 is not a multiple of 3 processes|trainer.devices"),
    ("stage=sft sft.data.length_window=0 sft.data.micro_batch_size=5", "multiple of micro_batch_size 5 x 1 processes"),
    ("stage=ppo algorithm=grpo ppo.settings.group_size=1", "group_size=1 with advantage grpo|2 or more"),
    ("stage=ppo algorithm=rloo ppo.settings.baseline=critic", "baseline=critic with advantage rloo|baseline=none"),
    ("stage=ppo algorithm=reinforce_pp ppo.settings.critic_warmup=3", "critic_warmup=3: there is no critic"),
    ("stage=ppo ppo.settings.kl_placement=loss", "kl_placement=loss with kl_estimator=k1|use k2 in the loss"),
    ("stage=ppo ppo.sampling.top_p=0.9", "sampling.top_p=0.9|use top_k=0, top_p=1"),
    ("stage=ppo model.path=MODEL ppo.data.max_prompt_length=50", "prompt of 50 tokens|max_new_tokens=24|64 pos"),
    ("stage=sft +trainer.gradient_clip_val=1", "trainer.gradient_clip_val: set max_grad_norm"),
    ("+trainer.fast_dev_run=true", "exports no model, so that nothing after sft could run|stages=[sft]"),
    ("matmul_precision=full", "matmul_precision=full: must be one of highest, high, medium"),
    ("stage=ppo trainer.strategy=fsdp", "trainer.strategy=fsdp|use trainer=fsdp2"),
    (
        "stage=ppo trainer=hsdp trainer.devices=3 trainer.strategy.replicate_size=2",
        "trainer.strategy.replicate_size=2: copies of the weights must divide the 3 processes",
    ),
    ("stage=ppo trainer=hsdp trainer.strategy.replicate_size=0", "replicate_size=0: must be at least 1"),
    ("stage=ppo trainer=fsdp2 model.freeze_below=2", "trainer=fsdp2 needs model.freeze_below=0"),
    ("stage=ppo model.lora={lora_dropout:0.1}", "model.lora.lora_dropout=0.1: PPO compares the policy with itself"),
    ("stage=ppo trainer=fsdp2 model.offload=true", "trainer=fsdp2 keeps the shards|model.offload=false"),
    ("stage=ppo trainer=fsdp2 model.load_in_4bit=true model.lora={r:4}", "fsdp2 shards weights in floating"),
    ("stage=sft model.load_in_4bit=true", "model.load_in_4bit=true: 4-bit weights do not learn; set model.lora"),
    ("stage=sft rollout.gather=layer", "rollout.gather=layer would have no effect: this run shards no weights"),
    ("stage=kto model.offload=true data.feedback=x", "kto: model.offload=true would move|kto.cache_reference=true"),
    ("stage=sft model.offload=true", "model.offload=true would have no effect: no stage of this run holds"),
    ("stage=dpo loss=simpo dpo.cache_reference=true data.comparisons=x", "dpo.cache_reference=true: the loss compares"),
    ("stage=dpo loss=simpo dpo.reference=m data.comparisons=x", "dpo.reference=m: simpo_loss|set it to null"),
    # settings that nothing would read
    ("stage=ppo algorithm=grpo ppo.critic=policy", "ppo.critic=policy would have no effect|trains no critic"),
    ("stage=ppo algorithm=rloo ppo.settings.value_coef=0.5", "value_coef=0.5 would have no effect|algorithm=ppo"),
    ("stage=ppo algorithm=remax ppo.settings.critic_lr=1e-4", "critic_lr=0.0001 would have no effect|baseline=greedy"),
    ("stage=ppo kl=none ppo.settings.kl_placement=loss ppo.settings.kl_estimator=k3", "there is no KL penalty"),
    # a value in the place of an option
    ("stage=ppo kl=0.1", "kl=0.1: there is no such option|Did you mean kl=fixed kl.coef=0.1?|Options of kl"),
    ("stage=ppo kl=null", "Did you mean kl=none?"),
    ("logger=off", "Did you mean logger=none?|Options of logger"),
    ("callbacks=null", "callbacks=null: there is no such option|Options of callbacks: default"),
    ("trainer=2", "Did you mean trainer.devices=2?"),
    ("model=gpt2", "Did you mean model.path=gpt2?"),
    ("stage=sft data=rows.jsonl", "Did you mean data.demonstrations=rows.jsonl?"),
    ("stage=dpo data=pairs/rows.jsonl", "Did you mean data.comparisons=pairs/rows.jsonl?"),
    ("scorer=runs/reward", "scorer=runs/reward: there|Did you mean scorer=reward_model scorer.model.path=runs/reward?"),
    ("judge=./reward", "Did you mean judge=reward_model judge.model.path=./reward?"),
    ("stage=ppo algorithm=PPO", "Did you mean ppo?"),
    ("trainer=deepspeed", "Did you mean trainer=fsdp2?"),
    # words of other tools
    ("--stage ppo", "--stage: settings have no dashes here: write stage=ppo"),
    ("stage=sft --learning-rate=1e-5", "write learning_rate=1e-5"),
    ("learning_rate=1e-5", "Did you mean sft.optimizer.lr or reward.optimizer.lr or ppo.optimizer.lr?"),
    ("stage=dpo dpo.beta=0.2", "Did you mean dpo.loss.beta?"),
    ("stage=ppo ppo.kl_coef=0.1", "Did you mean kl.init_coef?"),
    ("stage=ppo kl=fixed ppo.beta=0.1", "Did you mean kl.coef?"),
    ("stage=ppo ppo.settings.minibatch_size=16", "Did you mean ppo.settings.num_minibatches?"),
    ("stage=ppo ppo.settings.cliprange=0.1", "Did you mean ppo.loss.clip_range?"),
    ("stage=ppo num_generations=8", "Did you mean ppo.settings.group_size?"),
    ("stage=ppo response_length=8", "Did you mean sampling.max_new_tokens or ppo.sampling.max_new_tokens?"),
    ("stage=ppo ppo.epochs=3", "Did you mean ppo.rollouts?"),
    ("stage=sft num_train_epochs=3", "Did you mean sft.max_epochs?"),
    ("stage=sft trainer.max_steps=5", "Did you mean sft.max_epochs?|Keys of trainer: accelerator"),
    ("stage=sft trainer.accumulate_grad_batches=4", "Did you mean sft.data.micro_batch_size?"),
    ("stage=sft per_device_train_batch_size=4", "Did you mean sft.data.micro_batch_size?"),
    ("stage=sft model_name_or_path=gpt2", "Did you mean model.path?"),
    ("stage=sft dataset=rows.jsonl", "Did you mean data.demonstrations or data.comparisons or data.prompts?"),
    ("stage=sft output_dir=x", "Did you mean output_root or run_dir?"),
    ("stage=sft lora_rank=8", "Did you mean model.lora={r: 16}?"),
    ("model.lora.r=8", "model.lora.r: model.lora is null|Write model.lora={r: VALUE}"),
    ("stage=sft bf16=true", "Did you mean trainer.precision=bf16-mixed?"),
    ("trainer.precision=fp16", "trainer.precision=fp16: must be one of|Did you mean 16-mixed?"),
    ("model.dtype=bf16", "model.dtype=bf16: must be one of|Did you mean bfloat16?"),
    ("num_gpus=2", "Did you mean trainer.devices?"),
    ("resume=true", "resume=true: must be none, auto or the folder|Did you mean auto?"),
    ("resume_from_checkpoint=x", "Did you mean resume=auto?"),
    # something is missing
    ("run_dir=", "run_dir=: there is no value. Is a shell variable unset?"),
    ("stage=ppo ppo.policy=", "ppo.policy=: there is no value|ppo.policy=null for none"),
    ("stage=sft task=custom", "model.path has no default|add model.path=VALUE"),
    ("stage=sft task=custom model.path=m", "sft.data.train is not set; add data.demonstrations=FILE"),
    ("stage=score score.rows=null", "score.rows is not set; add score.rows=FILE with answers"),
    ("stages=[score] score.rows=a.jsonl", "score.reward is not set; add score.reward=FOLDER"),
    ("stage=score score.rows=a.jsonl trainer=ddp trainer.devices=2", "and this run has 2|trainer.devices=1"),
    ("stage=score score.rows=a.jsonl score.micro_batch_size=0", "score.micro_batch_size=0: must be at least 1"),
    ("stage=evaluate judge=none", "evaluate: no judge is configured; add judge=function"),
    ("stage=ppo judge=none", "scorer: no scorer is configured; add scorer=function"),
    ("stage=sft sft.data.train=${oc.env:SURELY_NOT_SET}", "Is the environment variable set?"),
]  # fmt: skip
CPU = 0.5  # seconds of one command, user and system
CPU_OF_A_CHAIN = 0.6  # where the sections of all stages are composed, since any of them may be in the chain
SLACK = 1.5  # for slower and busier machines


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "MODEL").mkdir()
    (folder / "MODEL" / "config.json").write_text('{"max_position_embeddings": 64}')
    return folder


def call(place, *command, text=None):
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, *command], cwd=place, env={**environment, "PYTHONPATH": str(ROOT)}, input=text,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def answers(place):
    """What each mistake is answered with."""
    commands = [command.split() for command, _ in MISTAKES]
    done = call(place, "-P", str(ROOT / "tests" / "support" / "commands.py"), text=json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return {command: found for (command, _), found in zip(MISTAKES, json.loads(done.stdout), strict=True)}


def test_options_of_a_folder_of_ones_own_are_named(tmp_path):
    (tmp_path / "kl").mkdir()
    (tmp_path / "kl" / "warm_up.yaml").write_text("coef: 0.1\n")
    says = r"Did you mean warm_up\?\nOptions of kl: adaptive, fixed, learned, none, warm_up, ziegler"
    with pytest.raises(ConfigError, match=says):
        compose(["stage=ppo", f"hydra.searchpath=[file://{tmp_path}]", "kl=warmup"])


@pytest.mark.parametrize(("command", "says"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_config_mistake_is_answered_on_one_screen_without_torch(answers, command, says):
    answer = answers[command]
    lines = answer["err"].splitlines()
    assert answer["code"] == 2, answer["err"]
    assert [part for part in says.split("|") if part not in " ".join(answer["err"].split())] == [], answer["err"]
    assert answer["err"].startswith("ConfigError:") and "Traceback" not in answer["err"]
    assert len(lines) <= 24 and max(map(len, lines)) <= 122, answer["err"]
    assert answer["heavy"] == [] and answer["out"] == ""


def test_a_hundred_and_twenty_mistakes_are_seeded():
    assert len({command for command, _ in MISTAKES}) >= 120


def test_mistakes_leave_no_files(answers, place):
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["config.json"]


@pytest.mark.parametrize(
    "command",
    [
        "--help", "--cfg job", "stage=ppo algorithm=ppoo", "ppo.settings.clip=1", "ppo.loss.clip_range=-1",
        "ppo.settings.num_minibatches=5",
    ],
)  # fmt: skip
def test_an_answer_takes_half_a_second_of_cpu(place, command):
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = call(place, str(ROOT / "train.py"), *command.split())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == (0 if command.startswith("--") else 2), done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bar = CPU if command.startswith(("--help", "stage=")) else CPU_OF_A_CHAIN
    assert any(once() < bar * SLACK for _ in range(3))
