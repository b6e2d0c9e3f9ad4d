import logging

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data.chat import encode_example, encode_examples, encode_prompt, encode_prompts, shorten_prompt
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes!"}
TURNS = [USER, ASSISTANT, {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]


def spelled(tokenizer, example):
    """Prompt, completion, and the learned part of the completion, as text."""
    pairs = zip(example.completion_ids, example.completion_mask, strict=True)
    learned = [token for token, counts in pairs if counts]
    return tuple(tokenizer.decode(ids) for ids in (example.prompt_ids, example.completion_ids, learned))


def test_text_rows_end_with_eos_once(tokenizer):
    example = encode_example(tokenizer, {"prompt": "Q: ", "completion": "ok"})
    assert spelled(tokenizer, example) == ("Q: ", "ok</s>", "ok</s>")
    already = encode_example(tokenizer, {"prompt": "Q: ", "completion": "ok</s>"})
    assert already == example


def test_bos_stands_once_and_only_before_the_prompt(make_tokenizer):
    tokenizer = make_tokenizer(bos=True)
    assert spelled(tokenizer, encode_example(tokenizer, {"prompt": "Q", "completion": "a"}))[:2] == ("<s>Q", "a</s>")
    assert tokenizer.decode(encode_prompt(tokenizer, "Q")) == "<s>Q"
    assert tokenizer.decode(encode_prompt(tokenizer, "<s>Q")) == "<s>Q"
    assert spelled(tokenizer, encode_example(tokenizer, {"text": "abc"})) == ("", "<s>abc</s>", "<s>abc</s>")


def test_no_token_spans_prompt_and_completion():
    core = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert tokenizer("ab")["input_ids"] == [2]
    example = encode_example(tokenizer, {"prompt": "a", "completion": "b"})
    assert (example.prompt_ids, example.completion_ids) == (encode_prompt(tokenizer, "a"), [1, 3]) == ([0], [1, 3])


def test_conversation_with_pad_equal_to_eos_keeps_the_eos_as_last_learned_token(chatml):
    example = encode_example(chatml, {"prompt": [USER], "completion": [ASSISTANT]})
    head = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(chatml, example) == (head, "yes!<|im_end|>", "yes!<|im_end|>")
    assert example.prompt_ids == encode_prompt(chatml, [USER])
    assert example.completion_ids[-1] == chatml.eos_token_id == chatml.pad_token_id


def test_a_template_with_bos_and_no_eos_gets_one_of_each(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["with_bos"], bos=True)
    example = encode_example(tokenizer, {"prompt": [USER], "completion": [ASSISTANT]})
    assert spelled(tokenizer, example)[:2] == ("<s>user: hi\nassistant: ", "yes!\n</s>")
    assert tokenizer.decode(encode_prompt(tokenizer, [USER])) == "<s>user: hi\nassistant: "


@pytest.mark.parametrize("template", ["chatml", "marked"])
def test_every_assistant_turn_and_its_end_are_learned_with_and_without_markers(make_tokenizer, templates, template):
    tokenizer = make_tokenizer(templates[template], eos="<|im_end|>", pad="<|im_end|>")
    example = encode_example(tokenizer, {"messages": TURNS})
    prompt, completion, learned = spelled(tokenizer, example)
    assert learned == "yes!<|im_end|>so<|im_end|>"
    assert prompt.endswith("user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert completion == ("yes!<|im_end|>\n<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nso<|im_end|>")


def test_messages_and_prompt_completion_of_one_conversation_encode_alike(chatml):
    apart = encode_example(chatml, {"prompt": [USER], "completion": [ASSISTANT]})
    assert encode_example(chatml, {"messages": [USER, ASSISTANT]}) == apart
    assert encode_example(chatml, {"messages": [USER, ASSISTANT, USER]}) == apart


def test_assistant_turns_of_the_prompt_are_not_learned(chatml):
    example = encode_example(chatml, {"prompt": TURNS[:3], "completion": TURNS[3:]})
    assert spelled(chatml, example)[2] == "so<|im_end|>"


def test_a_generation_prompt_that_the_conversation_lacks_falls_back_to_the_turn_header(make_tokenizer, templates):
    thinking = templates["chatml"].replace("assistant\n' }}", "assistant\n<think>' }}")
    tokenizer = make_tokenizer(thinking, eos="<|im_end|>")
    learned = spelled(tokenizer, encode_example(tokenizer, {"messages": [USER, ASSISTANT]}))[2]
    assert learned == "<|im_start|>assistant\nyes!<|im_end|>"


def test_a_turn_that_is_rewritten_in_the_history_is_skipped_and_logged(make_tokenizer, caplog):
    template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' and not loop.last %}{{ 'cut' }}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    with caplog.at_level(logging.WARNING):
        example = encode_example(tokenizer, {"messages": TURNS})
    assert spelled(tokenizer, example)[2] == "so</s>"
    assert "1 assistant turns are rewritten" in caplog.text


def test_markers_around_nothing_do_not_make_an_empty_mask(make_tokenizer, templates):
    empty = templates["chatml"] + "{% generation %}{% endgeneration %}"
    tokenizer = make_tokenizer(empty, eos="<|im_end|>")
    learned = spelled(tokenizer, encode_example(tokenizer, {"messages": TURNS}))[2]
    assert learned == "yes!<|im_end|>so<|im_end|>"


def test_what_a_template_writes_only_at_the_end_of_a_conversation_does_not_hide_earlier_turns(make_tokenizer):
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% if loop.last and not add_generation_prompt %}"
        "{{ '</s>' }}{% else %}{{ '; ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    assert spelled(tokenizer, encode_example(tokenizer, {"messages": TURNS}))[2] == "yes!so</s>"


def test_a_template_that_hides_the_assistant_is_an_error_and_never_an_empty_mask(make_tokenizer):
    tokenizer = make_tokenizer("{{ messages | length }}")
    with pytest.raises(DataError, match=r"f:7: no assistant turn .* tokenizer 'tiny' .* generation %"):
        encode_examples(tokenizer, [LocatedRow({"messages": [USER, ASSISTANT]}, "f", 7)])


def test_messages_without_a_template_name_row_tokenizer_and_fix(tokenizer):
    for encode, row in (
        (encode_prompts, {"prompt": [USER]}),
        (encode_examples, {"messages": TURNS}),
        (encode_examples, {"prompt": [USER], "completion": [ASSISTANT]}),
    ):
        with pytest.raises(DataError, match=r"f:7: .*'tiny' has no chat template; .*instruct model"):
            encode(tokenizer, [LocatedRow(row, "f", 7)])


def test_a_conversation_that_the_template_refuses_is_named(make_tokenizer):
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"f:7: .*'tiny' refuses the messages: roles must alternate"):
        encode_prompts(tokenizer, [LocatedRow({"prompt": [USER, USER]}, "f", 7)])


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    with pytest.raises(DataError, match="'tiny' has no EOS token"):
        encode_example(make_tokenizer(eos=None), {"text": "a"})


def test_text_without_a_single_token_is_refused():
    words = Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", name_or_path="tiny")
    for row in ({"prompt": "a", "completion": "?"}, {"prompt": "?", "completion": "a"}, {"text": "?"}):
        with pytest.raises(DataError, match="no token of tokenizer 'tiny'"):
            encode_example(tokenizer, row)
    with pytest.raises(DataError, match="f:3: prompt: holds no token"):
        encode_prompts(tokenizer, [LocatedRow({"prompt": "?"}, "f", 3)])


def test_many_rows_of_all_kinds_encode_as_they_do_alone(chatml):
    rows = [
        {"prompt": "Q", "completion": "a"},
        {"messages": TURNS},
        {"text": "plain"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": "Q", "completion": "b"},
    ]
    together = encode_examples(chatml, [LocatedRow(row, "f", 1) for row in rows])
    assert together == [encode_example(chatml, row) for row in rows]


def test_shortening_takes_the_prompt_from_the_left_and_only_then_the_completion(tokenizer):
    example = encode_example(tokenizer, {"prompt": "abcd", "completion": "xy"})
    assert spelled(tokenizer, example.shortened(5, None))[:2] == ("cd", "xy</s>")
    assert spelled(tokenizer, example.shortened(4, None))[:2] == ("d", "xy</s>")
    assert spelled(tokenizer, example.shortened(3, None))[:2] == ("d", "xy")
    assert example.shortened(7, None) == example


@pytest.mark.parametrize(
    ("length", "bos", "kept"),
    [(4, 9, [9, 1, 2, 3]), (3, 9, [9, 2, 3]), (1, 9, [3]), (3, None, [1, 2, 3]), (3, 1, [1, 2, 3])],
)
def test_a_cut_prompt_keeps_its_tail_and_its_bos(length, bos, kept):
    assert shorten_prompt([9, 1, 2, 3], length, bos) == kept


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: why? A: greens", "Q: why? A: great", ("Q: why? A:", " greens", " great")),
        ("Q: why? A: yes", "Q: why? A: yes and no", ("Q: why? A:", " yes", " yes and no")),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", ("\n\nHuman: a\n\nAssistant:", " b", " c")),
        ("one two  x", "one two  y", ("one two", "  x", "  y")),
        ("\n\nAssistant: I am b", "\n\nAssistant: I am c", ("\n\nAssistant:", " I am b", " I am c")),
        (
            "a\nAssistant: b\nHuman: c\nAI:d e",
            "a\nAssistant: b\nHuman: c\nAI:d f",
            ("a\nAssistant: b\nHuman: c\nAI:", "d e", "d f"),
        ),
        ("[INST] a [/INST] the b", "[INST] a [/INST] the c", ("[INST] a [/INST]", " the b", " the c")),
        ("Write it.\nIt is a", "Write it.\nIt is b", ("Write it.", "\nIt is a", "\nIt is b")),
        ([USER, ASSISTANT], [USER, TURNS[3]], ([USER], [ASSISTANT], [TURNS[3]])),
        (TURNS, TURNS[:2], ([USER], TURNS[1:], [ASSISTANT])),
    ],
)
def test_the_implicit_prompt_is_what_both_answers_share_up_to_a_safe_boundary(chosen, rejected, expected):
    assert split_shared_prompt(chosen, rejected) == expected
    assert split_shared_prompt(rejected, chosen) == (expected[0], expected[2], expected[1])


@pytest.mark.parametrize(("chosen", "rejected"), [("great", "greens"), ("a", "b"), ([USER, ASSISTANT], [ASSISTANT])])
def test_answers_without_a_shared_beginning_need_a_prompt_column(chosen, rejected):
    with pytest.raises(DataError, match="add a prompt column"):
        split_shared_prompt(chosen, rejected)
