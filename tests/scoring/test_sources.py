"""Several scorers as one: who abstains is left out, tokens and answers mix, transforms run in order and survive."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError, DataError, RewardFunctionError
from rlhf_lightning.scoring import EnsembleScorer, FunctionScorer, RewardSources, Source, details_of
from rlhf_lightning.scoring.sources import weighted_sum
from rlhf_lightning.scoring.transforms import (
    Clip,
    LengthPenalty,
    Normalise,
    OverlongPenalty,
    PreferenceAsReward,
    RunningNormalise,
    transformed,
)
from rlhf_lightning.types import Rollout
from tests.support import tiny

NAN = math.nan


class Given:
    """Says what it was given, one tensor after the other; the last one for ever."""

    def __init__(self, *scores, name="given"):
        self.name, self.scores = name, [torch.as_tensor(v) for v in scores]

    def to(self, device):
        return self

    def score(self, rollout, tokenizer):
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]


def rollout(lengths=(2, 3), rows=None):
    """Responses of these lengths, padded to 3 tokens; row i says word i + 3."""
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    count = len(lengths)
    ids = torch.where(mask, torch.arange(count)[:, None] + 3, 0)
    prompt = torch.full((count, 1), 3)
    return Rollout(
        prompt,
        prompt > 0,
        ids,
        mask,
        torch.ones(count).bool(),
        None,
        torch.zeros(count).long(),
        rows or ({"prompt": "the"},) * count,
    )


def score(scorer, given=None):
    return scorer.score(given or rollout(), tiny.tokenizer())


# ------------------------------------------------------------------------------------------------------ the sum


def test_scores_are_weighted_and_added():
    sources = RewardSources({"a": Source(Given([1.0, 2.0])), "b": {"scorer": Given([10.0, 20.0]), "weight": -0.5}})
    assert score(sources).tolist() == [-4.0, -8.0]


def test_an_abstaining_source_is_left_out_of_its_row_and_the_other_weights_stay():
    sources = RewardSources({"a": Source(Given([1.0, NAN]), 2.0), "b": Source(Given([4.0, 4.0]), 0.5)})
    assert score(sources).tolist() == [4.0, 2.0]


def test_a_row_that_nobody_judges_is_not_a_number():
    found = score(RewardSources({"a": Given([NAN, 1.0]), "b": Given([NAN, NAN])}))
    assert found.isnan().tolist() == [True, False] and found[1] == 1.0


def test_scores_of_answers_go_to_the_last_token_where_another_source_judges_tokens():
    tokens = [[1.0, 2.0, 99.0], [3.0, 4.0, 5.0]]  # the 99 stands on padding
    found = score(RewardSources({"steps": Given(tokens), "end": Source(Given([10.0, NAN]), 0.5)}))
    assert found.tolist() == [[1.0, 7.0, 0.0], [3.0, 4.0, 5.0]]


def test_a_source_that_judges_tokens_abstains_with_any_token_that_counts():
    tokens = [[1.0, 2.0, NAN], [3.0, NAN, 5.0]]  # the first NaN stands on padding
    found = score(RewardSources({"steps": Given(tokens), "end": Given([10.0, 20.0])}))
    assert found.tolist() == [[1.0, 12.0, 0.0], [0.0, 0.0, 20.0]]
    alone = score(RewardSources({"steps": Given(tokens)}))
    assert alone[0].tolist() == [1.0, 2.0, 0.0] and alone[1].isnan().all()


def test_silence_of_a_source_without_weight_does_not_reach_the_sum():
    mask = torch.ones(1, 2).bool()
    assert weighted_sum([torch.tensor([NAN]), torch.tensor([3.0])], [0.0, 1.0], mask).tolist() == [3.0]


def test_details_tell_what_each_source_said_before_weights_and_transforms():
    steps = Given([[1.0, 2.0, 99.0], [3.0, 4.0, 5.0]])
    sources = RewardSources({"steps": Source(steps, 0.1), "end": Source(Given([9.0, NAN]), 2.0, [Clip(-1.0, 1.0)])})
    given = rollout()
    score(sources, given)
    assert sources.details["steps"].tolist() == [3.0, 12.0]
    assert sources.details["end"][0] == 9.0 and sources.details["end"][1].isnan()
    assert sources.details_of(given) is sources.details


def test_details_belong_to_the_rollout_that_was_scored_even_after_a_greedy_one():
    sources, sampled, greedy = RewardSources({"a": Given([1.0, 2.0], [7.0, 7.0])}), rollout(), rollout()
    score(sources, sampled)
    score(sources, greedy)
    assert details_of(sources, sampled)["a"].tolist() == [1.0, 2.0]
    assert details_of(sources, greedy)["a"].tolist() == [7.0, 7.0]
    assert details_of(sources, rollout()) == {}


def test_a_scorer_of_ones_own_needs_a_plain_dict_only():
    scorer = Given([1.0, 2.0])
    assert details_of(scorer, rollout()) == {}
    scorer.details = {"style": torch.tensor([1.0, 0.0]), "of another batch": torch.zeros(5)}
    assert list(details_of(scorer, rollout())) == ["style"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, r"\+scorer@scorer.sources.NAME"),
        ({"a": {"weight": 1.0}}, "sources.a: .*scorer"),
        ({"a": {"scorer": Given([1.0]), "wait": 1.0}}, "sources.a: .*wait"),
        ({"a": Source(Given([1.0]), NAN)}, "weight=nan"),
        ({"a": {"scorer": "brevity"}}, "'brevity' is no scorer"),
        ({"a": Source(Given([1.0]), 1.0, [LengthPenalty(1.0), Clip(0.0, 1.0)])}, "Clip cannot follow LengthPenalty"),
        ({"a": Source(Given([1.0]), 1.0, ["clip"])}, "no transform"),
    ],
)
def test_what_cannot_be_a_source_is_refused(sources, message):
    with pytest.raises(ConfigError, match=message):
        RewardSources(sources)


# ---------------------------------------------------------------------------------------------------- functions


def test_null_abstains_where_abstain_value_is_null():
    def sometimes(prompts, completions, **columns):
        return [None, 2.0]

    found = score(FunctionScorer(sometimes, abstain_value=None))
    assert found[0].isnan() and found[1] == 2.0
    assert score(FunctionScorer(sometimes)).tolist() == [0.0, 2.0]


def per_token(prompts, completions, completion_ids, **columns):
    return [[float(10 * i + t) for t in range(len(ids))] for i, ids in enumerate(completion_ids)]


def test_a_function_with_trls_signature_may_judge_tokens_as_lists_or_as_a_tensor():
    expected = [[0.0, 1.0, 0.0], [10.0, 11.0, 12.0]]
    assert score(FunctionScorer(per_token)).tolist() == expected

    def tensor(prompts, completions, completion_ids, **columns):
        assert completion_ids == [[3, 3], [4, 4, 4]]
        return torch.tensor([[0.0, 1.0, NAN], [10.0, 11.0, 12.0]])

    assert score(FunctionScorer(tensor)).tolist() == expected
    assert score(FunctionScorer(lambda prompts, completions: torch.tensor([1.0, 2.0]))).tolist() == [1.0, 2.0]


def test_tokens_numbers_and_silence_mix_in_one_answer():
    def mixed(prompts, completions, completion_ids, **columns):
        return [None, [1.0, 2.0, 3.0], 5.0]

    found = score(FunctionScorer(mixed, abstain_value=None), rollout((2, 3, 1)))
    assert found[0].isnan().any() and found[1:].tolist() == [[1.0, 2.0, 3.0], [5.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1.0], [1.0] * 3], "1 numbers for the 2 tokens"),
        ([[1.0, None], [1.0] * 3], "None"),
        ([[1.0, NAN], 1.0], "nan"),
    ],
)
def test_a_list_that_does_not_fit_its_tokens_is_refused(answer, message):
    with pytest.raises(RewardFunctionError, match=message):
        score(FunctionScorer(lambda prompts, completions: answer, name="mine"))


def test_a_function_without_the_name_gets_no_ids():
    seen = {}

    def spy(prompts, completions, **columns):
        seen.update(columns)
        return [0.0, 0.0]

    score(FunctionScorer(spy))
    assert seen == {}


# ---------------------------------------------------------------------------------------------------- ensembles


MEMBERS = ([1.0, 2.0], [3.0, 2.0])


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", [2.0, 2.0]), ("worst_case", [1.0, 2.0]), ("uncertainty_weighted", [1.5, 2.0])]
)
def test_an_ensemble_combines_its_members_and_tells_their_disagreement(combine, expected):
    ensemble = EnsembleScorer([Given(m) for m in MEMBERS], combine)
    assert score(ensemble).tolist() == expected
    assert ensemble.details["disagreement"].tolist() == [1.0, 0.0]  # population deviation of 1 and 3


def test_a_member_that_abstains_leaves_the_row_unjudged():
    assert score(EnsembleScorer([Given([1.0, NAN]), Given([3.0, 3.0])], "worst_case")).isnan().tolist() == [False, True]


def test_an_ensemble_of_token_judges_is_cautious_per_token():
    ensemble = EnsembleScorer([Given([[1.0, 5.0, 0.0], [0.0] * 3]), Given([2.0, 0.0])], "worst_case")
    assert score(ensemble).tolist() == [[0.0, 2.0, 0.0], [0.0] * 3]
    assert ensemble.details["disagreement"].tolist() == [2.0, 0.0]  # of 6 and 2


def test_an_ensemble_among_the_sources_passes_its_disagreement_on():
    sources = RewardSources({"models": EnsembleScorer([Given(m) for m in MEMBERS], "mean"), "other": Given([0.0, 0.0])})
    score(sources)
    assert list(sources.details) == ["models", "models/disagreement", "other"]


def test_one_member_and_unknown_combinations_are_refused():
    with pytest.raises(ConfigError, match="at least 2 members, not 1"):
        EnsembleScorer([Given([1.0])])
    with pytest.raises(ConfigError, match="choose mean, worst_case, uncertainty_weighted"):
        EnsembleScorer([Given([1.0]), Given([1.0])], "median")


# --------------------------------------------------------------------------------------------------- transforms


def apply(transforms, scores, given=None, judge=None):
    return transformed(transforms, torch.tensor(scores), given or rollout(), tiny.tokenizer(), judge)


@pytest.mark.parametrize(
    ("transform", "scores", "expected"),
    [
        (Clip(-1.0, 2.0), [-3.0, 5.0], [-1.0, 2.0]),
        (Normalise(1.0, 2.0), [3.0, NAN], [1.0, NAN]),
        (LengthPenalty(0.5, beyond=2), [1.0, 1.0], [1.0, 0.5]),
        (OverlongPenalty(max_length=4, buffer=2), [1.0, 1.0], [1.0, 0.5]),
        (OverlongPenalty(max_length=1, buffer=1, penalty=3.0), [1.0, NAN], [-2.0, NAN]),
        (Clip(0.0, 4.0), [[5.0, -1.0, 9.0], [1.0, 2.0, 3.0]], [[4.0, 0.0, 4.0], [1.0, 2.0, 3.0]]),
        (Normalise(2.0, 2.0), [[4.0, 4.0, 0.0], [0.0, 2.0, 4.0]], [[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
        (LengthPenalty(1.0), [[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]], [[0.0, 3.0, 0.0], [0.0, 0.0, 2.0]]),
    ],
)
def test_a_transform_does_what_its_formula_says(transform, scores, expected):
    torch.testing.assert_close(apply([transform], scores), torch.tensor(expected), equal_nan=True)


def test_transforms_run_in_the_order_of_the_list():
    assert apply([Clip(-4.0, 4.0), Normalise(2.0, 2.0), LengthPenalty(1.0)], [9.0, -9.0]).tolist() == [-1.0, -6.0]


def test_preference_as_reward_beats_references_that_are_clipped_and_normalised_alike():
    rows = ({"prompt": "p", "reference_scores": [9.0, 0.0]}, {"prompt": "q", "reference_scores": 2.0})
    found = apply([Clip(-4.0, 4.0), Normalise(0.0, 2.0), PreferenceAsReward()], [8.0, 2.0], rollout(rows=rows))
    sigmoid = 1 / (1 + math.exp(-2.0))  # the score of 8 is clipped to 4 and halved, as is the reference of 9
    assert found.tolist() == pytest.approx([(0.5 + sigmoid) / 2, 0.5])


def test_reference_answers_are_scored_by_the_same_scorer():
    def words(prompts, completions, **columns):
        return [float(len(c.split())) for c in completions]

    rows = ({"prompt": "the", "reference": ["we left", "food"]}, {"prompt": "the", "reference": "very good food ."})
    transforms = [RunningNormalise(), PreferenceAsReward(column="reference", holds="answers")]
    sources = RewardSources({"words": Source(FunctionScorer(words), 1.0, transforms)})
    found = score(sources, rollout(rows=rows))  # two and three words: mean 2.5, deviation 0.5
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert found.tolist() == pytest.approx([(0.5 + sigmoid(2.0)) / 2, sigmoid(-2.0)])
    assert transforms[0].state_dict()["count"] == 2  # running statistics do not learn from references


def test_a_row_without_a_reference_is_named():
    with pytest.raises(DataError, match=r"'the' has no reference_scores"):
        apply([PreferenceAsReward()], [1.0, 1.0])


def test_preference_as_reward_refuses_token_scores():
    rows = ({"prompt": "p", "reference_scores": 1.0},) * 2
    with pytest.raises(ConfigError, match="compares whole answers"):
        apply([PreferenceAsReward()], [[0.0] * 3] * 2, rollout(rows=rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(1.0, 1.0),
        lambda: Normalise(std=0.0),
        lambda: OverlongPenalty(max_length=4, buffer=0),
        lambda: OverlongPenalty(max_length=4, buffer=5),
        lambda: PreferenceAsReward(holds="opinions"),
        lambda: RewardSources({"a": Given([1.0])}, [Normalise(), RunningNormalise()]),
    ],
)
def test_a_transform_that_cannot_work_is_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_statistics_come_from_the_provenance_of_a_reward_model(tmp_path):
    (tmp_path / "provenance.json").write_text('{"schema": 1, "metrics": {"score_mean": 3.0, "score_std": 2.0}}')
    assert apply([Normalise(folder=str(tmp_path))], [5.0, 1.0]).tolist() == [1.0, -1.0]
    (tmp_path / "provenance.json").write_text('{"schema": 1, "metrics": {}}')
    with pytest.raises(ConfigError, match="no score_mean"):
        Normalise(folder=str(tmp_path))


# ------------------------------------------------------------------------------------------- running statistics


def test_running_statistics_are_those_of_all_scores_so_far():
    running = RunningNormalise()
    apply([running], [0.0, 2.0])
    found = apply([running], [4.0, NAN])
    mean, std = 2.0, math.sqrt(8 / 3)  # of 0, 2 and 4
    torch.testing.assert_close(found, torch.tensor([(4.0 - mean) / std, NAN]), equal_nan=True)
    with torch.no_grad():
        apply([running], [100.0, 100.0])  # a greedy baseline
    assert running.mean == mean


def test_running_statistics_can_keep_the_mean_and_stop():
    running = RunningNormalise(center=False, freeze_after=1)
    assert apply([running], [1.0, 3.0]).tolist() == [1.0, 3.0]
    assert apply([running], [50.0, 90.0]).tolist() == [50.0, 90.0]  # the deviation is still 1


def test_running_statistics_survive_a_resume():
    def sources(*scores):
        return RewardSources({"a": Source(Given(*scores), 1.0, [RunningNormalise()])}, [RunningNormalise(center=False)])

    whole, first, second = sources([0.0, 2.0], [4.0, 9.0]), sources([0.0, 2.0]), sources([4.0, 9.0])
    score(whole)
    score(first)
    state = first.state_dict()
    assert set(state) == {"transforms/RunningNormalise", "sources/a/RunningNormalise"}
    second.load_state_dict(state)
    torch.testing.assert_close(score(second), score(whole))
    assert RewardSources({"a": Given([1.0])}).state_dict() == {}


# ------------------------------------------------------------------------------------------------------ configs


def brevity(prompts, completions, **columns):
    return [-float(len(completion.split())) for completion in completions]


HERE = "tests.scoring.test_sources.brevity"


def test_sources_are_added_on_the_command_line():
    config = compose(
        [
            "stage=ppo",
            "scorer=sources",
            "+scorer@scorer.sources.short.scorer=function",
            f"scorer.sources.short.scorer.function={HERE}",
            "scorer.sources.short.scorer.isolate=false",
            "+scorer.sources.short.weight=0.5",
            "+scorer@scorer.sources.plain.scorer=function",
            f"scorer.sources.plain.scorer.function={HERE}",
            "scorer.sources.plain.scorer.isolate=false",
            "scorer.transforms=[{_target_: rlhf_lightning.scoring.transforms.Clip, low: -2.0, high: 0.0}]",
        ]
    )
    scorer = safe_instantiate(config["scorer"], trusted=config["trusted_targets"])
    assert {name: source.weight for name, source in scorer.sources.items()} == {"short": 0.5, "plain": 1.0}
    assert score(scorer).tolist() == [-2.0, -2.0]  # -3 and -4.5, clipped


def test_no_source_at_all_says_how_to_add_one():
    config = compose(["stage=ppo", "scorer=sources"])
    with pytest.raises(ConfigError, match=r"\+scorer@scorer.sources.NAME"):
        safe_instantiate(config["scorer"])


def test_an_ensemble_is_built_from_folders(tmp_path):
    from rlhf_lightning.models import ScalarModel

    folders = []
    for seed in (1, 2):
        model = ScalarModel.from_policy(tiny.policy(seed=seed)).model
        torch.nn.init.normal_(model.score.weight)
        folders.append(tmp_path / f"reward{seed}")
        model.save_pretrained(folders[-1])
        tiny.tokenizer().save_pretrained(folders[-1])
    names = ",".join(map(str, folders))
    config = compose(["stage=ppo", "scorer=ensemble", f"scorer.members.folders=[{names}]", "scorer.combine=worst_case"])
    ensemble = safe_instantiate(config["scorer"])
    given = replace(rollout(), prompt_mask=torch.ones(2, 1).bool())
    apart = torch.stack([score(member, given) for member in ensemble.members])
    torch.testing.assert_close(score(ensemble, given), apart.amin(0))
    assert [member.name for member in ensemble.members] == ["reward_model_0", "reward_model_1"]


def test_the_state_of_the_members_of_an_ensemble_survives():
    def ensemble():
        members = [RewardSources({"a": Source(Given([1.0, 4.0]))}, [RunningNormalise()]), Given([0.0, 0.0])]
        return RewardSources({"both": EnsembleScorer(members, combine="mean")})

    learned, fresh = ensemble(), ensemble()
    score(learned)
    fresh.load_state_dict(learned.state_dict())
    assert fresh.state_dict() == learned.state_dict()
    assert "'calls': 1" in str(fresh.state_dict())
