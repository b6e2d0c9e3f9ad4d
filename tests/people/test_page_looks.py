"""What a person sees, hears and reaches: narrow and wide, dark and light, with a screen reader."""

import pytest

from tests.people.page_world import CONTRAST, Desk, Mouse, a_browser, a_page, a_server

LONG = "incomprehensibilities" * 20
TALK = [
    {"role": "system", "content": "Be **kind**."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]},
    {"role": "user", "content": "So?"},
]
ANSWERS = [
    f"`code` and {LONG}",
    f"```\n{LONG}\n```",
    "# Title\n\n> quote\n\n- a\n- b",
    f"[a link](https://a.example/{LONG})",
]
ITEMS = [(TALK, ANSWERS), ("Which?", ["this", "that"]), ("Nine?", [str(each) for each in range(9)])]
ALL = {"rating": (1, 7), "flags": ("not true", "rude")}
CONTROLS = {"button", "radio", "checkbox", "textbox", "combobox", "link", "progressbar", "DisclosureTriangle"}


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture
def server(tmp_path):
    with a_server(tmp_path, ITEMS, **ALL) as started:
        yield started


def to_item(desk, number):
    for _ in range(len(ITEMS)):
        if desk.item == number:
            return
        before = desk.item
        desk.press(" ")
        desk.page.wait_for_selector(f"#work:not([data-item='{before}'])")
    raise AssertionError(f"no item {number}")


def names_of_controls(page):
    """Role and name of each control, as a screen reader is told."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    told = [(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in tree]
    return [(role, name) for role, name in told if role in CONTROLS]


def test_nothing_is_wider_than_a_phone(browser, server):
    with a_page(browser, server.url, viewport={"width": 360, "height": 740}) as page:
        desk = Desk(page)
        for number in range(len(ITEMS)):
            desk.press(*"asdfghjkl", "?")
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
            assert page.evaluate("() => document.getElementById('board').getBoundingClientRect().height") < 740 * 0.6
            desk.press("Escape", " ")
            desk.wait(number + 1)


def test_every_text_has_enough_contrast(browser, server):
    with a_page(browser, server.url) as page:
        page.wait_for_selector("#annotator")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert min(page.evaluate(CONTRAST))[0] >= 4.5
        desk = Desk(page)
        to_item(desk, 1)
        desk.press("a", "s", "?")
        page.evaluate("async () => (await import('/static/voice.js')).complain('Not saved.')")
        grounds = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            seen = page.evaluate(CONTRAST)
            assert len(seen) > 60
            assert min(seen)[0] >= 4.5, min(seen)
            grounds.append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    light, dark = (int(ground.removeprefix("rgb(").split(",")[0]) for ground in grounds)
    assert light > 200
    assert dark < 50


def test_every_control_has_a_name_that_no_other_has(browser, server):
    with a_page(browser, server.url) as page:
        page.wait_for_selector("#annotator")
        assert ("textbox", "Your name") in names_of_controls(page)
        desk = Desk(page)
        to_item(desk, 1)
        desk.press("a", "s")
        told = names_of_controls(page)
    assert len(told) > 60
    assert [each for each in told if not each[1].strip()] == []
    assert {"Answer A, rank 1: take it out", "Answer D: rank it next", "Send Enter", "Answer S: better"} <= {
        name for _, name in told
    }
    ratings = [name for role, name in told if role == "radio"]
    flags = [name for role, name in told if role == "checkbox"]
    assert len(set(ratings)) == len(ratings) == 28
    assert len(set(flags)) == len(flags) == 9


def test_what_changes_is_told(browser, server):
    with a_page(browser, server.url) as page:
        desk = Desk(page)
        to_item(desk, 1)
        heard = []
        for keys in (["d"], ["Shift+a"], ["ArrowRight"], ["d"], ["4"]):
            desk.press(*keys)
            heard.append(page.inner_text("#status"))
        assert page.get_attribute("#status", "role") == "status"
        assert page.get_attribute("#message", "role") == "alert"
    assert heard == [
        "Answer D: rank 1.",
        "Answer A: rank 1, same as D.",
        "Answer A: rank 2.",
        "Answer D: no rank.",
        "Answer D, overall quality: 4.",
    ]


def test_tab_reaches_every_control_and_shows_where_it_is(browser, server):
    with a_page(browser, server.url) as page:
        to_item(Desk(page), 2)
        seen, visible = set(), []
        for _ in range(60):
            page.keyboard.press("Tab")
            node = page.evaluate(
                "() => { const node = document.activeElement; return [node.id || node.ariaLabel || node.name || '', "
                "getComputedStyle(node).outlineStyle] }"
            )
            seen.add(node[0])
            visible.append(node[1])
    assert {"plain", "note", "undo", "skip", "send", "Answer A: better", "Answer S: rank it next"} <= seen
    assert visible.count("none") <= 2  # the page itself, between two rounds


def test_a_pair_takes_three_keys_with_the_strength_of_the_preference(browser, tmp_path):
    with a_server(tmp_path, ITEMS[1:2] * 3) as server, a_page(browser, server.url) as page:
        desk = Desk(page)
        desk.press("s", "3", "Enter")
        desk.wait(1)
        better = page.evaluate("() => window.presses")
        desk.press("=", "Enter")
        desk.wait(2)
        page.click(".card[data-place='0'] .chip")
        page.check("#strength input[value='1']")
        Mouse(desk, None).tap("#send")
        desk.wait(3)
    kept = server.judgements()
    assert better == 4  # Enter after the name, and three keys
    assert [(each.ranks[each.order[0]], each.ranks[each.order[1]]) for each in kept] == [(2, 1), (1, 1), (1, 2)]
    assert [each.strength for each in kept] == [3, None, 1]


def test_ratings_and_flags_are_stored_with_the_answers_they_are_about(browser, server):
    with a_page(browser, server.url) as page:
        desk = Desk(page)
        to_item(desk, 3)
        desk.press(*"asdfghjk", "ArrowUp", "7", "6", "ArrowUp", "3", "3")
        page.check(".card[data-place='1'] .flags input[value='rude']")
        page.check(".card[data-place='2'] .rating input[value='2']")
        desk.press("u")  # a letter on a choice is still a key: the skipped item is back
        page.wait_for_selector("#status:text('Taken back')")
        to_item(desk, 3)
        assert page.is_checked(".card[data-place='1'] .flags input[value='rude']")
        before = len(server.judgements())
        desk.press("Enter")
        page.wait_for_selector("#status:text('Saved')")
    kept = server.judgements()[before]
    assert [kept.ranks[answer] for answer in kept.order] == list(range(1, 10))
    assert [kept.ratings[answer] for answer in kept.order] == [None, None, 2, None, None, None, 6, None, None]
    assert [list(kept.flags[answer]) for answer in kept.order] == [[], ["rude"], *[[]] * 7]


def test_a_conversation_is_shown_by_turns_and_nothing_of_it_is_left_out(browser, server):
    with a_page(browser, server.url) as page:
        to_item(Desk(page), 1)
        roles = page.locator("#prompt .role").all_inner_texts()
        text = page.inner_text("#prompt")
    assert roles == ["System", "Person", "Assistant", "Person"]
    assert "Be kind." in text
    assert '"name": "look"' in text


def test_without_motion_nothing_moves(browser, server):
    with a_page(browser, server.url, reduced_motion="reduce") as page:
        Desk(page)
        moving = page.evaluate(
            "() => [...document.querySelectorAll('*')].map((node) => getComputedStyle(node))"
            ".filter((style) => style.transitionDuration !== '0s' || style.animationName !== 'none').length"
        )
    assert moving == 0
