"""A browser, a server, and hands that rank by keyboard, mouse and touch: for the tests of the pages."""

import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.record import Record, judgements

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Told of each key but Shift, before the page is.
COUNT_KEYS = (
    "addEventListener('keydown', e => { if (e.key !== 'Shift') window.presses = (window.presses ?? 0) + 1 }, true)"
)

# The contrast of each text with what is behind it, by WCAG 2.2, "relative luminance" and "contrast ratio".
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) =>
    [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
      if (color[3] > 0) throw new Error("half transparent");
    }
    throw new Error("nothing behind");
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility()
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return texts.map((node) => {
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.textContent.slice(0, 30)];
  });
}"""


@contextmanager
def a_browser():
    """The machine's Chromium. Skips the test where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    if CHROMIUM is None:
        pytest.skip(f"needs one of {', '.join(NAMES)}")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def a_page(browser, url, path="/", **settings):
    """A new page at an address. Fails where a script fails, a dialog opens or another host is asked."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    context.set_default_timeout(5000)
    context.add_init_script(COUNT_KEYS)
    wrong = []
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    context.on("request", lambda r: r.url.startswith((url, "data:")) or wrong.append(f"request: {r.url}"))
    page.goto(url + path)
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


class Served:
    """The real server on a record of its own, in this process.

    Args:
        path: of the record.
        items: prompts, each with its answers.
        form: keywords of `Form`.
    """

    def __init__(self, path, items, **form):
        self.path = path
        self.items = [Item(number, prompt, tuple(answers)) for number, (prompt, answers) in enumerate(items, 1)]
        self.form = form
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def judgements(self):
        """What stands in the record, in the order in which it was said."""
        return judgements(self.path)

    def start(self):
        from rlhf_lightning.people import server
        from rlhf_lightning.people.access import Access
        from rlhf_lightning.people.form import Form
        from rlhf_lightning.people.queue import Plan
        from rlhf_lightning.people.service import Service

        self.record = Record(self.path, self.items)
        service = Service(self.record, Form(**self.form), Plan(overlap=1))
        self.socket = server.listen("127.0.0.1", self.port)
        self.port = self.socket.getsockname()[1]
        self.web = server.web_server(server.App(service, Access(self.record, links=False)))
        self.web.config.timeout_graceful_shutdown = 0  # browsers keep connections open
        self.thread = threading.Thread(target=self.web.run, args=([self.socket],))
        self.thread.start()

    def stop(self):
        self.web.should_exit = True
        self.thread.join()
        self.socket.close()
        self.record.close()


@contextmanager
def a_server(folder, items, **form):
    """A server with these items. Skips the test where the extra `label` is missing."""
    pytest.importorskip("starlette", reason="needs the extra `label`")
    pytest.importorskip("uvicorn", reason="needs the extra `label`")
    served = Served(Path(folder) / "labels.db", items, **form)
    served.start()
    try:
        yield served
    finally:
        served.stop()


class Desk:
    """Where a person sits: the page, and what is on it."""

    def __init__(self, page, name="ann"):
        self.page = page
        if name is not None:
            page.fill("#annotator", name)
            page.keyboard.press("Enter")
            page.wait_for_selector("#work[data-item]:not([hidden])")

    @property
    def item(self):
        return int(self.page.get_attribute("#work", "data-item"))

    @property
    def answers(self):
        """Their texts, from the first place on."""
        return self.page.locator(".card .text").all_inner_texts()

    @property
    def ranks(self):
        """What the cards say, by place: a number, or None."""
        said = self.page.locator(".card .badge").all_inner_texts()
        return [int(text.split(",")[0].removeprefix("rank ")) if text != "no rank" else None for text in said]

    def wait(self, done):
        """Until so many are done and the page is at rest."""
        self.page.wait_for_function(
            "done => !document.body.ariaBusy && document.getElementById('count').textContent.startsWith(done + ' of ')",
            arg=done,
        )

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)


class Keyboard:
    """Ranks by letters alone."""

    letters = "asdfghjkl"

    def __init__(self, desk):
        self.desk = desk

    def rank(self, levels):
        """Rank and send. `levels`: lists of places, the best first; those of one list are tied."""
        if len(levels[-1]) == 1:
            levels = levels[:-1]  # the last one needs no key
        for first, *others in levels:
            self.desk.press(self.letters[first], *(f"Shift+{self.letters[place]}" for place in others))
        self.desk.press("Enter")


class Pointer:
    """Ranks by dragging each answer from the tray to its place, in any order."""

    def __init__(self, desk, random):
        self.desk = desk
        self.random = random

    def rank(self, levels):
        level_of = {place: at for at, level in enumerate(levels) for place in level}
        there = []  # the levels on the board
        for place in self.random.sample(sorted(level_of), len(level_of)):
            level = level_of[place]
            self.drag(f"#tray .chip[data-place='{place}']", self.spot(there, level))
            there = sorted({*there, level})
        self.tap("#send")

    def spot(self, there, level):
        if not there:
            return self.point("#levels", 0.5)
        if level in there:
            return self.point(f"#levels li:nth-child({there.index(level) + 1})", 0.5)
        before = sum(other < level for other in there)
        return self.point(f"#levels li:nth-child({before})", 0.95) if before else self.point("#levels li", 0.05)

    def point(self, selector, share):
        box = self.desk.page.evaluate("selector => document.querySelector(selector).getBoundingClientRect()", selector)
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2


class Mouse(Pointer):
    def drag(self, selector, to):
        mouse = self.desk.page.mouse
        mouse.move(*self.point(selector, 0.5))
        mouse.down()
        mouse.move(*to)
        mouse.up()

    def tap(self, selector):
        self.desk.page.mouse.click(*self.point(selector, 0.5))


class Touch(Pointer):
    def __init__(self, desk, random):
        super().__init__(desk, random)
        self.wire = desk.page.context.new_cdp_session(desk.page)

    def drag(self, selector, to):
        self.touch("Start", self.point(selector, 0.5))
        self.touch("Move", to)
        self.touch("End")

    def touch(self, kind, point=None):
        points = [{"x": point[0], "y": point[1]}] if point else []
        self.wire.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    def tap(self, selector):
        self.desk.page.touchscreen.tap(*self.point(selector, 0.5))
