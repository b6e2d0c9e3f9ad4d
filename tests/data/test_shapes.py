"""Rows as well-known sets and other tools write them: the text a stage learns from them, or why it does not.

In the expected text «» is around what is learned. The tokenizer has a token for each character.
"""

import json
import re

import pytest

from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.errors import DataError
from tests.data.conftest import build_tokenizer
from tests.support.known_sets import (
    ONE,
    PAIR,
    REFUSED_SETS,
    SYSTEM,
    TAKEN_SETS,
    A,
    B,
    Q,
    kto,
    pairs,
    ppo,
    say,
    sft,
    turn,
)  # fmt: skip

TEMPLATE = """\
{% if tools %}[{% for t in tools %}{{ t.function.name }}{% endfor %}]{% endif -%}
{% if mood %}({{ mood }}){% endif %}{% if enable_thinking %}(think){% endif -%}
{% for d in documents or [] %}#{{ d.text }}#{% endfor -%}
{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content -}}
{% for c in m.tool_calls or [] %}@{{ c.function.name -}}
{% for k, v in c.function.arguments.items() %}.{{ k }}={{ v }}{% endfor %}{% endfor %}</s>{% endfor -%}
{% if add_generation_prompt %}<assistant>{% endif %}"""


S = turn("system", "S")
TALK = [Q, A]
CALL = {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"x": None}}}
ALPACA = {"instruction": "Do", "input": "", "output": "A"}

TAKEN = [
    # our own
    (sft, {"prompt": "Q ", "completion": "A"}, ["Q «A</s>»"]),
    (sft, {"text": "abc"}, ["a«bc</s>»"]),
    (sft, {"messages": TALK}, ONE),
    (sft, {"prompt": [Q], "completion": [A]}, ONE),
    (pairs, {"prompt": "Q ", "chosen": "A", "rejected": "B"}, ["Q «A</s>»", "Q «B</s>»"]),
    (pairs, {"prompt": "Q ", "completions": ["A", "B"], "ranks": [2, 1]}, ["Q «B</s>»", "Q «A</s>»"]),
    (pairs, {"prompt": "Q ", "completions": ["A", "B"], "ranks": [1, 0]}, ["Q «B</s>»", "Q «A</s>»"]),
    (kto, {"prompt": "Q ", "completion": "A", "label": True}, ["Q «A</s>» True"]),
    (ppo, {"prompt": "Q"}, ["Q"]),
    (ppo, {"prompt": [Q]}, ["<user>Q</s><assistant>"]),
    # Alpaca and its kin in LLaMA-Factory
    (sft, ALPACA, ["<user>Do</s><assistant>«A</s>»"]),
    (sft, ALPACA | {"input": "it", "text": "### Do it\nA"}, ["<user>Do\nit</s><assistant>«A</s>»"]),
    (sft, ALPACA | {"system": "S"}, ["<system>S</s><user>Do</s><assistant>«A</s>»"]),
    (sft, ALPACA | {"history": [["Q", "B"]]}, ["<user>Q</s><assistant>B</s><user>Do</s><assistant>«A</s>»"]),
    (pairs, {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, PAIR),
    (kto, ALPACA | {"kto_tag": False}, ["<user>Do</s><assistant>«A</s>» False"]),
    (ppo, ALPACA, ["<user>Do</s><assistant>"]),
    # ShareGPT
    (sft, {"conversations": [say("human", "Q"), say("gpt", "A")]}, ONE),
    (sft, {"conversations": [say("system", "S"), say("human", "Q"), say("gpt", "A")]}, SYSTEM),
    (sft, {"conversation": TALK}, ONE),
    (sft, {"conversations": [say("human", "Q"), say("gpt", "A")], "system": "S"}, SYSTEM),
    (pairs, {"conversations": [say("human", "Q")], "chosen": say("gpt", "A"), "rejected": say("gpt", "B")}, PAIR),
    (kto, {"conversations": [say("human", "Q"), say("gpt", "A")], "kto_tag": True}, [ONE[0] + " True"]),
    (ppo, {"conversations": [say("human", "Q")]}, ["<user>Q</s><assistant>"]),
    (
        sft,
        {"conversations": [say("human", "Q"), say("function_call", '{"name": "add", "arguments": {"x": 1}}'),
                           say("observation", "2"), say("gpt", "A")], "tools": json.dumps([TOOL])},
        ["[add]<user>Q</s><assistant>«@add.x=1</s>»<tool>2</s><assistant>«A</s>»"],
    ),
    # preference sets
    (pairs, {"prompt": "Q", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A], "score_chosen": 8.0}, PAIR),
    (pairs, {"prompt": "Q", "chosen": [A], "rejected": [B]}, PAIR),
    (pairs, {"prompt": [Q], "chosen": [Q, A], "rejected": [Q, B]}, PAIR),
    (pairs, {"chosen": [Q, A], "rejected": [Q, B]}, PAIR),
    (pairs, {"chosen_messages": [Q, A], "rejected_messages": [Q, B]}, PAIR),
    (pairs, {"system": "", "question": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    (pairs, {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
     [f"<system>S</s>{text}" for text in PAIR]),
    (pairs, {"system": "S", "chosen": [Q, A], "rejected": [Q, B]}, [f"<system>S</s>{text}" for text in PAIR]),
    (pairs, {"input": {"messages": [Q], "tools": [TOOL], "parallel_tool_calls": True}, "preferred_output": [A],
             "non_preferred_output": [B]}, [f"[add]{text}" for text in PAIR]),
    (pairs, {"prompt": "Q ", "completions": ["B", "A"], "scores": [2, 9.5]}, ["Q «A</s>»", "Q «B</s>»"]),
    (pairs, {"prompt": [Q], "completions": [[A], [B]], "ranks": [1, 2]}, PAIR),
    (pairs, {"chosen": "\n\nHuman: Q\n\nAssistant: I A", "rejected": "\n\nHuman: Q\n\nAssistant: I B"},
     ["\n\nHuman: Q\n\nAssistant:« I A</s>»", "\n\nHuman: Q\n\nAssistant:« I B</s>»"]),
    (ppo, {"chosen": "\n\nHuman: Q\n\nAssistant: I A", "rejected": "\n\nHuman: Q\n\nAssistant: I B"},
     ["\n\nHuman: Q\n\nAssistant:"]),
    (ppo, {"chosen": [Q, A], "rejected": [Q, B]}, ["<user>Q</s><assistant>"]),
    (kto, {"messages": TALK, "label": True}, [ONE[0] + " True"]),
    (kto, {"messages": [Q, A, Q, B], "label": "false"},
     ["<user>Q</s><assistant>A</s><user>Q</s><assistant>«B</s>» False"]),
    # verl, OpenAI, Anthropic
    (ppo, {"data_source": "x", "prompt": [Q], "ability": "math", "reward_model": {"ground_truth": "4"}},
     ["<user>Q</s><assistant>"]),
    (ppo, {"messages": [Q], "reference_answer": "A"}, ["<user>Q</s><assistant>"]),
    (sft, {"messages": [Q, B | {"weight": 0}, Q, A | {"weight": 1}]},
     ["<user>Q</s><assistant>B</s><user>Q</s><assistant>«A</s>»"]),
    (sft, {"messages": [Q, A | {"train": True}, Q, B | {"train": False}]},
     ["<user>Q</s><assistant>«A</s>»"]),
    (sft, {"system": "S", "messages": TALK}, SYSTEM),
    (sft, {"messages": [S, Q, A], "system": "S"}, SYSTEM),
    (sft, {"messages": [turn("user", [{"type": "text", "text": "Q"}]), A]}, ONE),
    (sft, {"messages": [Q, turn("assistant", None, tool_calls=[CALL]), turn("tool", "2", tool_call_id="1"), A],
           "tools": [TOOL]}, ["[add]<user>Q</s><assistant>«@add.x=1</s>»<tool>2</s><assistant>«A</s>»"]),
    (sft, {"messages": [Q, turn("assistant", None, function_call={"name": "add", "arguments": "{}"})],
           "functions": [TOOL["function"]]}, ["[add]<user>Q</s><assistant>«@add</s>»"]),
    (sft, {"messages": [Q, turn("assistant", "A", reasoning_content="R")]}, ["<user>Q</s><assistant>«[R]A</s>»"]),
    (sft, {"messages": TALK, "chat_template_kwargs": {"mood": "glad"}}, ["(glad)" + ONE[0]]),
    (sft, {"messages": TALK, "enable_thinking": True}, ["(think)" + ONE[0]]),
    (ppo, {"prompt": [Q], "documents": [{"text": "D"}], "tools": json.dumps([TOOL])},
     ["[add]#D#<user>Q</s><assistant>"]),
    # written as text, or column by column, on their way to a file
    (sft, {"messages": json.dumps(TALK)}, ONE),
    (sft, {"messages": str(TALK)}, ONE),
    (sft, {"messages": "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]"}, ONE),
    (sft, {"messages": [json.dumps(Q), json.dumps(A)]}, ONE),
    (sft, {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}, ONE),
    (sft, {"text": json.dumps(TALK)}, ONE),
    (sft, {"prompt": json.dumps([Q]), "completion": str([A])}, ONE),
    (pairs, {"chosen": str([Q, A]), "rejected": json.dumps([Q, B])}, PAIR),
    (pairs, {"prompt": "Q ", "completions": '["A", "B"]', "ranks": "[1, 2]"}, ["Q «A</s>»", "Q «B</s>»"]),
    (ppo, {"prompt": "[1, 2] is a list"}, ["[1, 2] is a list"]),
    (sft, {"messages": [turn("User", "Q"), turn("model", "A")]}, ONE),
    *TAKEN_SETS,
]  # fmt: skip

SHAPED = [
    (sft, {"question": "Q ", "answer": "A"}, {"columns": {"prompt": "question", "completion": "answer"}},
     ["Q «A</s>»"]),
    (sft, {"Prompt": "Q ", "completion": "A"}, {"columns": {"prompt": "Prompt"}}, ["Q «A</s>»"]),
    (sft, {"prompt": "Q ", "completion": "A"}, {"columns": {"prompt": "question"}}, ["Q «A</s>»"]),  # as we wrote it
    (sft, {"question": "Q", "context": "C", "answer": "A"},
     {"columns": {"completion": "answer"}, "prompt_template": "{context}\\n{{{question}}}:"}, ["C\n{Q}:«A</s>»"]),
    (ppo, {"question": "Q", "answer": "4"}, {"prompt_template": "{question} ="}, ["Q ="]),
    (ppo, {"question": "Q"}, {"columns": {"prompt": "question", "completion": "answer"}}, ["Q"]),  # of other files
    (pairs, {"question": "Q ", "good": "A", "bad": "B"},
     {"columns": {"prompt": "question", "completion": "answer", "chosen": "good", "rejected": "bad"}},
     ["Q «A</s>»", "Q «B</s>»"]),
    (sft, {"messages": [turn("guest", "Q"), turn("agent", "A")]},
     {"roles": {"user": "guest", "assistant": ["agent", "bot"]}}, ONE),
    (sft, {"messages": [Q, turn("critic", "C"), A]}, {"roles": {"critic": "critic"}},
     ["<user>Q</s><critic>C</s><assistant>«A</s>»"]),
    (sft, {"messages": TALK, "weight": 2}, {"columns": {"my_weight": "weight"}}, ONE),
]  # fmt: skip

REFUSED = [
    (sft, {"question": "Q", "answer": "A"}, "columns answer, question are no known row type; .* set data.columns="
     "{prompt: question, completion: answer}"),
    (sft, {"Prompt": "Q", "Completion": "A"}, "set data.columns={prompt: Prompt, completion: Completion}"),
    (sft, {"prompt": "Q", "response": "A"}, "set data.columns={completion: response}"),
    (sft, {"ticket": "Q", "note": "A"}, "say which column is which: data.columns={prompt: COLUMN, completion: COLUMN}"),
    (pairs, {"ticket": "Q", "a": "A", "b": "B"}, "data.columns={prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}"),
    (pairs, {"prompt": "Q", "chosen_response": "A", "rejected_response": "B"},
     "set data.columns={chosen: chosen_response, rejected: rejected_response}"),
    (sft, {"data": [{"prompt": "Q"}]}, "if its data are the rows, write that list as a file"),
    (pairs, {"question": "Q", "prompt": "P", "chosen": "A", "rejected": "B"},
     "question: looks like a part of the prompt"),
    (pairs, {"context": "C", "chosen": "x A", "rejected": "x B"}, "context: looks like a part of the prompt"),
    (sft, {"prompt": "P", "messages": TALK}, "prompt: looks like a part of the prompt"),
    (pairs, {"prompt": "P", "chosen": [Q, A], "rejected": [Q, B]},
     "prompt: is not what chosen and rejected both begin with"),
    (pairs, {"prompt": "Q ", "completions": ["A", "B"], "ranks": [9, 2]},
     "ranks: holds 9 for 2 .*call the column scores"),
    (pairs, {"prompt": "Q ", "completions": ["A", "B"], "ranks": [0, 2]},
     "ranks: holds 2 for 2 completions; 0 is best and 1"),
    (pairs, {"prompt": "Q ", "completions": ["A", "B"], "ranks": [1, 2], "scores": [1, 2]},
     "scores: say something else"),
    (sft, {"messages": [turn("user", [{"type": "image_url", "image_url": "x"}]), A]},
     r"messages\[0\].content\[0\]: a part of type image_url"),
    (sft, {"messages": [Q, turn("assistant", None)]}, r"messages\[1\].content: is null"),
    (sft, {"messages": [turn("critic", "Q"), A]},
     r"messages\[0\].role: 'critic' is none of .*data.roles={user: critic}"),
    (sft, {"messages": [Q, A | {"weight": 0.5}]}, r"messages\[1\].weight: is 0.5; write 1"),
    (sft, {"messages": [Q, A | {"weight": 0}]}, "every turn of the assistant has weight 0"),
    (sft, {"messages": [Q | {"train": True}, A]}, r"messages\[0\].train: only turns of the assistant are learned"),
    (sft, {"messages": "[{'role': 'user', 'content': 'Q'"},
     "messages: is a conversation that was written as text, and"),
    (sft, {"prompt": "Q", "completion": '{"role": "assistant", "content": "A'},
     "completion: is a conversation that was"),
    (sft, {"prompt": "Q ", "completion": "A", "tools": [TOOL]}, "tools: is for a chat template, but the row is text"),
    (sft, {"prompt": "Q ", "completion": "A", "label": False}, "label: is false"),
    (sft, {"text": "A", "message_id": "1", "parent_id": "0", "role": "assistant"},
     "parent_id: the row is a node of a tree"),
    (sft, {"instruction": "I", "output": "A", "text": "other"}, "text: is another example"),
    (sft, {"messages": [S, Q, A], "system": "T"}, "system: differs from the system turn in messages"),
    (pairs, {"input": {"messages": [Q], "store": 1}, "preferred_output": [A], "non_preferred_output": [B]},
     "input.store"),
    (
        pairs,
        {"input": {"messages": [Q]}, "parallel_tool_calls": 0, "preferred_output": [A], "non_preferred_output": [B]},
        "parallel_tool_calls: it is no part of what the chat template writes",
    ),
    (pairs, {"instruction": "Q", "input": ["x"], "chosen": "A", "rejected": "B"}, "input: is a list; beside an answer"),
    (ppo, {"messages": TALK}, "found a messages row, which is for supervised fine-tuning"),
    (sft, {"messages": TALK, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize: is not for"),
    *REFUSED_SETS,
]  # fmt: skip

MODULES = {sft: DemonstrationData, pairs: ComparisonData, kto: FeedbackData, ppo: PromptData}


@pytest.fixture(scope="module")
def tokenizer():
    found = build_tokenizer(TEMPLATE)
    found.add_tokens(list("«»"))
    return found


def learned(tokenizer, ids, mask):
    """The text, with «» around what is learned."""
    text, before = "", False
    for token, on in zip(ids, mask, strict=True):
        text += ("«" if on and not before else "»" if before and not on else "") + tokenizer.decode([token])
        before = on
    return text + ("»" if before else "")


def spelled(tokenizer, kind, items):
    for item in items:
        if kind == sft:
            yield learned(tokenizer, item.input_ids, item.mask)
        elif kind == kto:
            mask = [False] * len(item.example.prompt_ids) + item.example.completion_mask
            yield f"{learned(tokenizer, item.example.input_ids, mask)} {item.desirable}"
        elif kind == ppo:
            yield tokenizer.decode(item.ids)
        else:
            masks = item.masks or [[True] * length for length in item.lengths]
            pairs_of = zip(item.sequences, masks, strict=True)
            rows = [learned(tokenizer, s, [False] * (len(s) - len(m)) + m) for s, m in pairs_of]
            yield from (row for _, row in sorted(zip(item.ranks, rows, strict=True)))


def texts(tokenizer, kind, path, **shape):
    options = {"batch_size": 2, "validation_fraction": 0.0, "shape": Shape(**shape)}
    data = MODULES[kind](path, None, tokenizer, **options)
    data.setup("validate")
    return list(spelled(tokenizer, kind, data.train_items))


def test_the_lists_are_as_long_as_they_should_be():
    assert len(TAKEN) + len(SHAPED) + len(REFUSED) >= 150


@pytest.mark.parametrize(("kind", "row", "shape", "expected"), [*((k, r, {}, e) for k, r, e in TAKEN), *SHAPED])
def test_the_row_is_taken_with_these_tokens_and_this_mask(tokenizer, write, kind, row, shape, expected):
    assert texts(tokenizer, kind, write([row, row]), **shape) == expected * 2


@pytest.mark.parametrize(("kind", "row", "says"), REFUSED)
def test_the_row_is_refused_with_file_line_column_and_remedy(tokenizer, write, kind, row, says):
    good = next(good for k, good, _ in TAKEN if k == kind)
    path = write([good, row])
    with pytest.raises(DataError) as refused:
        texts(tokenizer, kind, path)
    message = str(refused.value)
    assert message.startswith(f"{path}:2: ") and len(message) < 600
    assert re.search(says.replace("{", r"\{").replace("}", r"\}"), message), message


@pytest.mark.parametrize(
    ("row", "shape", "says"),
    [
        ({"q": "Q"}, {"columns": {"prompt": "question"}}, "data.columns: there is no column 'question'"),
        ({"q": "Q", "prompt": "P"}, {"columns": {"prompt": "q"}}, "prompt is to be 'q', but there is a column prompt"),
        ({"q": "Q"}, {"prompt_template": "{question}"}, "data.prompt_template: there is no column 'question'"),
        ({"q": "Q", "prompt": "P"}, {"prompt_template": "{q}"}, "does not use the prompt of the row"),
        ({"q": [1]}, {"prompt_template": "{q}"}, "q is a list; only text can be filled in"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(tokenizer, write, row, shape, says):
    with pytest.raises(DataError, match=f":1: .*{re.escape(says)}"):
        texts(tokenizer, ppo, write([row, row]), **shape)


@pytest.mark.parametrize(
    ("kind", "row", "expected", "counts"),
    [
        (pairs, {"prompt": [Q], "completions": [[A], [B], [A]], "ranks": [1, 2, 3]}, PAIR, {"merged_answers": 1}),
        (pairs, {"prompt": [Q], "chosen": [A], "rejected": [turn("assistant", "A ")]}, [], {"indistinct": 1}),
        (pairs, {"prompt": [Q], "completions": [[A], [B]], "ranks": [1, 1]}, [], {"tied": 1}),
        (pairs, {"conversation_a": [Q, A], "conversation_b": [Q, B], "winner": "tie (bothbad)"}, [], {"tied": 1}),
        (kto, {"prompt": [Q], "chosen": [A], "rejected": [turn("assistant", "A ")]}, [], {"indistinct": 2}),
    ],
)
def test_answers_whose_tokens_are_the_same_teach_nothing_and_are_counted(write, kind, row, expected, counts):
    trims = build_tokenizer(TEMPLATE.replace("{{ m.content -}}", "{{ m.content | trim -}}"))
    other = {"prompt": [turn("user", "q")], "chosen": [A], "rejected": [B]}
    data = MODULES[kind](write([other, row]), None, trims, batch_size=2, validation_fraction=0.0)
    data.setup("validate")
    assert list(spelled(trims, kind, data.train_items))[2:] == expected
    assert {name: data.report[name] for name in counts} == counts
