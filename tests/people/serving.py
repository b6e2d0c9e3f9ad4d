"""A labelling server on a free port of this machine, in a thread; and people who talk to it without a browser."""

import http.client
import json
import threading
import time
import uuid
from contextlib import contextmanager

from rlhf_lightning.people.access import Access
from rlhf_lightning.people.entries import live
from rlhf_lightning.people.form import Form
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.queue import Plan
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.server import App, listen, web_server
from rlhf_lightning.people.service import Service


def items_of(rows):
    """Items of pairs (prompt, answers)."""
    return [
        Item(number, prompt, tuple(answers), {"prompt": prompt, "completions": list(answers)})
        for number, (prompt, answers) in enumerate(rows, 1)
    ]


class Running:
    """A server, and what it has written."""

    def __init__(self, url, service, links):
        self.url, self.service, self.record, self.links = url, service, service.record, links
        self.host = url.removeprefix("http://")
        self.people = []

    def person(self, name=None, token=None):
        """A `Person` whose connection ends with the server."""
        self.people.append(Person(self.host, name, token))
        return self.people[-1]

    def judgements(self):
        return [entry.judgement() for entry in live(self.record.entries())]


@contextmanager
def a_server(tmp_path, rows, plan=None, annotators=(), **form):
    """Serve rows (prompt, answers) with `Form(**form)`."""
    if isinstance(form.get("rating"), dict):
        form |= {"rating": (form["rating"]["low"], form["rating"]["high"]), "rating_label": form["rating"]["label"]}
    if "flags" in form:
        form["flags"] = tuple(form["flags"])
    with Record(tmp_path / "labels.db", items_of(rows)) as record, listen("127.0.0.1", 0) as heard:
        access = Access(record, links=bool(annotators))
        links = access.new_links(annotators) if annotators else {}
        service = Service(record, Form(**form), plan or Plan())
        server = web_server(App(service, access))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [heard]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running = Running(f"http://127.0.0.1:{heard.getsockname()[1]}", service, links)
        try:
            yield running
        finally:
            for person in running.people:
                person.wire.close()
            server.should_exit = True
            thread.join(10)


class Person:
    """Somebody at the other end of the wire."""

    def __init__(self, host, name=None, token=None):
        self.wire = http.client.HTTPConnection(host, timeout=20)
        self.cookie = self.csrf = ""
        if token is not None:
            self.status, _ = self.ask("GET", f"/enter/{token}")
        self.session = self.ask("GET", "/api/session")[1]
        self.csrf = self.session.get("csrf", "")
        if name is not None:
            self.session = self.ask("POST", "/api/session", {"name": name})[1]
            self.csrf = self.session["csrf"]

    def ask(self, method, path, body=None, **headers):
        """Status and answer."""
        headers = {"Cookie": self.cookie, "X-Label-Token": self.csrf, "Content-Type": "application/json"} | headers
        self.wire.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), headers)
        response = self.wire.getresponse()
        text = response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        if "set-cookie" in self.headers:
            self.cookie = self.headers["set-cookie"].partition(";")[0]
        kind = self.headers.get("content-type", "")
        return response.status, json.loads(text) if kind.startswith("application/json") else text.decode()

    def next(self):
        return self.ask("GET", "/api/next")[1]["item"]

    def send(self, item, ranks, **more):
        """A judgement; ranks in the order shown, or None to skip."""
        body = {"key": uuid.uuid4().hex, "item": item["id"], "order": item["order"], "ranks": ranks, "seconds": 1.5}
        return self.ask("POST", "/api/judgements", body | more)

    def undo(self, key=None, **headers):
        """Take back the last judgement."""
        return self.ask("POST", "/api/undo", {"key": key or uuid.uuid4().hex}, **headers)
