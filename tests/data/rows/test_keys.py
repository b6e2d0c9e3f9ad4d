"""Every key of a row and of a message that a training tool knows is followed, refused, or passed on."""

import re
from pathlib import Path

import pytest

from rlhf_lightning.data import DemonstrationData, PromptData
from rlhf_lightning.data.rows.keys import FOLLOWED, MESSAGE_KEYS, PASSED, PROMPT_LIKE, REFUSED, ROW_KEYS
from rlhf_lightning.errors import DataError
from tests.data.conftest import build_tokenizer
from tests.data.test_shapes import SHAPED, TAKEN, TALK
from tests.support.known_sets import A, Q

ROWS = {
    "TRL": "prompt completion messages text chosen rejected label completions labels margin tools "
    "chat_template_kwargs image "
    "images input_ids attention_mask completion_mask assistant_masks position_ids seq_lengths ref_chosen_logps "
    "ref_rejected_logps token_ids",
    "axolotl": "instruction input output text messages conversations system question chosen rejected segments "
    "input_ids labels "
    "attention_mask tools chosen_messages rejected_messages images documents history",
    "LLaMA-Factory": "instruction input output system history conversations tools images videos audios chosen "
    "rejected kto_tag "
    "messages label query",
    "OpenRLHF": "input output prompt chosen rejected label images instruction question context_messages datasource",
    "verl": "data_source prompt ability reward_model extra_info messages tools enable_thinking images videos "
    "agent_name index",
    "OpenAI": "messages tools parallel_tool_calls functions function_call response_format tool_choice prompt "
    "completion input "
    "preferred_output non_preferred_output reference_answer",
    "Anthropic": "system messages prompt completion",
    "data sets": "prompt_id score_chosen score_rejected chosen_rating rejected_rating solution answer "
    "ground_truth source "
    "message_tree parent_id replies mapping conversation scores ranks subset weight id category dataset metadata",
}
MESSAGES = {
    "TRL": "role content tool_calls name tool_call_id thinking reasoning_content",
    "axolotl": "from value role content train weight train_detail training training_detail reasoning_content "
    "tool_calls",
    "LLaMA-Factory": "from value role content",
    "OpenRLHF": "role content",
    "verl": "role content tool_calls loss_mask",
    "OpenAI": "role content name weight tool_calls tool_call_id function_call refusal audio annotations "
    "channel recipient end_turn "
    "logprobs",
    "Anthropic": "role content cache_control",
    "others": "prefix mask loss parent_id replies children images id timestamp reasoning token_ids",
}
NOT_KEYS = {"message_tree"}  # a name of the set, not of a column
EXAMPLES = [row for _, row, _ in TAKEN] + [row for _, row, *_ in SHAPED]
DOCS = Path("docs/data.md").read_text()


def words(table):
    return sorted({name for text in table.values() for name in text.split()} - NOT_KEYS)


@pytest.mark.parametrize("name", words(ROWS))
def test_a_column_that_a_tool_knows_is_in_the_table(name):
    assert name in ROW_KEYS or name in PROMPT_LIKE


@pytest.mark.parametrize("name", words(MESSAGES))
def test_a_key_of_a_message_that_a_tool_knows_is_in_the_table(name):
    assert name in MESSAGE_KEYS


def of(table, what):
    return sorted(name for name, use in table.items() if use.what == what)


def load(write, row, kind=DemonstrationData, template=None):
    template = template or "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    data = kind(write([row, row]), None, build_tokenizer(template), batch_size=2, validation_fraction=0.0)
    data.setup("validate")
    return data


@pytest.mark.parametrize("name", of(ROW_KEYS, REFUSED))
def test_a_column_that_is_not_followed_is_refused_by_name(write, name):
    with pytest.raises(DataError, match=f":1: {name}: .*data.columns={{my_{name}: {name}}}"):
        load(write, {"messages": TALK, name: ["x"]})
    load(write, {"messages": TALK, name: None})


@pytest.mark.parametrize("name", of(ROW_KEYS, PASSED))
def test_a_column_that_changes_nothing_reaches_reward_functions(write, name):
    (item, _) = load(write, {"prompt": "Q", name: "x"}, PromptData).train_items
    assert item.row == {"prompt": "Q", name: "x"}


@pytest.mark.parametrize("name", of(ROW_KEYS, FOLLOWED))
def test_a_column_that_is_followed_stands_in_an_example_of_what_is_taken(name):
    known = {"margin": "test_pairs_become_two_ranks", "subset": "test_reward"}  # tests of the loss and of the metrics
    assert name in known or any(name in row for row in EXAMPLES)


@pytest.mark.parametrize("name", of(MESSAGE_KEYS, REFUSED))
def test_a_key_of_a_message_that_is_not_followed_is_refused_by_name(write, name):
    with pytest.raises(DataError, match=rf":1: messages\[1\].{name}: "):
        load(write, {"messages": [Q, A | {name: "x"}]})
    load(write, {"messages": [Q, A | {name: None}]})


@pytest.mark.parametrize("name", of(MESSAGE_KEYS, PASSED))
def test_a_key_of_a_message_that_is_passed_on_reaches_the_template(write, name):
    template = "{% for m in messages %}{{ m.role + m.content }}{% if m.KEY %}[{{ m.KEY }}]{% endif %}{% endfor %}"
    template = template.replace("KEY", name)
    data = load(write, {"messages": [Q, A | {name: "x"}]}, template=template)
    assert data.tokenizer.decode(data.train_items[0].input_ids) == "userQassistantA[x]</s>"


@pytest.mark.parametrize("name", of(MESSAGE_KEYS, FOLLOWED))
def test_a_key_of_a_message_that_is_followed_stands_in_an_example_of_what_is_taken(name):
    if name == "training":
        name = "train"  # another name of the same
    assert re.search(f"'{name}'", str(EXAMPLES))


@pytest.mark.parametrize("table", [ROW_KEYS, MESSAGE_KEYS])
def test_the_page_shows_the_tables(table):
    lines = {}
    for name, use in table.items():
        lines.setdefault((use.what, use.how), []).append(f"`{name}`")
    for (what, how), names in lines.items():
        assert f"| {', '.join(names)} | {what}: {how} |" in DOCS


def test_the_page_shows_what_looks_like_a_prompt():
    assert f"{', '.join(f'`{name}`' for name in sorted(PROMPT_LIKE))}" in DOCS.replace("\n", " ")
