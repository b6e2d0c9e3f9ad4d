"""Who may see and write what: cookies, secret links, and requests that come from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import SplitResult, urlsplit

from rlhf_lightning.people.form import name_of
from rlhf_lightning.people.record import Record

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LEAD = "lead_token"
_SESSION = (
    "SELECT annotator, annotator IS NULL OR token IS NOT NULL FROM sessions"
    " LEFT JOIN annotators ON name = annotator WHERE cookie = ?"
)


@dataclass(frozen=True)
class Visitor:
    """Who asks."""

    cookie: str = ""
    annotator: str | None = None
    leads: bool = False


class Access:
    """Sessions of a record. With ``links``, a person is who has their secret link; else who they say they are.

    Tokens and cookies stand in the record as SHA-256 only.

    Args:
        record: open for writing.
        links: whether secret links are asked for, as they are beyond this machine.
    """

    def __init__(self, record: Record, links: bool) -> None:
        self.record, self.links = record, links
        self._secret = secrets.token_bytes(32)  # of this process
        # Browsers keep cookies by host and not by port: each record that is served on this machine needs its own.
        self.cookie = f"rlhf_label_{_hash(str(record.path))[:12]}"

    def new_links(self, annotators: Sequence[str], renew: bool = False) -> dict[str, str]:
        """Tokens of people who have none yet, and of who leads (under ""); ``renew``: of all, old links then end.

        The link of who is not among ``annotators`` any more ends.
        """
        made = {}
        with self.record.writing() as connection:
            has = dict(connection.execute("SELECT name, token FROM annotators"))
            for name in set(has) - set(map(name_of, annotators)):
                connection.execute("UPDATE annotators SET token = NULL WHERE name = ?", (name,))
                connection.execute("DELETE FROM sessions WHERE annotator = ?", (name,))
            lead = connection.execute("SELECT value FROM meta WHERE name = ?", (_LEAD,)).fetchone()
            for name in map(name_of, annotators):
                if has.get(name) and not renew:
                    continue
                made[name] = secrets.token_urlsafe(24)
                at = datetime.now(UTC).isoformat(timespec="seconds")
                connection.execute("INSERT OR IGNORE INTO annotators (name, at) VALUES (?, ?)", (name, at))
                connection.execute("UPDATE annotators SET token = ? WHERE name = ?", (_hash(made[name]), name))
                connection.execute("DELETE FROM sessions WHERE annotator = ?", (name,))
            if lead is None or renew:
                made[""] = secrets.token_urlsafe(24)
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_LEAD, _hash(made[""])))
                connection.execute("DELETE FROM sessions WHERE annotator IS NULL")
        return made

    def enter(self, token: str) -> str | None:
        """The cookie of the person whose secret link it is; None where it is nobody's."""
        found = self.record.rows("SELECT name FROM annotators WHERE token = ?", (_hash(token),))
        lead = self.record.rows("SELECT 1 FROM meta WHERE name = ? AND value = ?", (_LEAD, _hash(token)))
        if not self.links or not (found or lead):
            return None
        return self._open(found[0][0] if found else None)

    def name(self, given: object) -> str:
        """The cookie of somebody who says who they are.

        Raises:
            DataError: it is no name.
        """
        return self._open(name_of(given))

    def visitor(self, cookie: str) -> Visitor:
        """Who has a cookie. Without secret links anybody on this machine leads."""
        found = self.record.rows(_SESSION, (_hash(cookie),)) if cookie else []
        if not found or (self.links and not found[0][1]):  # nobody, or somebody who only said a name
            return Visitor(leads=not self.links)
        return Visitor(cookie, found[0][0], not self.links or found[0][0] is None)

    def csrf(self, visitor: Visitor) -> str:
        """What a page of ours sends along with what it writes; no other page can know it."""
        return hmac.new(self._secret, visitor.cookie.encode(), hashlib.sha256).hexdigest()

    def is_ours(self, visitor: Visitor, given: str) -> bool:
        """Whether a request to write comes from a page of ours."""
        return hmac.compare_digest(self.csrf(visitor).encode(), given.encode())

    def _open(self, annotator: str | None) -> str:
        cookie, at = secrets.token_urlsafe(24), datetime.now(UTC).isoformat(timespec="seconds")
        with self.record.writing() as connection:
            if annotator is not None:
                connection.execute("INSERT OR IGNORE INTO annotators (name, at) VALUES (?, ?)", (annotator, at))
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (_hash(cookie), annotator, at))
        return cookie


def from_here(host: str, origin: str | None, site: str | None) -> bool:
    """Whether a browser sent a request from a page of this very server, as far as it tells."""
    if site not in (None, "same-origin", "none"):
        return False
    return origin is None or _parts(origin).netloc.lower() == host.lower()


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine. Any other name may be one that an attacker made point here."""
    return _parts(f"//{host}").hostname in LOOPBACK


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that hold no address
        return urlsplit("")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
