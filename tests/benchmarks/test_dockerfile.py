"""The Dockerfile against what the package needs, and the program that does its steps (`make dist`) on a few lines."""

import json
import os
import pwd
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

from benchmarks.distribution import ROOT, TORCH
from benchmarks.dockerfile import STAND_IN, Image, copied, steps
from rlhf_lightning.config.compose import compose

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GIVEN = steps((ROOT / "Dockerfile").read_text())
SMALL = """
FROM python:3.11-slim
RUN useradd --create-home someone && mkdir /srv/place && chown someone /srv/place
USER someone
WORKDIR /srv/place
ENV PATH=/srv/place/source:$PATH A=b
ARG CHOSEN=other
ARG LEFT=as-it-is
COPY --chown=someone one.txt ./
COPY --chown=someone one.txt two.txt
COPY --chown=someone one.txt two ./source/
RUN test "$A $CHOSEN $LEFT" = "b mine as-it-is" && test -O one.txt -a -f two.txt -a -O source/tool && \\
    id -u > uid && id -G > groups
run python && touch "$HOME/mine"
CMD ["tool", "x"]
"""


def numbers(word, pattern=""):
    return [number for number, step in enumerate(GIVEN) if step.word == word and re.search(pattern, step.rest)]


def test_what_is_copied_is_there_and_is_all_that_the_wheel_is_built_of():
    assert [name for name in copied(GIVEN) if not (ROOT / name).exists()] == []
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *wheel["packages"], *wheel["force-include"]}
    needed |= {PROJECT["tool"]["hatch"]["version"]["path"].partition("/")[0], *PROJECT["project"]["license-files"]}
    assert needed <= set(copied(GIVEN))


def test_torch_is_installed_first_and_alone_then_the_package_with_extras_that_there_are():
    torch, package = (GIVEN[number].rest for number in numbers("RUN", "pip install"))
    assert torch.split()[-1] == TORCH and "./source" not in torch
    _, extras = re.search(r'"\./source(\[(.+)\])"$', package).groups()
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "-c constraints.txt" in package and numbers("COPY", "constraints")[0] < numbers("RUN", "source")[0]


def test_all_but_the_making_of_the_user_is_done_without_rights():
    (user,) = numbers("USER")
    assert all(number < user for number in numbers("RUN", "useradd"))
    assert all(number > user for word in ("WORKDIR", "COPY", "CMD") for number in numbers(word))
    assert all(number > user for number in numbers("RUN", "pip"))


def test_the_command_composes():
    program, *words = json.loads(GIVEN[numbers("CMD")[-1]].rest)
    assert program in PROJECT["project"]["scripts"]
    assert compose(words)["trainer"]["accelerator"] == "cpu"


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as made:  # which others may enter
        Path(made).chmod(0o755)
        yield Path(made)


def test_steps_are_done_in_a_folder_as_a_user_without_rights(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("CHOSEN", "mine")
    (tmp_path / "one.txt").touch()
    (tmp_path / "two/__pycache__").mkdir(parents=True)
    (tmp_path / "two/tool").write_text('#!/bin/sh\necho "$@" "$PYTHONPATH" > words')
    (tmp_path / "two/tool").chmod(0o755)
    image = Image(folder, tmp_path, "/bin/true")
    for step in steps(SMALL):
        image.do(step, ["y"])
    made = folder / "srv/place"
    root, other = os.geteuid() == 0, pwd.getpwnam(STAND_IN)
    assert int((made / "uid").read_text()) == (other.pw_uid if root else os.geteuid()) != 0
    assert not root or (made / "groups").read_text().split() == [str(other.pw_gid)]
    assert (folder / "home/mine").exists()
    assert (made / "words").read_text() == "x y \n"
    assert sorted(path.name for path in (made / "source").iterdir()) == ["one.txt", "tool"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("RUN apt-get update", "line 1: root does more here than make a user and a folder"),
        ("RUN useradd a && mkdir /b && chown a /b && touch /c", "line 1: root does more here than make a user"),
        ("USER me\nCOPY a ./", "line 2: what root owns cannot be changed by me; add --chown=me"),
        ("# why\n\nVOLUME \\\n  /x", "line 3: VOLUME is not known here"),
    ],
)
def test_a_step_that_needs_rights_or_is_not_known_ends_with_its_line(tmp_path, text, says):
    image = Image(tmp_path, tmp_path, "/bin/true")
    with pytest.raises(SystemExit, match=says):
        for step in steps(text):
            image.do(step)


def test_a_step_that_fails_is_an_error(folder):
    image = Image(folder, folder, "/bin/true")
    with pytest.raises(subprocess.CalledProcessError):
        for step in steps("USER me\nRUN false"):
            image.do(step)
