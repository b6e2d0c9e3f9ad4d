import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]

# As SmolLM2 ships it: a default system prompt, no generation markers, a line end after each turn.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Markers around what the assistant wrote, but not around the token that ends the turn.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes BOS itself and no EOS, as Llama-like templates do.
WITH_BOS = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def build_tokenizer(template=None, *, bos=False, eos="</s>", pad="<pad>"):
    """One token a character, so that decoding gives back the text and positions can be counted by hand."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(SPECIAL + characters)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token=pad, unk_token="<unk>", name_or_path="tiny"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def make_tokenizer():
    return build_tokenizer


@pytest.fixture
def chatml():
    """Pad id and eos id are one, as in SmolLM2."""
    return build_tokenizer(CHATML, eos="<|im_end|>", pad="<|im_end|>")


@pytest.fixture
def templates():
    return {"chatml": CHATML, "marked": MARKED, "with_bos": WITH_BOS}


@pytest.fixture
def write(tmp_path):
    """Write rows as JSONL (or text or bytes as they are) and return the path."""

    def write_file(content, name="rows.jsonl"):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
