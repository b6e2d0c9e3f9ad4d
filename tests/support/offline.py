"""Rows, modules and plain PyTorch oracles for the tests of learning from given answers."""

import json
from functools import partial

import lightning
import torch

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.feedback import FeedbackData
from rlhf_lightning.modules import DPOModule, KTOModule
from tests.support import tiny

RANKINGS = [
    ("the food was", [" very good .", " bad", " slow ."], [1, 3, 2]),
    ("we left", [" happy", " slow", " ."], [1, 2, 2]),
    ("the service was", [" kind .", " bad .", " slow and bad ."], [1, 2, 3]),
    ("good food", [" and", " ."], [2, 1]),
    ("we", [" left .", " left happy and left .", " good", " bad"], [1, 1, 3, 2]),  # two are best
    ("very", [" good food and very good service .", " bad"], [1, 2]),
    ("bad", [" .", " food ."], [2, 1]),
    ("the", [" food was good .", " service"], [1, 2]),
]
FEEDBACK = [
    ("the food was", " very good .", True),
    ("we left", " slow", False),
    ("the service was", " slow and bad and bad .", False),
    ("good food", " and kind service .", True),
    ("we", " left happy .", True),
    ("very", " bad", False),
    ("bad", " .", False),
    ("the", " food was good .", True),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rankings(folder):
    rows = [{"prompt": p, "completions": c, "ranks": r} for p, c, r in RANKINGS]
    return write(folder / "rankings.jsonl", rows)


def feedback(folder):
    return write(folder / "feedback.jsonl", [{"prompt": p, "completion": c, "label": y} for p, c, y in FEEDBACK])


def pairs(file, micro=None, batch=8, validation=None, **options):
    given = {"validation_fraction": 0.0, **options}
    return ComparisonData(file, validation, tiny.tokenizer(), batch_size=batch, micro_batch_size=micro, **given)


def answers(file, micro=None, batch=8, validation=None, **options):
    given = {"validation_fraction": 0.0, **options}
    return FeedbackData(file, validation, tiny.tokenizer(), batch_size=batch, micro_batch_size=micro, **given)


def trainer(accumulate=1, epochs=1, **options):
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, num_sanity_val_steps=0,
        use_distributed_sampler=False, **options,
    )  # fmt: skip


def preference(lr=1.0, adam=False, cls=DPOModule, lora=False, **options):
    optimizer = partial(torch.optim.Adam if adam else torch.optim.SGD, lr=lr)
    return cls(tiny.adapted(tiny.policy(), lora), tiny.tokenizer(), optimizer, **{"max_grad_norm": 0.0, **options})


def unpaired(lr=1.0, adam=False, **options):
    return preference(lr, adam, KTOModule, **options)


def fit(module, data, epochs=1, **options):
    run = trainer(data.accumulate_for(1), epochs, **options)
    run.fit(module, datamodule=data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def step(model):
    """Where gradient descent at rate 1 would go, and from where."""
    start = flat(model)
    return start, start - torch.cat([p.grad.flatten() for p in model.parameters()])


def plain_logprob(model, prompt, completion):
    """log p(completion, EOS | prompt) and the number of its tokens, one sequence without padding."""
    tok = tiny.tokenizer()
    p, c = tok(prompt).input_ids, [*tok(completion).input_ids, tok.eos_token_id]
    logprobs = model(torch.tensor([p + c])).logits[0].log_softmax(-1)
    return sum(logprobs[len(p) + i - 1, token] for i, token in enumerate(c)), len(c)
