"""A server with the routes of vLLM that training uses, a Hugging Face model behind them, and faults on command.

It computes in float32, draws each row by itself from a generator of its own, and reads files with the plugin's code.
"""

import copy
import json
import math
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from server_plugin.rlhf_lightning_vllm.files import weights
from tests.support import tiny
from tests.support.http_answers import answering

HTTP_FAULTS = (429, 500, 503)


class FakeVLLM:
    """What it was asked, and what is wrong with it.

    ``faults`` meet the next completions, one each: an HTTP state, ``closed``, ``slow``, ``garbage``, or a function that
    changes the answer in place. ``each`` is a function that does so to every answer. ``broken`` gives the fault of
    every call of a path. ``stale_from``: updates from this one on, counted from 1, are accepted and change nothing.
    ``says_version`` is said instead of the version. ``jitter``: seconds that answers take at most, by their seeds;
    ``delay``: that each of them takes.
    """

    def __init__(self, model, tokenizer=None):
        self.base = copy.deepcopy(model).eval().requires_grad_(False)
        self.model, self.adapter = self.base, None  # name and folder
        self.tokenizer = tokenizer or tiny.tokenizer()
        self.version, self.url = "default", ""
        self.asked, self.paths, self.faults, self.broken, self.queries = [], [], [], {}, {}
        self.each = None
        self.stale_from, self.updates = math.inf, 0
        self.says_version, self.slow_seconds = None, 5.0
        self.jitter = self.delay = 0.0
        self.most = self.open = 0
        self.running = threading.Event()
        self.running.set()
        self.updating = False
        self.lock, self.guard = threading.Lock(), threading.Lock()

    def answer(self, path, body, headers):
        """See `http_server`."""
        path, _, query = path.partition("?")
        self.queries[path] = query
        with self.guard:
            self.paths.append(path)
            fault = self.broken.get(path)
            if path == "/v1/completions":
                self.asked.append(body)
                fault = fault or (self.faults.pop(0) if self.faults else None)
        if fault == "slow":
            time.sleep(self.slow_seconds)
        elif fault == "closed":
            return None
        elif fault == "garbage":
            return 200, {}, b"<html>"
        elif isinstance(fault, int):
            return fault, {}, {"error": "told to"}
        try:
            found = self.route(path, body)
        except Exception as error:
            return 500, {}, {"error": f"{type(error).__name__}: {error}"}
        for change in (fault, self.each):
            if callable(change) and path == "/v1/completions":
                change(found)
        return 200, {}, found

    def route(self, path, body):
        if path == "/v1/completions":
            with self.guard:
                self.open += 1
                self.most = max(self.most, self.open)
            self.running.wait()
            time.sleep(self.delay + self.jitter * (body["seed"] % 97) / 97)
            with self.lock:
                found = self.complete(body)
            with self.guard:
                self.open -= 1
            return found
        return getattr(self, path.strip("/").replace("/", "_").replace("v1_", ""))(body)

    def models(self, body):
        loaded = [{"id": self.adapter[0], "root": self.adapter[1]}] if self.adapter else []
        return {"data": [{"id": "policy", "root": "somewhere"}, *loaded]}

    def weight_info(self, body):
        return {"weight_version": self.says_version or self.version}

    def pause(self, body):
        self.running.clear()
        return {"status": "paused"}

    def resume(self, body):
        self.running.set()
        return {"status": "resumed"}

    def init_weight_transfer_engine(self, body):
        return {"message": body["init_info"] and ""}

    def start_weight_update(self, body):
        assert not self.updating and not self.running.is_set()
        self.updating = True
        return {}

    def update_weights(self, body):
        assert self.updating
        told = body["update_info"]
        self.load(dict(weights(told["files"], time.monotonic() + told["seconds"])))
        return {}

    def finish_weight_update(self, body):
        assert self.updating
        self.updating, self.version = False, body["weight_version"]
        return {}

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights" and not self.running.is_set()
        files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
        self.load({name: weight for file in files for name, weight in load_file(file).items()})
        return {"results": [None]}

    def update_weight_version(self, body):
        self.version = body["new_version"]
        return {"success": True}

    def load_lora_adapter(self, body):
        assert body["load_inplace"]
        folder = Path(body["lora_path"])
        config = json.loads((folder / "adapter_config.json").read_text())
        parts = load_file(folder / "adapter_model.safetensors")
        if self.takes_update():
            self.model = copy.deepcopy(self.base)
            for name in [name for name in parts if name.endswith(".lora_A.weight")]:
                weight = self.model.get_parameter(name.removeprefix("base_model.model.").replace(".lora_A.", "."))
                weight += config["lora_alpha"] / config["r"] * parts[name.replace("lora_A", "lora_B")] @ parts[name]
        self.adapter = body["lora_name"], body["lora_path"]
        return b"Success"

    def takes_update(self):
        self.updates += 1
        return self.updates < self.stale_from

    def load(self, state):
        if self.takes_update():
            missing, unexpected = self.base.load_state_dict(state, strict=False)
            tied = self.base.config.tie_word_embeddings
            assert not unexpected and set(missing) <= ({"lm_head.weight"} if tied else set())

    @torch.no_grad()
    def complete(self, body):
        if "model" in body:
            assert self.adapter and body["model"] == self.adapter[0]
        model = self.model if "model" in body else self.base
        generator = torch.Generator().manual_seed(body["seed"])
        ids, logprobs, reason, stop = list(body["prompt"]), [], "length", None
        new, cache = ids, DynamicCache()
        for _ in range(body["max_tokens"]):
            logits = model(torch.tensor([new]), past_key_values=cache).logits[0, -1].float() / body["temperature"]
            if body["top_k"]:
                logits = logits.masked_fill(logits < logits.topk(body["top_k"]).values[-1], -torch.inf)
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            new = [token]
            ids = ids + new
            logprobs.append(float(logits.log_softmax(-1)[token]))
            text = self.tokenizer.decode(ids[len(body["prompt"]) :])
            stop = next((s for s in body["stop"] if s in text), token if token in body["stop_token_ids"] else None)
            if stop is not None:
                reason = "stop"
                break
        choice = {
            "index": 0, "text": "", "token_ids": ids[len(body["prompt"]) :], "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason, "stop_reason": stop,
        }  # fmt: skip
        return {"id": f"cmpl-{body['request_id']}", "choices": [choice]}


@contextmanager
def fake_vllm(model=None, tokenizer=None, port=0):
    """A `FakeVLLM` that listens on this machine."""
    fake = FakeVLLM(tiny.policy() if model is None else model, tokenizer)
    with answering(fake.answer, port) as fake.url:
        try:
            yield fake
        finally:
            fake.running.set()
