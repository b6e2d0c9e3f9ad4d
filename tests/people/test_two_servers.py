"""Two servers on one machine, in one browser, which keeps cookies by host and not by port."""

from tests.people.serving import a_server

ROWS = [("Why?", ["a", "b"]), ("How?", ["c", "d"])]


def test_who_works_at_two_records_at_once_stays_who_they_are_at_both(tmp_path):
    with a_server(tmp_path / "one", ROWS) as one, a_server(tmp_path / "two", ROWS) as two:
        ann, bob = one.person("ann"), two.person("bob")
        jar = dict(person.cookie.split("=", 1) for person in (ann, bob))  # the later of two with one name stays
        sent = "; ".join(f"{name}={value}" for name, value in jar.items())
        names = [person.ask("GET", "/api/session", Cookie=sent)[1]["annotator"] for person in (ann, bob)]
    assert names == ["ann", "bob"]
