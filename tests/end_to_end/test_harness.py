"""An exported policy in lm-evaluation-harness, where that is installed."""

import pytest
import torch

from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.forward import token_scores
from tests.support import phases, tiny


def test_an_exported_policy_loads_in_the_harness_and_gives_its_own_log_probabilities(tmp_path):
    lm_eval = pytest.importorskip("lm_eval.models.huggingface", reason="pip install 'lm_eval[hf]' in this environment")
    from lm_eval.api.instance import Instance

    module, _ = phases.sft(phases.write(tmp_path), epochs=1)
    module.export(tmp_path / "out", {"stage": "sft"})
    harness = lm_eval.HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=1)
    request = Instance("loglikelihood", {}, ("the food was", " very good ."), 0)
    ((found, _),) = harness.loglikelihood([request], disable_tqdm=True)
    ids = tiny.tokenizer()("the food was very good .", return_tensors="pt").input_ids
    mask = torch.ones_like(ids).bool()
    answer = mask.clone()
    answer[:, :3] = False
    policy = Pretrained(str(tmp_path / "out")).causal_lm().eval()
    with torch.no_grad():
        expected = token_scores(policy, ids, mask, answer).logprobs.sum()
    assert found == pytest.approx(float(expected), abs=1e-4)
