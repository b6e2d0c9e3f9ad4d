"""Cases 60 and 70: chat templates and tokenizers that are programs against their user, in a run's own process."""

import contextlib
import json
import logging
import resource
import signal
import socket
import threading
import time

import huggingface_hub
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
from rlhf_lightning.data.chat import encode_prompts
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.errors import CheckpointError, DataError, TemplateFault
from rlhf_lightning.models import Pretrained, templates
from rlhf_lightning.models.templates import render
from rlhf_lightning.models.tokens import TokenizerFault, decode, encode
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from tests.support import hostile_content, tiny

ROW = {"prompt": [{"role": "user", "content": "the food"}]}
GOOD = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nested_loops": NESTED,
    "a_loop_that_filters": "{{ range(99999) | map('string') | join | length }}" * 2 + NESTED,
    "in_a_macro": "{% macro f() %}" + NESTED + "{% endmacro %}{{ f() }}",
    "a_power": "{{ 7 ** (7 ** (7 + messages | length)) }}",
}
BLOATED = {
    "repeated": "{{ 'x' * (10 ** 10) }}",
    "formatted": "{{ '%9999999999d' % 1 }}",
    "format_method": "{{ '{:>9999999999}'.format('x') }}",
    "centred": "{{ 'x' | center(10 ** 10) }}",
    "a_list": "{{ ([0] * (10 ** 10)) | length }}",
    "doubled": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "grown": "{% set n = namespace(x=['x']) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "indented": "{{ ('x\n' * 100000) | indent(10 ** 6) }}",
}
LONG = {"written": "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "one_string": "{{ 'x' * 20000000 }}"}
REFUSING = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no_reason": "{{ raise_exception('') }}",
    "json": "{{ [1].append(2) | tojson }}{{ messages | map(attribute='x.y.z') | list | tojson }}{{ cycler | tojson }}",
    "a_clock": "{{ strftime_now(7) }}",
    "syntax": "{% for %}",
    "brackets": "{{ " + "(" * 500 + ")" * 500 + " }}",
}


def with_template(template, name="their/model"):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template, tokenizer.name_or_path = template, name
    return tokenizer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.3)


@pytest.fixture(autouse=True)
def untouched():
    """Limits, timer and handler are as before, whatever the template did."""

    def state():
        timer = signal.getitimer(signal.ITIMER_VIRTUAL)[0]
        return resource.getrlimit(resource.RLIMIT_AS), timer, signal.getsignal(signal.SIGVTALRM)

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("name", ENDLESS)
def test_case_60_a_chat_template_without_end_is_interrupted_and_named(quick, name):
    began = time.process_time()
    with pytest.raises(TemplateFault, match="template of tokenizer 'their/model' took more than 0 s of processor time"):
        render(with_template(ENDLESS[name]), ROW["prompt"])
    assert time.process_time() - began < 3


@pytest.mark.parametrize("name", BLOATED)
def test_case_60_a_chat_template_that_wants_all_memory_is_stopped_and_named(monkeypatch, name):
    monkeypatch.setattr(templates, "MEMORY", 2**27)
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateFault, match=r"template of tokenizer 'their/model' took more than [\d,]+ bytes"):
        render(with_template(BLOATED[name]), ROW["prompt"])
    assert time.process_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**18  # KiB


@pytest.mark.parametrize("name", LONG)
def test_case_60_a_chat_template_that_writes_without_bound_is_refused(name):
    with pytest.raises(TemplateFault, match=r"'their/model' wrote [\d,]+ characters for one conversation"):
        render(with_template(LONG[name]), ROW["prompt"])


@pytest.mark.parametrize("name", REFUSING)
def test_case_60_a_chat_template_that_fails_gives_a_reason_even_where_it_has_none(name):
    with pytest.raises(DataError, match=r"(?s)'their/model' refuses the messages: \S+") as refused:
        render(with_template(REFUSING[name]), ROW["prompt"])
    assert not isinstance(refused.value, TemplateFault)


def test_case_60_the_row_that_a_template_hangs_on_is_named_whatever_the_budget(quick, tmp_path):
    file = tmp_path / "prompts.jsonl"
    row = '{"prompt": [{"role": "user", "content": "%s"}]}\n'
    file.write_text(row % "the" * 1000 + row % "bad" + row % "the")
    slow = "{% if messages[0]['content'] == 'bad' %}" + NESTED + "{% endif %}" + GOOD
    data = PromptData(file, None, with_template(slow), batch_size=2, validation_fraction=0.0, max_bad_rows=9)
    with pytest.raises(TemplateFault, match=r"prompts\.jsonl:1001: the chat template of tokenizer 'their/model' took"):
        data.setup("fit")


def test_case_60_many_turns_share_the_time_of_their_conversation(quick, tmp_path):
    turns = [{"role": role, "content": "the food " * 50} for role in ("user", "assistant")] * 2000
    with pytest.raises(TemplateFault, match=r"rows\.jsonl:1: .* took more than 0 s"):
        demonstrations(with_template(GOOD), tmp_path, {"messages": turns}).setup("fit")


def demonstrations(tokenizer, folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DemonstrationData(file, None, tokenizer, batch_size=1, validation_fraction=0.0)


def test_case_60_marked_templates_and_reward_models_are_bounded_as_well(quick, tmp_path):
    marked = with_template("{% generation %}" + NESTED + "{% endgeneration %}")
    messages = [*ROW["prompt"], {"role": "assistant", "content": "was good"}]
    with pytest.raises(TemplateFault, match=r"rows\.jsonl:1: .*their/model"):
        demonstrations(marked, tmp_path, {"messages": messages}).setup("fit")
    scorer = RewardModelScorer.__new__(RewardModelScorer)
    scorer.tokenizer = with_template(NESTED)
    with pytest.raises(TemplateFault, match="their/model"):
        scorer._ids(ROW["prompt"], "was good")


def test_case_60_outside_of_the_main_thread_memory_and_time_are_left_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(render(with_template(GOOD), ROW["prompt"])))
    thread.start()
    thread.join()
    assert found == ["the food "]


EXPLODES = Regex(r"(a|a|aa)+$")  # the expression gives up, and the library with it, on many a and then b
BAD = "a" * 40 + "b"


def exploding(**parts):
    """A tokenizer of which a part fails on some texts."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *tiny.WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = parts.get("pre_tokenizer") or pre_tokenizers.WhitespaceSplit()
    for name in parts.keys() & {"normalizer", "decoder"}:
        setattr(inner, name, parts[name])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.name_or_path = "their/model"
    return made


BROKEN = {
    "expression": {"pre_tokenizer": pre_tokenizers.Split(EXPLODES, "isolated")},
    "normaliser": {"normalizer": normalizers.Replace(EXPLODES, "x")},
}
KINDS = {
    PromptData: {"prompt": "{}"},
    DemonstrationData: {"prompt": "the", "completion": "{}"},
    ComparisonData: {"prompt": "the", "chosen": "{}", "rejected": "bad"},
    FeedbackData: {"prompt": "the", "completion": "{}", "label": True},
}


@pytest.mark.parametrize(("kind", "part"), [*((kind, "expression") for kind in KINDS), (PromptData, "normaliser")])
def test_case_70_a_row_that_a_tokenizer_explodes_on_is_named_or_left_out_and_counted(tmp_path, caplog, kind, part):
    file = tmp_path / "rows.jsonl"
    texts = ["good", "food", BAD, "was slow", BAD, "kind"]
    rows = [{k: text if v == "{}" else v for k, v in KINDS[kind].items()} for text in texts]
    if kind is FeedbackData:
        rows[0] |= {"label": False}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(bad):
        made = exploding(**BROKEN[part])
        return kind(file, None, made, batch_size=2, validation_fraction=0.0, max_bad_rows=bad)

    says = r"rows\.jsonl:[35]: tokenizer 'their/model' cannot encode the text \(PanicException: .*retry-limit"
    with pytest.raises(DataError, match=says):
        data(0).setup("fit")
    with pytest.raises(DataError, match=r"(?s)rows\.jsonl:3: .*rows\.jsonl:5: .*\(max_bad_rows is 1\)"):
        data(1).setup("fit")
    with caplog.at_level(logging.WARNING):
        left = data(2)
        left.setup("fit")
    assert left.report["bad_rows"] == 2 and left.report["train_rows"] == 4
    assert "rows.jsonl:3" in caplog.text and "rows.jsonl:5" in caplog.text


def test_case_70_ids_that_a_tokenizer_cannot_turn_into_text_end_with_its_name():
    broken = exploding(decoder=decoders.Strip(".", 5, 5))
    with pytest.raises(TokenizerFault, match="their/model' cannot decode ids") as failed:
        decode(broken, [[3], [3, 4], [5, 16], [6]])
    assert failed.value.index == 2


@pytest.mark.parametrize("ids", [[-1], [2**40], ["x"]])
def test_case_70_ids_that_are_none_are_an_error_of_the_tokenizer(ids):
    with pytest.raises(TokenizerFault, match="cannot decode ids"):
        decode(exploding(), [[3], ids])


def test_case_70_half_an_emoji_from_a_template_is_named():
    with pytest.raises(DataError, match=r"f:1: tokenizer 'their/model' cannot encode the text \((Type|Unicode)"):
        encode_prompts(with_template("{{ '\\ud83d' }}"), [LocatedRow(ROW, "f", 1)])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_tokenizer_is_not_blamed_for_the_end_of_the_run(monkeypatch, stop):
    class Stops(PreTrainedTokenizerFast):
        def __call__(self, *given, **options):
            raise stop

    stops = Stops(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(stop):
        encode(stops, ["the"])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    tiny.policy().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def attempts(monkeypatch):
    """Every try to open an address, while the libraries believe that they are connected."""
    found = []

    def refuse(*given, **options):
        found.append(given)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between one try and the next
    return found


def test_the_attempts_of_the_libraries_would_be_seen(attempts):
    with pytest.raises(CheckpointError):
        Pretrained("evil/model").tokenizer()
    assert attempts


@pytest.mark.parametrize("spoil", hostile_content.MODELS, ids=lambda spoil: spoil.__name__)
def test_case_64_a_model_folder_of_a_stranger_opens_no_address_and_changes_nothing(good, tmp_path, attempts, spoil):
    folder = hostile_content.surroundings(tmp_path, good)
    spoil(folder)
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    recipe = Pretrained(str(folder))
    for load in (recipe.tokenizer, recipe.causal_lm, lambda: recipe.reward_model(init_head=True)):
        with contextlib.suppress(CheckpointError):
            made = load()
            assert "SECRET" not in str(getattr(made, "chat_template", ""))
            assert not [name for name, _ in getattr(made, "named_parameters", list)() if "lora" in name]
            if getattr(made, "chat_template", None):
                with contextlib.suppress(DataError):
                    assert "SECRET" not in render(made, ROW["prompt"])
    assert attempts == []
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("spoil", hostile_content.DATA, ids=lambda spoil: spoil.__name__)
def test_case_64_rows_of_a_stranger_open_no_address_and_change_nothing(tmp_path, attempts, spoil):
    folder = tmp_path / "rows"
    folder.mkdir()
    spoil(folder)
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with contextlib.suppress(DataError):
        data = PromptData(folder, None, with_template(GOOD), batch_size=1, validation_fraction=0.0)
        data.setup("fit")
        next(iter(data.train_dataloader()))
    assert attempts == []
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
