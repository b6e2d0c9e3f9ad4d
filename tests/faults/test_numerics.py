"""NaN and infinities in training: steps are skipped, batches kept, broken weights never saved (cases 19 to 21)."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.checkpoint.codec import read_state
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite, named_tensors
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from tests.support import phases, tiny
from tests.support.numeric_faults import STAGES, Break, Watch, fit, module_of, write

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(files, tmp_path):
    """A run folder with the data files beside."""
    for file in files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def same(a, b):
    return torch.equal(a, b)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("where", "value"), [("loss", float("nan")), ("grad", float("inf"))])
def test_case_19_and_21_a_step_with_nan_loss_or_inf_gradient_is_skipped_and_counted(stage, where, value, folder):
    watch, good = Watch(), Watch()
    module, trainer = fit(stage, folder, 3, callbacks=[Break(where, [2], value), watch])
    fit(stage, folder / "good", 3, data=folder, callbacks=[good])
    assert module.guard.skipped == 1 and float(trainer.callback_metrics["guard/skipped_steps"]) == 1
    assert same(watch.weights[0], good.weights[0])
    assert same(watch.weights[1], watch.weights[0]) and watch.moments[1] == watch.moments[0] != []
    assert not same(watch.weights[2], watch.weights[1])
    assert watch.rates[:2] == good.rates[:2] or stage == "ppo"  # the schedule goes on as in a run without the fault
    dumps = list((folder / "bad_batches" / stage).iterdir())
    assert [dump.name for dump in dumps] == ["step-000002"]
    kept = read_state(dumps[0] / "rank-0")
    assert kept["what"] == ("loss" if where == "loss" else "gradient norm")
    assert list(named_tensors(kept["batches"]))


@pytest.mark.parametrize("stage", STAGES)
def test_case_19_several_steps_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(stage, folder):
    with pytest.raises(
        NumericalError, match=rf"{stage}: step 4: loss is not finite; 3 in a row .*step-000004"
    ) as error:
        fit(stage, folder, 9, callbacks=[Break("loss", range(2, 10))])
    assert error.value.exit_code == 4
    saved = checkpoints(folder / "checkpoints")
    assert saved[-1].name == "step-000001"
    for path in saved:
        state = DurableCheckpointIO().load_checkpoint(path)
        assert first_nonfinite(named_tensors(state)) is None
    assert len(list((folder / "bad_batches" / stage).iterdir())) == 3


def test_case_19_a_good_step_in_between_starts_the_count_anew(folder):
    module, _ = fit("sft", folder, 8, callbacks=[Break("loss", [2, 3, 5, 6])])
    assert module.guard.skipped == 4
    module, _ = fit("ppo", folder, 6, callbacks=[Break("loss", [2, 3, 5])])
    assert module.guard.skipped == 3


def test_case_19_one_bad_micro_batch_spoils_its_step_and_is_the_one_that_is_kept(folder):
    class SecondOnly(Break):
        def _broken(self, module, original):
            calls = []

            def broken(batch):
                calls.append(batch)
                loss, sums = original(batch)
                return (loss * float("nan") if len(calls) == 4 else loss), sums

            self.calls = calls
            return broken

    broken = SecondOnly("loss", [2])
    module, _ = fit("sft", folder, 3, callbacks=[broken])
    assert module.guard.skipped == 1 and len(broken.calls) == 6
    kept = read_state(folder / "bad_batches" / "sft" / "step-000002" / "rank-0")["batches"]
    assert len(kept) == 1 and torch.equal(kept[0]["input_ids"], broken.calls[3].input_ids)


def test_case_19_the_count_survives_a_resume(folder):
    fit("sft", folder, 4, callbacks=[Break("loss", [2, 3])])
    module = module_of("sft")
    with pytest.raises(NumericalError, match="step 4"):
        fit("sft", folder, 9, module, [Break("loss", [4])], resume=folder / "checkpoints" / "step-000003")
    assert module.guard.skipped == 3


def test_case_19_the_number_of_dumps_is_bounded(folder):
    module, _ = fit("sft", folder, 9, module_of("sft", max_skipped_steps=99), [Break("loss", range(1, 9))])
    assert module.guard.skipped == 8 and len(list((folder / "bad_batches" / "sft").iterdir())) == 5


def test_case_19_the_limit_must_let_a_step_fail():
    with pytest.raises(ConfigError, match=r"sft\.max_skipped_steps=0"):
        module_of("sft", max_skipped_steps=0)
    with pytest.raises(ConfigError, match=r"ppo\.max_skipped_steps=0"):
        module_of("ppo", max_skipped_steps=0)


@pytest.mark.parametrize("where", ["score", "advantage", "logits"])
def test_case_19_a_rollout_that_cannot_be_learned_from_is_given_up_and_sampling_goes_on(where, folder):
    watch = Watch()
    value = float("inf") if where == "score" else float("nan")
    module, _ = fit("ppo", folder, 3, callbacks=[Break(where, [1], value), watch])
    assert module.guard.skipped == 1 and module.rollouts == 3 and not module.gave_up
    assert not same(watch.weights[1], watch.weights[0]) and watch.moments[0] == []
    says = {"score": "a score", "advantage": "an advantage", "logits": "a logit in generation"}[where]
    assert read_state(folder / "bad_batches" / "ppo" / "step-000001" / "rank-0")["what"] == says


def test_case_19_callbacks_that_look_at_rollouts_pass_over_one_that_was_given_up(folder):
    from rlhf_lightning.callbacks import BestPolicy, RewardHackingGuard, ScoreMonitor
    from rlhf_lightning.scoring import FunctionScorer

    looking = [BestPolicy(window=1, max_kl=1e9), RewardHackingGuard(), ScoreMonitor(FunctionScorer(phases.praise))]
    fit("ppo", folder, 2, callbacks=[Break("advantage", [1]), *looking])
    assert looking[0].best["rollout"] == 2


def test_case_19_a_broken_policy_is_never_the_best(folder):
    from rlhf_lightning.callbacks import BestPolicy

    class After(Break):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx)

    best = BestPolicy(window=1, max_kl=1e9)
    with pytest.raises(NumericalError, match="ppo: not saved"):
        fit("ppo", folder, 3, callbacks=[After("weight", [2]), best])
    assert best.best is None


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_case_19_a_broken_weight_ends_the_run_at_once(stage, folder):
    with pytest.raises(NumericalError, match=rf"{stage}: step 2.*since the weight .*embed_tokens.weight is not finite"):
        fit(stage, folder, 5, callbacks=[Break("weight", [2])])


@pytest.mark.parametrize("engine", [LoopEngine(), HFGenerateEngine()])
def test_case_20_nan_logits_in_generation_are_an_error_that_names_the_token_and_what_is_broken(engine):
    policy = tiny.policy()
    engine.sync(policy, (1,), 0, 0)
    engine.seed(0)
    engine.generate(tiny.prompts("the food was"), Sampling(1))  # tries the engine
    calls = []

    def third(layer, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) == 3 else output

    hook = policy.lm_head.register_forward_hook(third)
    with pytest.raises(NumericalError, match=r"token 3 are not finite in . of 2 answers; all weights are finite"):
        engine.generate(tiny.prompts("the food was", "we left slow"), Sampling(6))
    hook.remove()
    with torch.no_grad():
        policy.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(NumericalError, match=r"token 1 .*weight model\.layers\.1\.mlp\.up_proj\.weight"):
        engine.generate(tiny.prompts("the food was", "we left slow"), Sampling(6))


def test_case_20_a_layer_that_overflows_is_named():
    policy = tiny.policy()
    policy.model.layers[1].mlp.register_forward_hook(lambda layer, args, output: output * float("inf"))
    engine = LoopEngine()
    engine.sync(policy, (1,), 0, 0)
    with pytest.raises(NumericalError, match=r"first such output is that of model\.layers\.1\.mlp\b"):
        engine.generate(tiny.prompts("the food was"), Sampling(4))


class BrokenReward(RewardModelScorer):
    """A reward model without a folder, with a weight that makes some scores NaN."""

    def __init__(self, on_error):
        torch.manual_seed(0)
        self.name, self.tokenizer, self.mean, self.std = "reward_model", tiny.tokenizer(), 0.0, 1.0
        self.model = ScalarModel.from_policy(tiny.policy()).eval()
        self.micro_batch_size, self.on_error, self._same_ids = 16, on_error, True
        with torch.no_grad():
            self.model.model.model.embed_tokens.weight[self.tokenizer.convert_tokens_to_ids("happy")] = float("nan")


def test_case_19_a_reward_model_that_says_nan_is_an_error_or_abstains():
    engine = LoopEngine()
    engine.sync(tiny.policy(), (1,), 0, 0)
    engine.seed(0)
    rollout = engine.generate(tiny.prompts("we left happy", "the food", "good"), Sampling(1))
    assert BrokenReward("abstain").score(rollout, tiny.tokenizer()).isnan().tolist() == [True, False, False]
    assert BrokenReward(-2.0).score(rollout, tiny.tokenizer())[0] == -2.0
    with pytest.raises(NumericalError, match=r"1 of 3 scores .* weight model\.model\.embed_tokens\.weight.*on_error"):
        BrokenReward("raise").score(rollout, tiny.tokenizer())


def test_case_19_a_checkpoint_with_a_broken_weight_is_refused_and_nothing_is_left(folder, tmp_path):
    module, trainer = fit("sft", folder, 2)
    state = trainer._checkpoint_connector.dump_checkpoint()
    state["optimizer_states"][0]["state"][0]["exp_avg"][0] = float("inf")
    with pytest.raises(NumericalError, match=r"optimizer_states\.0\.state\.0\.exp_avg is not finite"):
        DurableCheckpointIO().save_checkpoint(state, tmp_path / "step-000009")
    with torch.no_grad():
        module.policy.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"weight policy\.lm_head\.weight is not finite"):
        trainer.save_checkpoint(tmp_path / "step-000008")
    with pytest.raises(NumericalError, match=r"not exported to .*weight policy\.lm_head\.weight"):
        module.export(tmp_path / "sft", {})
    assert not [p.name for p in tmp_path.iterdir() if p.name in ("step-000009", "step-000008", "sft")]


def everything_saved(folder):
    """All tensors in all weight files under a folder but those of the bad batches."""
    for file in folder.rglob("*.safetensors"):
        if "bad_batches" not in file.parts:
            yield from ((f"{file}: {name}", tensor) for name, tensor in load_file(file).items())


def inject(number, folder):
    """Run number ``number`` with a random fault; returns what ended it, if anything did."""
    draw = random.Random(number)
    stage = draw.choice(STAGES)
    where = draw.choice(["loss", "grad", "weight"] + ["score", "logits", "advantage"] * (stage == "ppo"))
    first, value = draw.randint(1, 3), draw.choice([float("nan"), float("inf"), -float("inf")])
    value = float("inf") if where == "score" else float("nan") if where == "logits" else value
    lasts = draw.choice([1, 2])
    module, fault = module_of(stage, max_skipped_steps=2), None
    try:
        fit(stage, folder, 4, module, [Break(where, range(first, first + lasts), value)])
        module.export(folder / stage, {"stage": stage})
    except NumericalError as error:
        fault = error
    ends = where == "weight" or lasts == 2
    assert (fault is not None) == ends, (stage, where, first, value, lasts, fault)
    assert module.guard.skipped >= 1 or where == "weight"
    assert fault is None or fault.exit_code == 4
    return stage, where


def test_case_19_of_20_random_faults_none_reaches_a_saved_file(files, tmp_path):
    met = set()
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in files.iterdir():
            (folder / file.name).symlink_to(file)
        met.add(inject(number, folder))
        saved = dict(everything_saved(folder))
        assert first_nonfinite(saved.items()) is None
        assert saved or not list(folder.glob("checkpoints/*"))
    assert {stage for stage, _ in met} == set(STAGES) and len(met) >= 12


def test_the_dump_is_plain_json_and_safetensors(folder):
    fit("ppo", folder, 1, callbacks=[Break("loss", [1])])
    dump = folder / "bad_batches" / "ppo" / "step-000001" / "rank-0"
    assert sorted(p.name for p in dump.iterdir()) == ["state.json", "tensors.safetensors"]
    batches = json.loads((dump / "state.json").read_text())["batches"]
    assert batches[0]["rollout"]["rows"][0]["prompt"] in phases.PROMPTS
