import subprocess
import sys
import zipfile

import pytest

from tests.gates.gate_sources import CONF, PACKAGE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_configs_plugin_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"rlhf_lightning/conf/{p.relative_to(CONF)}" for p in CONF.rglob("*.yaml")}
    sources = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*.py")}
    pages = {str(p.relative_to(ROOT)) for p in (PACKAGE / "people" / "page").iterdir()}
    assert configs | sources | pages <= names
    assert "hydra_plugins/rlhf_lightning_search_path/__init__.py" in names
    assert "hydra_plugins/__init__.py" not in names  # a namespace that other plugins share
    assert "rlhf_lightning/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_holds_nothing_else(wheel):
    roots = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"rlhf_lightning", "hydra_plugins"}


def test_the_unpacked_wheel_composes_and_serves_other_applications(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("defaults: [{kl: adaptive}, _self_]\nmine: 1\n")
    code = """
import os, hydra, rlhf_lightning
from rlhf_lightning.config.compose import compose
assert rlhf_lightning.__file__.startswith(os.getcwd()), rlhf_lightning.__file__
assert compose(["stage=ppo"])["stage_name"] == "ppo"
with hydra.initialize_config_dir(os.path.abspath("conf"), version_base=None):
    print(hydra.compose("app").kl._target_)
"""
    env = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rlhf_lightning.optim.kl_controllers.")


def test_the_console_script_points_to_main(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "rlhf-lightning = rlhf_lightning.cli.main:main" in archive.read(entry).decode()
