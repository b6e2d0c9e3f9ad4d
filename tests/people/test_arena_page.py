"""The arena in a browser: votes by keyboard, mouse and touch, blind until the vote, and nothing of a model runs."""

import pytest

from rlhf_lightning.people import record as records
from tests.people.arena_world import Parrot, an_arena, endless, serving
from tests.people.page_world import CONTRAST, a_browser, a_page
from tests.people.test_page_looks import names_of_controls
from tests.people.test_page_text import LOOK, OURS, bare
from tests.support.injections import INJECTIONS

pytest.importorskip("starlette", reason="needs the extra `label`")
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
NAMES = ("secret_one", "secret_two")


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture
def policies():
    return [Parrot(NAMES[0], "It is **so**."), Parrot(NAMES[1], "It is not.")]


@pytest.fixture
def running(tmp_path, policies):
    with an_arena(tmp_path / "votes.db", policies, ["given one", "given two"]) as arena, serving(arena) as started:
        yield started


class Desk:
    """Where a person sits."""

    def __init__(self, page, name="ann"):
        self.page = page
        page.fill("#annotator", name)
        page.keyboard.press("Enter")
        self.wait("asking")

    def wait(self, state):
        self.page.wait_for_function(
            "state => !document.body.ariaBusy && document.body.dataset.state === state", arg=state
        )

    def ask(self, text="Why?"):
        self.page.fill("#own", text)
        self.page.keyboard.press("Enter")
        self.wait("voting")

    def take(self):
        """A given prompt."""
        self.page.keyboard.press("g")
        self.wait("voting")

    def status(self):
        return self.page.inner_text("#status")

    @property
    def answers(self):
        return self.page.locator(".card .text").all_inner_texts()


@pytest.fixture
def desk(browser, running):
    with a_page(browser, running.url) as page:
        yield Desk(page)


def said(running):
    """What stands in the record, by item."""
    shown = {item.number: item for item in records.items(running.arena.record.path)}
    return [
        (one.ranks, one.flags[0] if one.flags else (), shown[one.item].prompt)
        for one in records.judgements(running.arena.record.path)
    ]


KEYS = [
    ("a", (1, 2), ()), ("ArrowLeft", (1, 2), ()), ("b", (2, 1), ()), ("d", (2, 1), ()), ("ArrowRight", (2, 1), ()),
    ("t", (1, 1), ("good",)), ("x", (1, 1), ("bad",)), ("s", None, ()),
]  # fmt: skip


def test_each_key_is_a_vote_on_the_answers_as_they_are_shown(desk, running):
    for key, *_ in KEYS:
        desk.take()
        item = running.arena.next("ann")["item"]
        assert desk.answers == [text.replace("**", "") for text in item["answers"]]
        desk.page.keyboard.press(key)
        desk.wait("asking")
    assert [(ranks, flags) for ranks, flags, _ in said(running)] == [(ranks, flags) for _, ranks, flags in KEYS]
    assert desk.page.inner_text("#count") == "7 votes"


def test_a_prompt_of_ones_own_is_asked_with_enter_and_keys_in_it_vote_for_nothing(desk, running):
    desk.page.keyboard.press("n")
    desk.page.keyboard.type("what about axtsug")
    desk.page.keyboard.press("Shift+Enter")
    desk.page.keyboard.type("so?")
    assert said(running) == [] and desk.page.input_value("#own") == "what about axtsug\nso?"
    desk.page.keyboard.press("Enter")
    desk.wait("voting")
    desk.page.keyboard.press("a")
    desk.wait("asking")
    assert said(running) == [((1, 2), (), "what about axtsug\nso?")]


@pytest.mark.parametrize("hand", ["mouse", "touch"])
def test_buttons_ask_vote_skip_and_take_back(browser, running, hand):
    with a_page(browser, running.url, **(PHONE if hand == "touch" else {})) as page:
        desk, press = Desk(page), page.tap if hand == "touch" else page.click
        for name in ("left", "right", "good", "bad", "skip"):
            page.fill("#own", name)
            press("#ask button[type=submit]")
            desk.wait("voting")
            press(f"[data-vote={name}]")
            desk.wait("asking")
        press("#given")
        desk.wait("voting")
        press("[data-vote=left]")
        desk.wait("asking")
        press("#undo")
        desk.wait("voting")
        assert "Taken back" in desk.status()
    assert said(running) == [
        ((1, 2), (), "left"), ((2, 1), (), "right"), ((1, 1), ("good",), "good"), ((1, 1), ("bad",), "bad"),
        (None, (), "skip"),
    ]  # fmt: skip


def test_nothing_on_the_page_tells_the_policies_but_after_a_vote_where_that_was_asked_for(browser, policies, tmp_path):
    for reveal in (False, True):
        path = tmp_path / f"{reveal}.db"
        with (
            an_arena(path, policies, reveal=reveal) as arena,
            serving(arena) as running,
            a_page(browser, running.url) as page,
        ):
            desk = Desk(page)
            desk.ask()
            assert "secret" not in page.content()
            page.keyboard.press("a")
            desk.wait("asking")
            kept = arena.record.item(1).row["policies"]
            assert page.locator(".author").all_inner_texts() == (kept if reveal else [])
            assert (f"A was {kept[0]}, B was {kept[1]}." in desk.status()) is reveal
            assert ("secret" in page.content()) is reveal


def test_answers_are_seen_while_they_are_written_and_escape_ends_them(desk, policies, running):
    before = [policy.said for policy in policies]
    for policy in policies:
        policy.said, policy.pause = endless("x").said, 0.01
    desk.page.fill("#own", "So?")
    desk.page.keyboard.press("Enter")
    desk.page.wait_for_function(
        "() => [...document.querySelectorAll('.card .text')].every(n => n.textContent.length > 9)"
    )
    assert desk.page.is_hidden("#votes") and desk.page.is_visible("#stop")
    desk.page.keyboard.press("Escape")
    desk.page.keyboard.press("Escape")
    desk.wait("asking")
    assert desk.status() == "Stopped." and desk.page.is_hidden("#message")
    for policy, words in zip(policies, before, strict=True):
        policy.said, policy.pause = words, 0.0
    desk.ask()
    assert [item.prompt for item in records.items(running.arena.record.path)] == ["Why?"]


def test_a_line_that_arrives_in_parts_is_put_together(desk, policies):
    for policy in policies:
        policy.said = "ab" * 200_000
    desk.ask()
    assert [len(text) for text in desk.answers] == [400_000, 400_000] and desk.page.is_hidden("#message")


def test_a_reload_brings_back_what_is_to_be_voted_on(desk, running):
    desk.ask()
    answers = desk.answers
    desk.page.reload()
    desk.wait("voting")
    assert desk.answers == answers and desk.page.inner_text("#prompt") == "Why?"
    desk.page.keyboard.press("b")
    desk.wait("asking")
    assert len(said(running)) == 1


def test_an_acknowledgement_that_is_lost_makes_no_second_vote(desk, running):
    lost = []

    def lose_the_first(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)
        route.abort()

    desk.page.route("**/api/judgements", lose_the_first)
    desk.ask()
    desk.page.keyboard.press("a")
    desk.page.wait_for_selector("#message:text('Not saved yet')")
    desk.wait("asking")
    assert lost == [200] and len(said(running)) == 1 and desk.page.is_hidden("#message")


def test_what_cannot_be_asked_is_said_and_the_prompt_stays_in_its_field(desk, policies):
    desk.page.fill("#own", "far too long")
    desk.page.keyboard.press("Enter")
    desk.page.wait_for_selector("#message:text('is too long for the models')")
    policies[0].error = RuntimeError("no memory")
    desk.page.fill("#own", "So?")
    desk.page.keyboard.press("Enter")
    desk.page.wait_for_selector("#message:text('could not answer')")
    desk.wait("asking")
    assert desk.page.input_value("#own") == "So?"


def test_no_injection_runs_in_prompts_and_answers_while_and_after_they_are_written(browser, tmp_path):
    pairs = [(INJECTIONS[at], INJECTIONS[at - 1]) for at in range(0, len(INJECTIONS), 2)]
    now = {}
    policies = [Parrot(name, lambda prompt, seed, n=n: now["texts"][n]) for n, name in enumerate(NAMES)]
    with (
        an_arena(tmp_path / "votes.db", policies) as arena,
        serving(arena) as running,
        a_page(browser, running.url) as page,
    ):
        desk = Desk(page, INJECTIONS[1])
        for texts in pairs:
            now["texts"] = texts
            prompt = "".join(texts).strip()
            if "\0" in prompt:
                continue
            desk.ask(prompt)
            seen = page.evaluate(LOOK)
            assert seen["injected"] is None and set(seen["tags"]) <= OURS
            assert not [name for name in seen["attributes"] if name.startswith("on") or name in {
                "src", "href", "style", "srcdoc"}]  # fmt: skip
            assert seen["scripts"] == 3  # our script and our two forms
            for text in texts:
                assert any(bare(text) in bare(shown) for shown in seen["answers"]), text
            page.keyboard.press("t")
            desk.wait("asking")
        page.goto(f"{running.url}/lead")
        page.wait_for_selector("#ratings tbody th")
        assert page.evaluate("window.injected") is None
    assert len(said(running)) > 20


def test_it_fits_a_phone_has_contrast_and_each_control_has_a_name_of_its_own(browser, tmp_path):
    long = [Parrot("one", "incomprehensibilities" * 20), Parrot("two", "```\n" + "x" * 400 + "\n```")]
    with (
        an_arena(tmp_path / "votes.db", long, ["p"], reveal=True) as arena,
        serving(arena) as running,
        a_page(browser, running.url, viewport={"width": 360, "height": 740}) as page,
    ):
        desk = Desk(page)
        desk.take()
        page.keyboard.press("?")
        for state in ("voting", "asking"):
            desk.wait(state)
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                assert min(page.evaluate(CONTRAST))[0] >= 4.5
            names = [name for _, name in names_of_controls(page)]
            assert all(names) and len(set(names)) == len(names)
            expected = {"A is better", "Both good", "Both bad", "B is better", "Skip", "Undo"}  # keys are not shown
            assert state == "asking" or expected <= set(names)
            page.keyboard.press("a")
        page.goto(f"{running.url}/lead")
        page.wait_for_selector("#pairs td.words")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        assert min(page.evaluate(CONTRAST))[0] >= 4.5


def test_who_leads_sees_ratings_win_rates_and_people(desk, running):
    for key in "aabtx":
        desk.take()
        desk.page.keyboard.press(key)
        desk.wait("asking")
    desk.page.goto(f"{running.url}/lead")
    desk.page.wait_for_selector("#ratings tbody th")
    board = running.arena.lead()
    (pair,) = board["pairs"]
    cells = desk.page.locator("#pairs tbody tr").all_inner_texts()[0].split("\t")
    assert cells[:6] == [pair["first"], pair["second"], *(str(pair[name]) for name in ("wins", "losses")), "1", "1"]
    assert cells[6].startswith(f"{100 * pair['win_rate']['share']:.1f} % (")
    first = desk.page.locator("#ratings tbody tr").all_inner_texts()[0].split("\t")
    assert first[0] == board["ratings"][0]["policy"] and first[3] == "5"
    assert desk.page.locator("#people tbody tr").all_inner_texts() == ["ann\t5"]
