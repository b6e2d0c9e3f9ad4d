"""A reference that is asked once: the same numbers, and its model is gone."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.functional.reference_free import simpo_loss
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import DPOModule, KTOModule
from rlhf_lightning.modules.offline import OfflineModule
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.reference_logprobs import ReferenceLogprobs
from tests.support import offline, phases, tiny

KINDS = {"dpo": DPOModule, "kto": KTOModule}
BATCH, MICRO = 4, 2  # an epoch has a batch of four rows and one of two


@pytest.fixture
def world(tmp_path):
    """A folder with rows, and a model that packs."""
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.policy(layers=3).save_pretrained(tmp_path / "model")
    for part, rows in (("train", slice(6)), ("held_out", slice(6, None))):
        ranked = [{"prompt": p, "completions": c, "ranks": r} for p, c, r in offline.RANKINGS[rows]]
        judged = [{"prompt": p, "completion": c, "label": y} for p, c, y in offline.FEEDBACK[rows]]
        offline.write(tmp_path / f"dpo_{part}.jsonl", ranked)
        offline.write(tmp_path / f"kto_{part}.jsonl", judged)
    return tmp_path


def learn(kind, world, cached, epochs=1, *, resume=None, callbacks=(), **options):
    """Train on the rows of the folder; gives the module and all that was logged."""
    torch.manual_seed(0)  # adapters begin at random
    make = offline.pairs if kind == "dpo" else offline.answers
    data = make(world / f"{kind}_train.jsonl", MICRO, BATCH, world / f"{kind}_held_out.jsonl")
    module = KINDS[kind](
        Pretrained(str(world / "model"), **options), tiny.tokenizer(), partial(torch.optim.SGD, lr=0.3),
        cache_reference=cached, max_grad_norm=0.0,
    )  # fmt: skip
    run = phases.trainer(
        data.accumulate_for(1), epochs, callbacks, bool(callbacks), default_root_dir=world,
        plugins=[DurableCheckpointIO()],
    )  # fmt: skip
    run.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module, {name: float(v) for name, v in run.callback_metrics.items() if not name.startswith("perf")}


def weights(module):
    return offline.flat(module.policy)


def kept(world, kind="dpo"):
    return world / "reference_logprobs" / kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"pack_rows": False}, {"freeze_below": 1}, {"lora": {"r": 2}}], ids=str)
def test_one_epoch_is_the_same_to_the_last_bit(world, kind, options):
    if "lora" in options:
        pytest.importorskip("peft")
    plain, before = learn(kind, world, False, **options)
    cached, after = learn(kind, world, True, **options)
    assert "reference" in plain.frozen and "reference" not in cached.frozen
    assert torch.equal(weights(plain), weights(cached))
    assert {"train/loss", "val/loss"} < before.keys() and before == after
    assert abs(after["val/drift/chosen"]) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_later_epochs_differ_by_rounding_and_the_reference_is_run_before_the_first(world, kind, monkeypatch):
    plain, before = learn(kind, world, False, 3)
    calls, sums = [], OfflineModule._sums

    def counted(self, model, *given):
        calls.append("policy" if model is self.policy else "reference")
        return sums(self, model, *given)

    monkeypatch.setattr(OfflineModule, "_sums", counted)
    cached, after = learn(kind, world, True, 3)
    asked = calls.count("reference")
    assert calls[:asked] == ["reference"] * asked
    assert asked == (4 + 1 if kind == "dpo" else (4 + 1 + 1) + 3 * 4)  # held out 1; strange answers in each epoch
    assert not torch.equal(weights(plain), weights(cached))  # or nothing was kept
    assert (weights(plain) - weights(cached)).norm() <= 1e-6 * weights(plain).norm()
    assert before == pytest.approx(after, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_asks_nothing_again_and_ends_where_it_would_have(world, kind, monkeypatch):
    saver = DurableCheckpoint(world / "checkpoints", every_n_steps=1, keep=9)
    whole, _ = learn(kind, world, True, 2, callbacks=[saver])
    third = checkpoints(world / "checkpoints")[2]
    monkeypatch.setattr(ReferenceLogprobs, "add", None)
    resumed, _ = learn(kind, world, True, 2, resume=third)
    assert torch.equal(weights(whole), weights(resumed))


def test_what_is_kept_has_its_hashes_and_says_what_decided_it(world):
    learn("dpo", world, True)
    record = verify_folder(kept(world))
    assert record["answers"] == 3 + 3 + 3 + 2 + 4 + 2 + 2 + 2 and len(record["rows"]) == 64
    assert record["settings"].keys() == {"reference", "dtype", "precision"}
    assert (record["settings"]["dtype"], record["settings"]["precision"]) == ("torch.float32", "32-true")


def test_what_was_damaged_is_asked_again(world, caplog):
    learn("dpo", world, True)
    file = kept(world) / "logprobs.safetensors"
    good, settings = file.read_bytes(), verify_folder(kept(world))["settings"]
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    cache = ReferenceLogprobs(kept(world), settings, Ranks())
    cache.read()
    assert not cache.known and "checksum differs" in caplog.text and "the reference is asked again" in caplog.text
    file.write_bytes(good)
    cache.read()
    assert len(cache.known) == 21
    key, value = next(iter(cache.known.items()))
    cache.add([key], torch.tensor([value + 1]))  # in other company, with other rounding
    cache.share()
    assert cache.of([key], torch.device("cpu")).tolist() == [value]


@pytest.mark.parametrize("name", ["reference", "dtype", "precision"])
def test_what_was_kept_under_other_settings_is_asked_again(world, caplog, name):
    learn("dpo", world, True)
    settings = verify_folder(kept(world))["settings"]
    cache = ReferenceLogprobs(kept(world), settings | {name: "another"}, Ranks())
    cache.read()
    assert not cache.known and f"{name} changed since; the reference is asked again" in caplog.text


def test_another_reference_in_the_same_folder_is_asked_itself(world, caplog):
    learn("dpo", world, True)
    tiny.policy(7, layers=3).save_pretrained(world / "model")
    (plain, before), (cached, after) = learn("dpo", world, False), learn("dpo", world, True)
    assert "reference changed since" in caplog.text
    assert torch.equal(weights(plain), weights(cached)) and before == after


def test_only_rows_that_are_new_are_asked_about(world):
    learn("dpo", world, True)
    file = kept(world) / "logprobs.safetensors"
    before = load_file(file)
    rows = (world / "dpo_train.jsonl").read_text()
    new = json.dumps({"prompt": "happy", "completions": [" we", " left ."], "ranks": [1, 2]})
    (world / "dpo_train.jsonl").write_text(rows + new + "\n")
    learn("dpo", world, True)
    after = load_file(file)
    known = dict(zip(map(bytes, after["keys"].numpy()), after["logprobs"].tolist(), strict=True))
    assert len(known) == 23
    assert all(
        known[bytes(key)] == value
        for key, value in zip(before["keys"].numpy(), before["logprobs"].tolist(), strict=True)
    )


def test_answers_that_come_later_are_an_error(world):
    module, _ = learn("dpo", world, True)
    data = offline.pairs(world / "dpo_train.jsonl", MICRO, BATCH)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert module.logprobs(batch).reference.dtype == torch.float32
    other = replace(batch, input_ids=torch.where(batch.attention_mask, 16 - batch.input_ids, batch.input_ids))
    with pytest.raises(DataError, match=r"none of the 21 that the reference was asked about.*cache_reference"):
        module.logprobs(other)


def test_rows_of_unknown_origin_are_refused():
    module = offline.preference(cache_reference=True)
    with pytest.raises(ConfigError, match=r"dpo.cache_reference=true needs a data module of this library.* DataLoader"):
        offline.trainer().fit(module, DataLoader([0, 1]), DataLoader([0]))


def test_there_is_nothing_to_cache_without_a_reference():
    with pytest.raises(ConfigError, match=r"dpo.cache_reference=true: the loss compares answers without a reference"):
        offline.preference(cache_reference=True, loss=simpo_loss)


@pytest.mark.parametrize(("epochs", "steps", "passes"), [(3, -1, 3), (None, 3, 2), (-1, 4, 2), (2, 9, 2), (5, 1, 1)])
def test_kto_looks_as_far_ahead_as_it_will_train(world, epochs, steps, passes):
    seen = []
    data = offline.answers(world / "kto_train.jsonl", MICRO, BATCH)
    module = offline.unpaired(cache_reference=True)
    look = data.loader.look_through
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.loader, "look_through", lambda self, epoch, at_most: seen.append(epoch) or look(self, epoch))
        run = offline.trainer(data.accumulate_for(1), epochs, max_steps=steps, default_root_dir=world)
        run.fit(module, datamodule=data)
    assert seen == list(range(passes))


def test_kto_without_an_end_is_refused(world):
    data = offline.answers(world / "kto_train.jsonl", MICRO, BATCH)
    with pytest.raises(ConfigError, match=r"kto.cache_reference=true needs a number of epochs or steps"):
        offline.trainer(data.accumulate_for(1), -1).fit(offline.unpaired(cache_reference=True), datamodule=data)


def test_a_dry_run_asks_about_no_more_than_it_needs(world):
    data = offline.pairs(world / "dpo_train.jsonl", MICRO, BATCH, world / "dpo_held_out.jsonl")
    module = offline.preference(cache_reference=True)
    offline.trainer(1, fast_dev_run=1, default_root_dir=world).fit(module, datamodule=data)
    assert verify_folder(kept(world))["answers"] < 12
