"""The page for the lead: what the record says, a dash for what nobody can say yet, and no text that runs."""

import pytest

from tests.people.page_world import CONTRAST, Desk, a_browser, a_page, a_server
from tests.support.injections import INJECTIONS

ITEMS = [(f"Question {number}?", ["yes", "no", "perhaps"]) for number in range(1, 4)]
FIGURES = {
    "items": 3,
    "ranked": 2,
    "judgements": 5,
    "shared": None,
    "agreement": {"mean": 2 / 3, "stderr": 0.05, "cases": 9.0},
    "alpha": -0.25,
    "people": [
        {
            "annotator": "ann",
            "done": 2,
            "of": 3,
            "skipped": 1,
            "seconds": 3.25,
            "position": {"mean": 0.125},
            "length": -1,
        },
        {"annotator": "bob", "done": 0, "of": 3, "with_self": {"mean": None, "stderr": None, "cases": 0.0}},
    ],
    "to_discuss": [{"item": 2, "prompt": "Why?", "disagreement": 0.5, "ranks": {"ann": [1, 2, 2], "bob": [3, 1, 1]}}],
}


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture
def server(tmp_path):
    with a_server(tmp_path, ITEMS) as started:
        yield started


def table(page, name):
    return [row.split("\t") for row in page.inner_text(f"#{name}").splitlines()]


def told(page, answer):
    """The page shows these figures instead of the record's."""
    page.route("**/api/lead", lambda route: route.fulfill(json=answer))
    page.click("#again")
    page.wait_for_selector("#people tbody tr")


def test_figures_are_shown_and_a_dash_where_there_is_none(browser, server):
    with a_page(browser, server.url, "/lead") as page:
        told(page, FIGURES)
        page.wait_for_selector("#people:has-text('ann')")
        shown = page.evaluate(
            "() => Object.fromEntries([...document.querySelectorAll('#figures div')].map((node) => "
            "[node.firstChild.textContent, node.lastChild.textContent]))"
        )
        people, discuss = table(page, "people"), page.inner_text("#discuss tbody")
    assert shown["Items"] == "3"
    assert shown["Agreement"] == "66.7 % ± 5.0"
    assert shown["Alpha"] == "-0.250"
    assert shown["Ranked by several"] == shown["Kendall's tau"] == "–"
    assert people[1] == ["ann", "2 of 3", "1", "3.3 s", "–", "–", "+12.5 %", "-100.0 %"]
    assert people[2] == ["bob", "0 of 3", *["–"] * 6]
    assert " ".join(discuss.split()) == "2 50.0 % Why? ann: 1 2 2 bob: 3 1 1"


def test_the_page_shows_what_people_have_done(browser, server):
    for name, keys in (("ann", ["a", "s", "Enter"]), ("bob", ["s", "a", "Enter"])):
        with a_page(browser, server.url) as page:
            Desk(page, name).press(*keys)
            page.wait_for_selector("#status:text('Saved')")
    with a_page(browser, server.url, "/lead") as page:
        page.wait_for_selector("#people:has-text('bob')")
        people = table(page, "people")
    assert [row[:3] for row in people[1:]] == [["ann", "1 of 3", "0"], ["bob", "1 of 3", "0"]]


def test_a_server_that_is_away_is_said_and_the_figures_stay(browser, server):
    with a_page(browser, server.url, "/lead") as page:
        told(page, FIGURES)
        page.wait_for_selector("#people:has-text('ann')")
        page.route("**/api/lead", lambda route: route.abort())
        page.click("#again")
        page.wait_for_selector("#message:text('does not answer')")
        assert len(table(page, "people")) == 3


def test_no_injection_runs_in_names_and_prompts(browser, server):
    person = {"done": 1, "of": 1}
    spoilt = {
        "people": [{"annotator": each, **person} for each in INJECTIONS],
        "to_discuss": [{"item": 1, "prompt": each, "ranks": {each: [1, 2]}} for each in INJECTIONS],
    }
    with a_page(browser, server.url, "/lead") as page:
        told(page, spoilt)
        page.wait_for_selector("#people:has-text('__proto__')")
        names = page.evaluate(
            "() => [...document.querySelectorAll('#people tbody th')].map((node) => node.textContent)"
        )
        prompts = page.evaluate("() => [...document.querySelectorAll('#discuss td.words')].map((n) => n.textContent)")
        tags = page.evaluate("() => [...new Set([...document.querySelectorAll('table *')].map((n) => n.tagName))]")
        assert page.evaluate("() => window.injected") is None
    assert names == list(INJECTIONS)
    assert prompts[::2] == list(INJECTIONS)
    assert set(tags) == {"THEAD", "TBODY", "TR", "TH", "TD"}


def test_the_page_fits_a_phone_and_can_be_read(browser, server):
    with a_page(browser, server.url, "/lead", viewport={"width": 360, "height": 740}) as page:
        told(page, FIGURES)
        page.wait_for_selector("#people:has-text('ann')")
        page.click("summary")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            contrasts = page.evaluate(CONTRAST)
            assert len(contrasts) > 60
            assert min(contrasts)[0] >= 4.5, min(contrasts)
