"""TensorBoard itself, in a browser: each chart of ours shows its curves and no others."""

import shutil

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from rlhf_lightning.callbacks import TensorBoardExtras
from rlhf_lightning.callbacks.tensorboard import CHARTS
from tests.support.logging_modules import Refinement, loader, trainer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DECOYS = ("objective/kl_p99", "objective/kl_target_later", "val/objective/scores", "objective/scores_std")


@pytest.fixture(scope="module")
def page():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    if CHROMIUM is None:
        pytest.skip("needs Chromium among the programs of the machine")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1400, "height": 2400})
        browser.close()


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_each_chart_shows_its_curves_and_no_others(tmp_path, page):
    from tensorboard import program

    logger = TensorBoardLogger(tmp_path, name="", version="ppo")
    for decoy in DECOYS:
        logger.log_metrics({decoy: 1.0}, step=0)
    trainer([TensorBoardExtras()], tmp_path, logger=logger).fit(Refinement([0.5] * 3, [1] * 3), loader(3))
    logger.finalize("success")
    board = program.TensorBoard()
    board.configure(
        argv=[None, "--logdir", str(tmp_path), "--port", "0", "--host", "127.0.0.1", "--load_fast", "false",
              "--reload_interval", "0"]
    )  # fmt: skip
    page.goto(board.launch() + "#custom_scalars")
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    for tag in ("objective/kl (ppo)", "objective/kl_target (ppo)", "objective/scores (ppo)"):
        cards.locator(".match-list-entry", has_text=tag).first.wait_for(state="attached", timeout=30_000)
    shown = {}
    for card in cards.all():
        title = card.evaluate("card => card.title")
        shown[title] = [text.split()[1] for text in card.locator(".match-list-entry").all_text_contents()]
    drawn = {title: set(tags) for charts in CHARTS.values() for title, tags in charts.items()}
    assert {"objective/kl", "objective/scores"} <= {tag for tags in shown.values() for tag in tags}
    for title, tags in shown.items():
        assert len(set(tags)) == len(tags)
        assert set(tags) <= drawn[title], title
