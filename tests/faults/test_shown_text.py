"""Text of others as two renderers see it: everything stays text."""

import json
import re
import unicodedata
from itertools import pairwise
from types import SimpleNamespace

import markdown as python_markdown
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rlhf_lightning.callbacks.samples import by_score
from rlhf_lightning.console.display import label, markdown, plain
from rlhf_lightning.evaluation import print_table, write_report
from rlhf_lightning.loggers.records import markdown_table

RENDERER = MarkdownIt("gfm-like2", {"linkify": False})  # as the one that GitHub uses: tables, tasks, alerts
EXTENSIONS = ["tables", "fenced_code", "footnotes", "attr_list", "def_list", "abbr"]  # TensorBoard: the first of them
PIECES = [
    *"ab1 .:/\\[](){}<>!*_~`#|$^@&;=+-\n\t\r\x1b\u202e", "www.", "http://a.b", "1. ", "&amp;", "&#42;", "\n\n", "    ",
    "[x]: a", "<b>", "![x](y)", "```", "a@b.cd", "- [ ] ", "> [!NOTE]", "mailto:a", "ftp://c",
]  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=60))
ADDRESS = re.compile(r"www\.|\w:/|\w@\w|mailto:\w|\w\.[a-z]", re.IGNORECASE)  # what renderers link by themselves


def seen(text):
    """The words that are to be shown, with single spaces."""
    return " ".join(plain(text).replace("@", "\uff20").split())


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("# h")
@example("www.evil.example")
@example("| --- |\n| --- |")
@example("a\n===")
@example("[a]: /b\n\n[a]")
def test_case_64_text_of_others_stays_text_in_markdown(text):
    shown = markdown(text)
    tokens = RENDERER.parse(shown)
    children = [child for token in tokens for child in token.children or []]
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    assert {child.type for child in children} <= {"text"}
    assert " ".join("".join(child.content for child in children).split()) == seen(text)  # nothing is lost
    assert not ADDRESS.search(shown)
    html = python_markdown.markdown(shown, extensions=EXTENSIONS)
    assert set(re.findall(r"<(\w+)", html)) <= {"p"}
    assert "\n" not in shown and "|" not in shown


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_case_64_no_character_that_a_terminal_acts_on_is_left(text):
    shown = plain(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert not re.search("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", shown)
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\x9b2J", r"a\x9b2J"),
        ("exe\u202egpj", r"exe\u202egpj"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("90%\r100%\r\n", "90%\\r100%\n"),
        ("hidden\U000e0041", r"hidden\U000e0041"),
        ("half \ud800", r"half \ud800"),
        ("tab\tline\nnaïve 日本語 🙂", "tab\tline\nnaïve 日本語 🙂"),
    ],
)
def test_case_64_what_is_not_seen_is_shown_as_an_escape_and_the_rest_as_it_is(text, shown):
    assert plain(text) == shown


def test_names_and_numbers_stay_readable_in_markdown():
    for text in ("reward_model", "0.512 ± 0.1", "-0.5", "ppo-v2 (best), 3%", "step 1: done"):
        assert markdown(text) == text


def test_names_of_a_figure_are_neither_mathematics_nor_left_out():
    assert label("$\\frac{$") == r"\$\frac{\$" and not label("_mine").startswith("_") and len(label("x" * 999)) < 99


NASTY = "[bold]$x$ [a](http://evil.example)<img src=x>|`\x1b[2J\u202e ![p](q) @all"


def nasty(tmp_path):
    """An evaluation in which every text is an attack, and a config that ends its code block."""
    names = {name: NASTY + name for name in ("gold", "proxy", "old", "new")}
    estimate = {"mean": 1.0, "stderr": 0.1}
    summary = {
        "count": 9, "prompts": 9, "scores": {names["gold"]: estimate, names["proxy"]: estimate}, "kl": estimate,
        "length": estimate, "eos_rate": 0.5, "distinct_2": 0.5,
    }  # fmt: skip
    sample = {
        "prompt": [{"role": NASTY, "content": "```\n# h\n" + NASTY}], "completion": NASTY + "\n\n# h\n| a | b |",
        "scores": {names["gold"]: 1.0, names["proxy"]: 1.0}, "length": 2, "finished": True, "kl": 0.1,
    }  # fmt: skip
    wins = {"judge": names["gold"], "wins": 5, "ties": 0, "losses": 4, "unpaired": 0}
    wins |= {"win_rate": 0.5, "low": 0.4, "high": 0.6}
    found = {
        "judge": names["gold"], "proxy": names["proxy"],
        "policies": {names[name]: {"summary": summary, "samples": [sample]} for name in ("old", "new")},
        "win_rates": {f"{names['new']} vs {names['old']}": wins},
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    (tmp_path / "history").mkdir()
    rows = "step,kind,seconds,objective/scores,objective/kl\n1,train,0.5,0.25,1.0\n2,train,1.5,0.5,2.0\n"
    (tmp_path / "history" / "ppo.csv").write_text(rows)
    (tmp_path / "config.yaml").write_text("a: |\n  x\n```\n\n# heading\n![p](http://evil.example)\n````\n\x1b[2J\n")
    return found


def test_case_64_a_report_of_hostile_names_prompts_answers_and_config_holds_our_own_markup_only(tmp_path):
    nasty(tmp_path)
    text = write_report(tmp_path).read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    tokens = RENDERER.parse(text)
    children = [child for token in tokens for child in token.children or []]
    assert not [child.type for child in children if child.type.startswith(("html", "code"))]
    assert [child.attrs["href"] for child in children if child.type == "link_open"] == ["config.yaml"]
    images = [child.attrs["src"] for child in children if child.type == "image"]
    assert images and all(re.fullmatch(r"figures/\w+\.png", source) for source in images)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert [h.partition(":")[0] for h in headings] == [
        "Report", "Before and after", "Samples", "Figures", "Training, at its end", "Run",
    ]  # fmt: skip
    assert not [token.content for token in tokens if token.type == "fence"]
    page = (tmp_path / "report.html").read_text()
    tags = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "strong",
        "em",
        "table",
        "thead",
        "tbody",
    }
    tags |= {"tr", "th", "td", "ul", "li", "a", "img", "br", "hr", "code", "details", "summary"}
    assert set(re.findall(r"<(\w+)", page)) <= tags
    places = re.findall(r"(?:href|src)=\"([^\"]{1,40})", page)
    assert places and all(place == "config.yaml" or place.startswith("data:image/png;base64,") for place in places)
    tables = [token for token in tokens if token.type == "table_open"]
    assert len(tables) == 2 and len([token for token in tokens if token.type == "tr_open"]) == 6


def test_case_64_the_terminal_table_shows_hostile_names_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "900")
    print_table(nasty(tmp_path))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown
    assert shown.count("[bold]$x$ [a](http://evil.example)") >= 6


def test_case_64_the_sample_table_of_tensorboard_is_text(tmp_path):
    class Tokenizer:
        def batch_decode(self, rows, **given):
            return [NASTY + "\nline\r\n\n# h"] * len(rows)

    experience = SimpleNamespace(
        mask=torch.ones(1, 2).bool(), logprobs=torch.zeros(1, 2), ref_logprobs=torch.zeros(1, 2),
        scores=torch.ones(1),
        rollout=SimpleNamespace(
            prompt_ids=torch.ones(1, 2), prompt_mask=torch.ones(1, 2).bool(), response_ids=torch.ones(1, 2),
            mask=torch.ones(1, 2).bool(), attended=torch.ones(1, 2).bool(), finished=torch.ones(1).bool(),
            lengths=torch.ones(1),
        ),
    )  # fmt: skip
    table = markdown_table(*by_score(experience, Tokenizer(), samples=1, max_characters=600))
    html = python_markdown.markdown(table, extensions=["tables"])
    assert set(re.findall(r"<(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert html.count("<td") == 6 and "\x1b" not in table and "http:" not in table
