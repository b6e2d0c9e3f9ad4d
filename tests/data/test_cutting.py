"""Whatever tokenizer and template, the tokens of an example are those of the whole text, cut where answers are."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data.chat import encode_example, encode_prompt
from rlhf_lightning.data.cutting import encode_cut
from rlhf_lightning.data.rows.turns import learned_places
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import render
from tests.support.examples import few_examples

SPECIAL = ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
LETTERS = "abcdefghij .:\n"
MERGED = ["ab", "abc", "cd", ": ", " a", " ab", "\n\n", ".\n", "b:", "ij"]


def pieces(space):
    """Letters and some that belong together, a space written as the tokenizer writes it."""
    return [piece.replace(" ", space) for piece in [*LETTERS, *MERGED]]


def vocabulary(space):
    return {piece: number for number, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces(space), space]))}


def bpe(space, wanted):
    """A vocabulary and merges that end in the wanted pieces."""
    merges = []
    known = set(pieces(space)) | {space}
    for piece in wanted:
        piece = piece.replace(" ", space)
        merges += [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in known and piece[i:] in known][
            :1
        ]
    return models.BPE(vocabulary(space), merges, unk_token="<unk>")


def byte_level(prefix=False):
    core = Tokenizer(models.BPE(*_byte_vocabulary()))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    return core


def _byte_vocabulary():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [("a", "b"), ("Ġ", "a"), ("Ġa", "b"), (":", "Ġ"), ("Ċ", "Ċ"), (".", "Ċ")]
    names = [*SPECIAL, *letters, *("".join(pair) for pair in merged)]
    return {name: number for number, name in enumerate(names)}, merged


def llama(scheme):
    """Llama 2's kind: ``▁`` for a space and in front of a text, by the normaliser or the pre-tokeniser."""
    core = Tokenizer(bpe("▁", MERGED))
    if scheme == "normalised":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return core


def unigram():
    scores = [(name, -1.0 * (1 + (number * 7) % 5) / len(name)) for name, number in vocabulary("▁").items()]
    core = Tokenizer(models.Unigram(scores, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return core


def word_pieces():
    names = [*SPECIAL, *LETTERS, *MERGED, *(f"##{piece}" for piece in [*LETTERS, *MERGED])]
    core = Tokenizer(models.WordPiece({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def characters():
    core = Tokenizer(models.WordLevel(vocabulary(" "), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return core


TOKENIZERS = {
    "byte level": byte_level,
    "byte level, space first": lambda: byte_level(prefix=True),
    "Llama 2": lambda: llama("normalised"),
    "Metaspace always": lambda: llama("always"),
    "Metaspace first": lambda: llama("first"),
    "Metaspace never": lambda: llama("never"),
    "unigram": unigram,
    "word pieces": word_pieces,
    "characters": characters,
}
_TURNS = "{% for m in messages %}"
_END = "{% endfor %}"
TEMPLATES = {  # in the manner of today's families, each much shorter
    "chatml": _TURNS + "<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n" + _END
    + "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
    "headers": "<s>" + _TURNS + "<|user|>{{ m.role }}<|user|>\n\n{{ m.content | trim }}<|end|>" + _END
    + "{% if add_generation_prompt %}<|user|>assistant<|user|>\n\n{% endif %}",
    "instructions": "<s>" + _TURNS + "{% if m.role == 'user' %}[a] {{ m.content }} [b]{% else %} {{ m.content }}</s>"
    "{% endif %}"
    + _END,
    "turns": _TURNS + "<|user|>{{ 'j' if m.role == 'assistant' else 'i' }}\n{{ m.content | trim }}<|end|>\n" + _END
    + "{% if add_generation_prompt %}<|user|>j\n{% endif %}",
    "words": _TURNS + "{{ m.role }}: {{ m.content }}\n" + _END + "{% if add_generation_prompt %}assistant: {% endif %}",
    "words without space": _TURNS + "{{ m.role }}:{{ m.content }}\n\n" + _END
    + "{% if add_generation_prompt %}assistant:{% endif %}",
    "marked": _TURNS + "<|user|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n" + _END
    + "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
    "marked, end outside": _TURNS + "<|user|>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}</s>" + _END
    + "{% if add_generation_prompt %}<|user|>assistant {% endif %}",
    "thinking cut from history": _TURNS + "<|user|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split(':')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>" + _END
    + "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
    "end only at the end": "<s>" + _TURNS + "<|{{ m.role }}|>{{ m.content }}" + _END
    + "{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}",
}  # fmt: skip


def made(name, template=None):
    core = TOKENIZERS[name]()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>", bos_token="<s>")
    tokenizer.chat_template = template and TEMPLATES[template]
    return tokenizer


TEXT = st.text(alphabet=LETTERS, min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=TEXT, completion=TEXT)
@few_examples
def test_prompt_and_completion_are_the_prompt_as_sampled_and_what_goes_on_there(name, prompt, completion):
    tokenizer = CACHE.setdefault(name, made(name))
    whole = tokenizer(prompt + completion, add_special_tokens=False).input_ids
    try:
        example = encode_example(tokenizer, {"prompt": prompt, "completion": completion})
    except DataError as error:
        assert "no token" in str(error)
        return
    assert example.prompt_ids == encode_prompt(tokenizer, prompt)
    if whole[: len(example.prompt_ids)] == example.prompt_ids:
        assert example.input_ids == [*whole, tokenizer.eos_token_id]
    elif name != "word pieces":  # which forget where there was white space
        assert tokenizer.decode(example.input_ids[:-1]) == tokenizer.decode(whole)


CACHE = {}
FAITHFUL = [name for name in TOKENIZERS if name != "word pieces"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_conversation_is_encoded_as_the_rendered_whole_and_learned_where_the_assistant_speaks(name, template):
    tokenizer = made(name, template)
    draw = random.Random(f"{name} {template}")

    def text():
        return "".join(draw.choices(LETTERS, k=draw.randint(1, 9))).strip() or "a"

    for _ in range(12):
        turns = [{"role": role, "content": text()} for role in ("user", "assistant") * draw.randint(1, 3)]
        whole = render(tokenizer, turns)
        _, places, marked = learned_places(tokenizer, turns, 0, {})
        example = encode_example(tokenizer, {"messages": turns})
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        head = tokenizer(whole[: places[0][0]], add_special_tokens=False).input_ids
        assert example.prompt_ids[: len(head)] == head
        if ids[: len(head)] == head:  # no token spans the end of the prompt
            assert ids[: len(example) - 1] == example.input_ids[:-1]
        learned = [i for i, on in zip(example.completion_ids, example.completion_mask, strict=True) if on]
        assert learned[-1] == tokenizer.eos_token_id and example.completion_mask[0]
        if name == "characters":  # where a token is a character, the mask can be told from the text
            expected = "".join(whole[start:end].removesuffix("<") for start, end in places)  # of a marker
            found = tokenizer.decode(learned)
            assert found.replace("</s>", "").rstrip() == expected.replace("</s>", "").rstrip()
        if name in FAITHFUL and ids[: len(head)] != head:
            kept = tokenizer.decode(example.input_ids).removesuffix("</s>")
            assert (
                kept.strip() == tokenizer.decode(ids)[: len(kept.strip())].strip()
                or kept in tokenizer.decode(ids) + " "
            )
        assert marked is template.startswith("marked")


@pytest.mark.parametrize("name", ["Llama 2", "Metaspace always", "unigram"])
def test_no_piece_gets_a_space_of_its_own(name):
    tokenizer = made(name, "words without space")
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant") * 2]
    example = encode_example(tokenizer, {"messages": turns})
    assert tokenizer.decode(example.input_ids).count(" ") == tokenizer.decode(
        tokenizer(render(tokenizer, turns), add_special_tokens=False).input_ids
    ).count(" ")
    text = encode_example(tokenizer, {"prompt": "abc:", "completion": "abc"})
    assert tokenizer.decode(text.input_ids) == "abc:abc</s>"


def test_a_tokenizer_that_knows_no_places_cuts_the_same(monkeypatch):
    tokenizer = made("byte level", "chatml")
    turns = [{"role": role, "content": "ab cd"} for role in ("user", "assistant") * 2]
    known = encode_example(tokenizer, {"messages": turns})
    monkeypatch.setattr("rlhf_lightning.data.cutting.encode_placed", lambda t, texts: [
        (t(text, add_special_tokens=False).input_ids, None) for text in texts])  # fmt: skip
    assert encode_example(tokenizer, {"messages": turns}) == known


def test_many_texts_are_cut_a_piece_at_a_time(monkeypatch):
    from rlhf_lightning.data.chat import encode_examples
    from rlhf_lightning.data.readers.files import LocatedRow

    tokenizer = made("byte level")
    rows = [LocatedRow({"prompt": f"ab {i} ", "completion": "cd"}, "f", i) for i in range(9)]
    together = encode_examples(tokenizer, rows)
    monkeypatch.setattr("rlhf_lightning.data.cutting._AT_ONCE", 2)
    assert encode_examples(tokenizer, rows) == together and len(together) == 9
    assert encode_cut(tokenizer, [], []) == []
