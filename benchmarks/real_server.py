"""Does a real vLLM server answer with the tokens, numbers and weights it was asked for?

    python -m benchmarks.real_server ../vllm_env/bin/python --dtype float32

The argument is vLLM's command, or the python of its environment, where `server_plugin/` is installed (docs/server.md);
words behind it are handed to vLLM. A random Llama is served, its weights are changed through files, by vLLM's own
loader and as adapters, and each time the server's log-probabilities are compared with those of transformers. Prints
what was measured; exit status 1 if something that has to hold does not. The loader with a head that is shared with the
embedding is printed and not judged: on a CPU vLLM's own goes wrong there.
"""

from __future__ import annotations

import argparse
import copy
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.errors import RolloutError
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.models.adapters import Lora
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.rollout import Sampling, ServerEngine
from rlhf_lightning.types import PromptBatch, Rollout

EXACT = 1e-3  # nats per token on average, in float32
SAMPLING = Sampling(max_new_tokens=24, temperature=0.8)
EOS = (1,)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, ids: pad 0, eos 1, unknown 2."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{n}" for n in range(125))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def folder_of_model(folder: Path, *, tied: bool) -> Path:
    """A random Llama of two layers with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, tie_word_embeddings=tied, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def prompts(count: int = 8, repeats: int = 4) -> PromptBatch:
    """Random prompts of different lengths, each ``repeats`` times."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 128, (3 + 2 * n,), generator=draw).tolist() for n in range(count)]
    ids, mask = left_pad([row for row in rows for _ in range(repeats)], 0)
    return PromptBatch(ids, mask, tuple({"prompt": ""} for _ in range(len(ids))))


@torch.no_grad()
def gap(rollout: Rollout, policy: PreTrainedModel) -> tuple[float, float]:
    """Mean and largest distance of the server's log-probabilities from those of ``policy``, nats per token."""
    scored = token_scores(
        policy.eval(), rollout.input_ids, rollout.attention_mask, rollout.sampled, temperature=SAMPLING.temperature
    )
    assert rollout.rollout_logprobs is not None
    found = (rollout.rollout_logprobs - spread(scored.logprobs, rollout.mask)).abs()[rollout.mask]
    return float(found.mean()), float(found.max())


def moved(policy: PreTrainedModel, size: float = 0.03) -> PreTrainedModel:
    """A copy with other weights."""
    other = copy.deepcopy(policy)
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight), alpha=size)
    return other


class Report:
    """Prints what was measured and keeps what does not hold."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def gaps(self, name: str, rollout: Rollout, new: PreTrainedModel, old: PreTrainedModel, exact: bool = True) -> None:
        """The distance to the weights that were sent, and to those before."""
        (mean, most), (before, _) = gap(rollout, new), gap(rollout, old)
        print(f"{name}: {mean:.1e} nats per token (most {most:.1e}) from the new weights, {before:.1e} from the old")
        if exact:
            self.holds(f"{name}: the new weights", mean < EXACT)

    def holds(self, name: str, true: bool) -> None:
        """Note what has to hold."""
        print(f"{'yes' if true else 'NO'}: {name}")
        if not true:
            self.faults.append(name)


def repeats(engine: ServerEngine, report: Report) -> None:
    """Seeds, whatever runs beside a row; ends of answers."""
    batch = prompts()
    engine.seed(5)
    together = engine.generate(batch, SAMPLING)
    engine.seed(5)
    again = engine.generate(batch, SAMPLING)
    engine.seed(5)
    engine.concurrency = 1
    alone = engine.generate(batch, SAMPLING)
    engine.concurrency = 64
    report.holds("a seed repeats", torch.equal(together.response_ids, again.response_ids))
    equal = (together.response_ids == alone.response_ids).all(1) if together.mask.shape == alone.mask.shape else None
    share = 0.0 if equal is None else float(equal.float().mean())
    print(f"rows with the same tokens alone as together: {share:.0%}")
    rows = {tuple(row) for row in together.response_ids.tolist()}
    report.holds("no two rows of a group are the same", len(rows) == len(batch))
    stopped = engine.generate(batch, replace(SAMPLING, stop=("w7", "w9 ")), tokenizer())
    ends = {EOS[0], tokenizer().convert_tokens_to_ids("w7")}
    ids = [row[mask].tolist() for row, mask in zip(stopped.response_ids, stopped.mask, strict=True)]
    report.holds("nothing follows EOS or a stop string", not any(set(row[:-1]) & ends for row in ids))
    count = int(stopped.finished.sum())
    print(
        f"{count} of {len(ids)} answers ended by themselves, {sum(row[-1] == EOS[0] for row in ids)} of them with EOS"
    )


def adapted(policy: PreTrainedModel, scale: float) -> PreTrainedModel:
    """A copy with adapters that change it by ``scale``."""
    other = copy.deepcopy(policy)
    torch.manual_seed(3)
    Lora(r=4).put_into(other)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=scale)
    return other


def play(program: list[str], folder: Path, report: Report, *, tied: bool) -> None:
    """All of it with one server."""
    first = LlamaForCausalLM.from_pretrained(folder_of_model(folder / "model", tied=tied))
    base = adapted(first, 0.0)
    begin = time.monotonic()
    engine = ServerEngine(start=True, program=program, folder=folder / "server", retries=1)
    engine.sync(base, EOS, 0, 0)
    print(f"started in {time.monotonic() - begin:.0f} s")
    try:
        report.gaps("files, the weights it was started with", engine.generate(prompts(), SAMPLING), base, moved(first))
        for version in (1, 2):
            new, old = (adapted(moved(first, 0.02 * n), 0.0) for n in (version, version - 1))
            begin = time.monotonic()
            engine.sync(new, EOS, 0, version)
            took = time.monotonic() - begin
            report.gaps(f"files, version {version} in {took:.1f} s", engine.generate(prompts(), SAMPLING), new, old)
        repeats(engine, report)
        url = engine.servers.servers[0].url
        for version, scale in ((3, 0.05), (4, 0.1)):
            with_adapter = adapted(moved(first, 0.04), scale)
            other = ServerEngine([url], weights="lora", folder=folder / "lora", retries=1)
            begin = time.monotonic()
            other.sync(with_adapter, EOS, 0, version)
            took = time.monotonic() - begin
            answers = other.generate(prompts(), SAMPLING)
            report.gaps(f"adapters, version {version} in {took:.1f} s", answers, with_adapter, new)
            other.close()
        loader = ServerEngine([url], weights="reload", folder=folder / "reload", retries=1)
        loader.sync(first, EOS, 0, 5)
        report.gaps("loader", loader.generate(prompts(), SAMPLING), first, new, exact=not tied)
        loader.close()
        killed(engine, url, report)
    finally:
        engine.close()


def killed(engine: ServerEngine, url: str, report: Report) -> None:
    """The server's processes end in the middle of a rollout."""
    listening = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    port = url.rpartition(":")[2]
    found = [
        int(line.split()[0]) for line in listening.splitlines() if f"--port {port}" in line and "keeper" not in line
    ]
    threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGKILL) for pid in found]).start()
    said = ""
    try:
        for _ in range(100):
            engine.generate(prompts(), replace(SAMPLING, max_new_tokens=200))
    except RolloutError as error:
        said = str(error)
    print(f"killed: {said.splitlines()[0] if said else 'nothing was said'}")
    report.holds("a server that is killed ends the run with one error", "the server has ended" in said)


def main() -> None:
    """Parse the command line, play, say what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="vLLM's command, or the python of its environment")
    options, more = parser.parse_known_args()
    report = Report()
    for tied in (True, False):
        print(f"\nhead {'shared with the embedding' if tied else 'of its own'}")
        with tempfile.TemporaryDirectory() as folder:
            play([options.program, *more], Path(folder), report, tied=tied)
    if report.faults:
        raise SystemExit("does not hold: " + "; ".join(report.faults))


if __name__ == "__main__":
    main()
