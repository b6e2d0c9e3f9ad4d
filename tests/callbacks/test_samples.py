from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger

from rlhf_lightning.callbacks import Samples
from rlhf_lightning.callbacks.samples import by_score, first_prompts
from rlhf_lightning.data.prompts import Prompt
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.loggers.records import markdown_table
from tests.support.logging_modules import Refinement, Tokenizer, experience, loader, trainer


def test_the_answers_of_a_rollout_go_from_worst_to_best_and_the_table_stays_one():
    table = markdown_table(*by_score(experience(), Tokenizer(), samples=2, max_characters=100)).splitlines()
    assert table == [
        "| score | KL (nats) | tokens | ended | prompt | response |",
        "| ---: | ---: | ---: | --- | --- | --- |",
        "| -1.000 | 0.000 | 1 | yes | &lt;i&gt;so&lt;/i&gt; film | bad&#124; |",
        "| 2.000 | 1.000 | 1 | no | good | &lt;i&gt;so&lt;/i&gt; |",
    ]


def test_long_prompts_lose_their_beginning_and_long_responses_their_end():
    _, rows = by_score(experience(), Tokenizer(), samples=3, max_characters=2)
    assert [row[-2:] for row in rows if row[0] == 0.5] == [["...lm", "go..."]]


def test_they_are_written_every_second_rollout_and_after_the_last(tmp_path):
    logger, module = CSVLogger(tmp_path, name="", version="ppo"), Refinement([0.5] * 4, [1] * 4)
    trainer([Samples(every_n_rollouts=2, samples=1)], tmp_path, logger=logger).fit(module, loader(4))
    lines = (tmp_path / "ppo" / "samples_by_score.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["step", "0", "2", "3"]


def test_prompts_are_held_out_different_and_short_enough():
    held_out = [Prompt([1, 2], {}), Prompt([1, 2], {}), Prompt([1, 2, 3], {})]
    data = SimpleNamespace(val_items=held_out, train_items=[Prompt([4], {"answer": 7}), Prompt([5], {})])
    assert first_prompts(data, 2, longest=2) == [([1, 2], {}), ([4], {"answer": 7})]


@pytest.mark.parametrize("argument", ["every_n_rollouts", "prompts", "samples", "max_characters"])
def test_arguments_below_one_are_refused(argument):
    with pytest.raises(ConfigError, match=f"{argument}=0"):
        Samples(**{argument: 0})
