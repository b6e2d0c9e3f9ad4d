"""Log-probabilities from hidden states in chunks, against the same from all logits at once."""

import pytest
import torch
from torch.nn.functional import linear
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_lightning.functional.linear_logprobs import linear_logprobs

ROWS, WIDTH, WORDS = 11, 8, 50


def inputs(dtype=torch.float32, rows=ROWS, bias=False):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in
               ((rows, WIDTH), (WORDS, WIDTH), *([(WORDS,)] if bias else []))]  # fmt: skip
    targets = torch.randint(0, WORDS, (rows,), generator=generator)
    return [t.to(dtype).requires_grad_() for t in tensors], targets


def by_hand(parameters, targets, scale=1.0, soft_cap=None, temperature=1.0):
    """Log-probabilities, entropy and correctness from a softmax over all rows."""
    logits = scale * linear(*parameters)
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    probs = torch.softmax(logits / temperature, dim=-1)
    wanted = torch.nn.functional.one_hot(targets, WORDS)
    return (probs * wanted).sum(-1).log(), -(probs * probs.log()).sum(-1), logits.argmax(-1) == targets


def close(got, expected, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert (got - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"temperature": 0.7}, {"soft_cap": 3.0}, {"scale": 0.25},
     {"bias": True, "temperature": 1.5, "soft_cap": 2.0, "scale": 3.0}],
    ids=lambda options: " ".join(options) or "plain",
)  # fmt: skip
@pytest.mark.parametrize("entropy_grad", [False, True])
def test_values_and_gradients_are_those_of_all_logits_at_once(dtype, chunk, options, entropy_grad):
    options = dict(options)
    parameters, targets = inputs(dtype, bias=options.pop("bias", False))
    bias = parameters[2] if len(parameters) == 3 else None
    out = linear_logprobs(
        *parameters[:2],
        targets,
        bias=bias,
        chunk=chunk,
        entropy=True,
        entropy_grad=entropy_grad,
        correct=True,
        **options,
    )
    logprobs, entropy, correct = by_hand(parameters, targets, **options)
    close(out.logprobs, logprobs, dtype)
    close(out.entropy, entropy, dtype)
    assert torch.equal(out.correct, correct)
    assert out.entropy.requires_grad is entropy_grad
    each = torch.linspace(-1, 2, ROWS, dtype=dtype)
    losses = [
        (each * a).sum() + (entropy_grad * each.cos() * b).sum()
        for a, b in ((out.logprobs, out.entropy), (logprobs, entropy))
    ]
    for got, expected in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        close(got, expected, dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("uniform", [True, False])
def test_a_gradient_computed_in_the_forward_pass_is_the_same_one_also_where_it_guessed_wrong(bias, uniform):
    parameters, targets = inputs(bias=bias)
    options = {"bias": parameters[2] if bias else None, "chunk": 4, "temperature": 0.7, "scale": 0.5}
    each = torch.full((ROWS,), 0.3) if uniform else torch.linspace(-1, 2, ROWS)
    out = linear_logprobs(*parameters[:2], targets, **options, entropy=True, summed=True)
    loss = (each * out.logprobs).sum()
    expected = by_hand(parameters, targets, 0.5, None, 0.7)
    wanted = torch.autograd.grad((each * expected[0]).sum(), parameters)
    for _ in range(2):  # a second pass over the same graph must not meet what the first has changed
        for got, want in zip(torch.autograd.grad(loss, parameters, retain_graph=True), wanted, strict=True):
            close(got, want, torch.float32)
    close(out.entropy, expected[1], torch.float32)


@pytest.mark.parametrize("summed", [False, True])
def test_no_rows_give_an_empty_answer_and_zero_gradients(summed):
    parameters, targets = inputs(rows=0)
    out = linear_logprobs(*parameters, targets, entropy=True, correct=True, summed=summed)
    assert [len(column) for column in out[:3]] == [0, 0, 0]
    assert all(not grad.any() for grad in torch.autograd.grad(out.logprobs.sum(), parameters))


def test_only_what_needs_a_gradient_gets_one_and_only_what_is_asked_for_is_computed():
    (states, weight), targets = inputs()
    out = linear_logprobs(states, weight.detach(), targets)
    assert out.entropy is None and out.correct is None
    out.logprobs.sum().backward()
    assert states.grad is not None and weight.grad is None
    with torch.no_grad():
        assert linear_logprobs(states, weight, targets, summed=True).logprobs.grad_fn is None


def test_half_precision_is_normalised_in_full_precision_and_its_weight_gradient_is_summed_there():
    (states, weight), targets = inputs(torch.bfloat16, rows=400)
    out = linear_logprobs(states, weight, targets, chunk=1)
    assert out.logprobs.dtype == torch.float32
    wide = [t.detach().float().requires_grad_() for t in (states, weight)]
    expected = by_hand(wide, targets)[0]
    assert_close(out.logprobs, expected, atol=0.05, rtol=0.01)  # a logit is rounded to 8 bits
    got, want = (
        torch.autograd.grad(x.sum(), ps)[1].float() for x, ps in ((out.logprobs, (states, weight)), (expected, wide))
    )
    assert (got - want).norm() < 0.005 * want.norm()  # 0.02 if 400 tiles were summed in bfloat16


def test_autocast_multiplies_in_its_own_dtype_and_hands_back_gradients_of_the_weights():
    (states, weight), targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_logprobs(states, weight, targets)
        expected = linear(states, weight).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        got = torch.autograd.grad(out.logprobs.sum(), weight)[0]
    assert_close(out.logprobs, expected)
    assert out.logprobs.dtype == got.dtype == torch.float32


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returned, in elements."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("summed", [False, True])
def test_no_tensor_is_larger_than_a_tile_or_the_embedding(summed):
    rows, chunk = 48, 4
    parameters, targets = inputs(rows=rows)
    with Largest() as largest:
        linear_logprobs(
            *parameters, targets, chunk=chunk, entropy=True, correct=True, summed=summed
        ).logprobs.sum().backward()
    assert largest.numel == max(chunk * WORDS, WORDS * WIDTH) < rows * WORDS / 4
    with Largest() as largest:
        by_hand(parameters, targets)
    assert largest.numel == rows * WORDS


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"chunk": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    parameters, targets = inputs()
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0"):
        linear_logprobs(*parameters, targets, **wrong)
