"""Who judges in the evaluate stage: a reward model beside the one that was learned from, or no other than that."""

import json

import pytest
from transformers import LlamaForSequenceClassification

from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation import conclusion, report
from rlhf_lightning.stages.pipeline import run
from tests.support import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
SAME_NAME = (
    "{_target_: rlhf_lightning.scoring.functions.FunctionScorer, isolate: false, "
    "function: rlhf_lightning.tasks.miniature.gold.gold, name: reward_model}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    for seed, name in enumerate(("sft", "ppo", "one", "two")):
        model = tiny.policy(seed)
        if name in ("one", "two"):
            model.config.num_labels = 1
            model = LlamaForSequenceClassification(model.config)
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    (root / "prompts.jsonl").write_text('{"prompt": "the food"}\n{"prompt": "we left"}\n')
    return root


def evaluated(folders, run_dir, *more):
    words = [
        "stage=evaluate", "task=custom", "trainer=cpu", "logger=none", f"model.path={folders / 'sft'}",
        f"+evaluate.policies.ppo={folders / 'ppo'}", f"data.prompts_validation={folders / 'prompts.jsonl'}",
        "sampling.max_new_tokens=4", "evaluate.data.max_prompt_length=32", f"run_dir={run_dir}", *more,
    ]  # fmt: skip
    run(compose(words))
    return json.loads((run_dir / "evaluation.json").read_text())


def scores(evaluation):
    found = evaluation["policies"]["ppo"]["summary"]["scores"]
    return {name: score["mean"] for name, score in found.items()}


def test_a_reward_model_that_judges_is_another_one_than_the_proxy_unless_it_is_the_same_folder(
    tmp_path, folders, monkeypatch
):
    monkeypatch.setattr(report, "save_figures", lambda *given: [])  # two seconds
    judge, proxy = f"judge.model.path={folders / 'one'}", f"evaluate.proxy={folders / 'two'}"
    both = evaluated(folders, tmp_path / "both", "judge=reward_model", judge, proxy)
    assert (both["judge"], both["proxy"]) == ("judge_model", "reward_model")
    same = f"judge.model.path={folders / 'two'}"
    for words in ([proxy], [proxy, "judge=reward_model", same]):
        only = evaluated(folders, tmp_path / f"only{len(words)}", *words)
        assert only["judge"] == only["proxy"] == "reward_model"
        assert "No independent judge: reward_model is what was optimised" in conclusion(only)
        assert (
            "| policy | reward_model (judge and proxy) | KL" in (tmp_path / f"only{len(words)}/report.md").read_text()
        )
    assert scores(both)["judge_model"] != scores(both)["reward_model"] == scores(only)["reward_model"]
    assert "No independent judge" not in conclusion(both)


def test_a_judge_whose_model_is_a_name_is_refused_for_what_it_is(tmp_path, folders):
    words = ["judge=llm", "judge.base_url=http://localhost:1/v1", "judge.model=some-judge"]
    with pytest.raises(ConfigError, match="llm: compares a policy's answers to a prompt with each other"):
        evaluated(folders, tmp_path / "run", *words, f"evaluate.proxy={folders / 'two'}")


def test_two_scores_of_one_name_are_refused(tmp_path, folders):
    words = [f"evaluate.proxy={folders / 'two'}", f"evaluate.judges=[{SAME_NAME}]"]
    with pytest.raises(ConfigError, match=r"two scorers are called reward_model, .* for example judge\.name=other"):
        evaluated(folders, tmp_path / "run", *words)
