"""Whole sessions in a browser: what a person did is what the record says, and nothing is lost on the way."""

import random
import re

import pytest

from tests.people.page_world import Desk, Keyboard, Mouse, Touch, a_browser, a_page, a_server

FOUR = [(f"Question {number}?", [f"Answer {number}.{each}" for each in range(4)]) for number in range(1, 11)]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture
def server(tmp_path):
    with a_server(tmp_path, FOUR) as started:
        yield started


@pytest.fixture
def desk(browser, server):
    with a_page(browser, server.url) as page:
        yield Desk(page)


def some_levels(dice):
    """A ranking of four with or without ties, as lists of places."""
    places = dice.sample(range(4), 4)
    cuts = sorted(dice.sample(range(1, 4), dice.choice([1, 2, 3, 3])))
    return [places[a:b] for a, b in zip([0, *cuts], [*cuts, 4], strict=True)]


def ranks_by_answer(levels, answers):
    """Answer to rank: one more than there are better ones."""
    return {answers[place]: 1 + sum(map(len, levels[:at])) for at, level in enumerate(levels) for place in level}


def said(judgement):
    """The same, from the record."""
    return dict(zip(FOUR[judgement.item - 1][1], judgement.ranks, strict=True))


def play(desk, hand, dice):
    done = []
    for number in range(10):
        levels = some_levels(dice)
        done.append((desk.item, ranks_by_answer(levels, desk.answers)))
        before = desk.page.evaluate("window.presses ?? 0")
        hand.rank(levels)
        desk.wait(number + 1)
        assert desk.page.evaluate("window.presses ?? 0") - before <= 5
    assert desk.page.is_visible("#finished")
    return done


def test_ten_rankings_by_keyboard_take_five_keys_each_and_are_in_the_record(desk, server):
    done = play(desk, Keyboard(desk), random.Random(1))
    assert [(each.item, said(each)) for each in server.judgements()] == done


def test_ten_rankings_by_mouse_are_in_the_record(desk, server):
    dice = random.Random(2)
    done = play(desk, Mouse(desk, dice), dice)
    assert [(each.item, said(each)) for each in server.judgements()] == done


def test_ten_rankings_by_touch_are_in_the_record(browser, server):
    dice = random.Random(3)
    with a_page(browser, server.url, **PHONE) as page:
        desk = Desk(page)
        done = play(desk, Touch(desk, dice), dice)
    assert [(each.item, said(each)) for each in server.judgements()] == done


def test_a_finger_on_the_text_of_an_answer_scrolls_the_page(browser, server):
    with a_page(browser, server.url, **PHONE) as page:
        hand = Touch(Desk(page), random)
        x, y = hand.point(".card .text", 0.5)
        hand.touch("Start", (x, y))
        for step in range(1, 9):
            hand.touch("Move", (x, y - 25 * step))
        hand.touch("End")
        page.wait_for_function("() => scrollY > 50")
        action = "selector => getComputedStyle(document.querySelector(selector)).touchAction"
        assert [page.evaluate(action, each) for each in (".chip", ".card .text")] == ["none", "auto"]


def test_arrows_and_equals_change_a_ranking(desk, server):
    desk.press("a", "s", "d", "f")
    assert desk.ranks == [1, 2, 3, 4]
    desk.press("ArrowLeft")
    assert desk.ranks == [1, 2, 4, 3]
    desk.press("=")
    assert desk.ranks == [1, 2, 4, 2]
    desk.press("ArrowUp", "ArrowUp", "ArrowUp", "ArrowRight")
    assert desk.ranks == [3, 1, 4, 1]
    desk.press("s")
    assert desk.ranks == [2, None, 3, 1]
    desk.press("Enter")
    desk.wait(1)
    assert sorted(said(server.judgements()[0]).values()) == [1, 2, 3, 4]


def test_an_answer_dragged_to_the_tray_has_no_rank(desk):
    desk.press("a", "s")
    hand = Mouse(desk, random)
    hand.drag("#levels .chip[data-place='0']", hand.point("#tray", 0.5))
    assert desk.ranks == [None, 1, None, None]
    hand.drag("#levels .chip[data-place='1']", hand.point("#prompt", 0.5))  # nowhere: all stays
    assert desk.ranks == [None, 1, None, None]


def test_a_click_ranks_next_and_leaves_enter_to_send(desk, server):
    for place in (2, 0, 1):
        desk.page.click(f".card[data-place='{place}'] .chip")
    assert desk.ranks == [2, 3, 1, None]
    desk.press("Enter")
    desk.wait(1)
    assert len(server.judgements()) == 1


def test_too_few_ranks_are_not_sent(desk, server):
    desk.press("a", "s", "Enter")
    assert "Not ranked yet: D, F" in desk.page.inner_text("#message")
    assert server.judgements() == []


def test_undo_brings_back_what_was_sent_and_what_was_skipped(desk, server):
    first = desk.item
    desk.press("s", "Shift+a", "f", "Enter")
    desk.wait(1)
    second = desk.item
    desk.press(" ")
    desk.page.wait_for_selector("#status:text('Skipped')")
    desk.press("u")
    desk.page.wait_for_selector(f"#work[data-item='{second}']")
    desk.press("u")
    desk.page.wait_for_selector(f"#work[data-item='{first}']")
    assert desk.ranks == [1, 1, 4, 3]
    desk.press("u")
    desk.page.wait_for_selector("#message:not([hidden])")
    desk.press("ArrowDown", "ArrowRight", "Enter")
    desk.wait(1)
    (kept,) = server.judgements()
    assert kept.item == first
    assert sorted(kept.ranks) == [1, 2, 3, 4]


def test_a_reload_keeps_what_was_not_sent(desk):
    item = desk.item
    desk.press("d", "Shift+a", "s")
    desk.page.fill("#note", "both are short")
    desk.page.reload()
    desk.page.wait_for_selector(f"#work[data-item='{item}']")
    assert desk.ranks == [1, 3, 1, None]
    assert desk.page.input_value("#note") == "both are short"


def test_keys_typed_into_the_note_rank_nothing(desk, server):
    desk.page.click("#note")
    desk.page.keyboard.type("as good as =\nuseful ")
    assert desk.ranks == [None] * 4
    assert server.judgements() == []


def test_a_server_that_is_away_loses_nothing_and_the_page_says_so(desk, server):
    desk.page.context.set_offline(True)
    desk.press("f", "d", "s", "Enter")
    desk.page.wait_for_selector("#message:text('Not saved yet')")
    desk.press("a", "Enter")  # nothing is taken meanwhile
    desk.page.context.set_offline(False)
    desk.wait(1)
    assert desk.page.is_hidden("#message")
    (kept,) = server.judgements()
    assert said(kept) == dict(zip([FOUR[kept.item - 1][1][at] for at in kept.order], [4, 3, 2, 1], strict=True))


def test_a_server_that_starts_again_takes_what_it_missed(desk, server):
    desk.press("a", "s")
    server.stop()
    try:
        desk.press("d", "Enter")
        desk.page.wait_for_selector("#message:text('Not saved yet')")
    finally:
        server.start()
    desk.wait(1)
    assert desk.page.is_hidden("#message")
    assert len(server.judgements()) == 1


def test_an_acknowledgement_that_is_lost_makes_no_second_record(desk, server):
    lost = []

    def lose_the_first(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)
        route.abort()

    desk.page.route("**/api/judgements", lose_the_first)
    desk.press("a", "s", "d", "Enter")
    desk.wait(1)
    assert lost == [200]
    assert len(server.judgements()) == 1


def test_what_could_not_be_sent_is_sent_after_a_reload(desk, server):
    desk.page.route("**/api/judgements", lambda route: route.abort())
    item = desk.item
    desk.press("a", "d", "f", "Enter")
    desk.page.wait_for_selector("#message:text('Not saved yet')")
    desk.page.unroute("**/api/judgements")
    desk.page.reload()
    desk.wait(1)
    assert [each.item for each in server.judgements()] == [item]
    assert desk.item != item


def test_a_key_that_is_held_down_skips_one_item_only(desk, server):
    desk.page.keyboard.down(" ")
    desk.page.wait_for_selector("#status:text('Skipped')")
    desk.page.keyboard.down(" ")  # repeats, as of a key that is not let go
    desk.page.keyboard.down(" ")
    desk.page.keyboard.up(" ")
    desk.press("a", "s", "d", "Enter")
    desk.page.wait_for_selector("#status:text('Saved')")
    assert [each.ranks is None for each in server.judgements()] == [True, False]


def test_nothing_on_the_page_tells_the_models(desk):
    assert re.search(r"model|policy|score", desk.page.content(), re.IGNORECASE) is None
