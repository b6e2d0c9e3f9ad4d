"""Words of other tools lead to keys that exist."""

import re

from rlhf_lightning.config import other_tools
from rlhf_lightning.config.locations import CONF_DIR, in_file
from rlhf_lightning.config.tree import walk
from tests.gates.gate_sources import ROOT

PLACES = {
    "algorithm": "ppo.",
    "loss": "dpo.loss.",
    "kl": "kl.",
    "model": "model.",
    "data": "data.",
    "trainer": "trainer.",
}


def keys_of_the_config():
    for path in CONF_DIR.rglob("*.yaml"):
        group = path.relative_to(CONF_DIR).parts[0]
        if group in ("stage", "base.yaml") or group in PLACES:
            name = str(path.relative_to(CONF_DIR).with_suffix(""))
            yield from (PLACES.get(group, "") + entry.key for entry in walk(in_file(name)))


def test_every_word_leads_to_a_key_that_exists():
    keys = set(keys_of_the_config())
    lost = {
        word: end
        for word, ends in other_tools._KEYS.items()
        for end in ends
        if "=" not in end and " " not in end and not any(key == end or key.endswith(f".{end}") for key in keys)
    }
    assert lost == {}


def test_every_key_of_the_page_for_those_who_come_from_elsewhere_is_answered():
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    rows = page.split("## Keys")[1].split("```")[0].splitlines()
    words = {word for row in rows if row.startswith("| `") for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    ours = {
        entry.path[-1]
        for name in ("stage/sft", "stage/ppo", "data/files")
        for entry in walk(in_file(name))
        if entry.path
    }
    assert len(words) > 25 and words - set(other_tools._KEYS) - ours == set()
