"""Memory that runs out on a CPU: callbacks in which the model refuses more than so many rows, or the next ones."""

import weakref

import lightning
import torch

from tests.support.numeric_faults import data_of, module_of, trainer_of

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ...")


def first_layer(module):
    return next(part for name, part in module.trained.named_modules() if name.endswith("layers.0"))


class Small(lightning.Callback):
    """A memory for so many sequences: the model refuses more, while it computes or while it is differentiated."""

    def __init__(self, sequences, when, error=CUDA):
        self.sequences, self.when, self.error = sequences, when, error
        self.refused, self.passed = 0, []
        self.failed, self.alive = [], 0

    def setup(self, trainer, module, stage):
        module.configure_model()
        first_layer(module).register_forward_hook(self._look)

    def _look(self, layer, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if not hidden.requires_grad:
            return
        self.alive += sum(ref() is not None for ref in self.failed)
        if len(hidden) <= self.sequences:
            self.passed.append(len(hidden))
            return
        self.failed.append(weakref.ref(hidden))
        if self.when == "forward":
            self._refuse()
        else:
            hidden.register_hook(self._refuse)

    def _refuse(self, grad=None):
        self.refused += 1
        raise type(self.error)(*self.error.args)  # a fresh one, whose traceback dies with it


class SmallWithoutGradient(Small):
    """The same for a forward that needs no gradient."""

    def _look(self, layer, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] <= 4:  # what the library tries once to get to know the model
            return
        if len(hidden) > self.sequences:
            self._refuse()
        self.passed.append(len(hidden))


class Once(lightning.Callback):
    """A memory that runs out where it is told to: in which try of which step, both counted from 1.

    Args:
        places: by step, the number of a try (a forward with a gradient) and ``forward`` or ``backward``.
    """

    def __init__(self, places):
        self.places, self.step, self.tries, self.rows = dict(places), 1, 0, []

    def setup(self, trainer, module, stage):
        module.configure_model()
        first_layer(module).register_forward_hook(self._look)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.step, self.tries = self.step + 1, 0

    def _look(self, layer, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if not hidden.requires_grad:
            return
        self.tries += 1
        self.rows.append((self.step, len(hidden)))
        number, when = self.places.get(self.step, (0, ""))
        if number == self.tries and when == "forward":
            self._refuse()
        if number == self.tries:
            hidden.register_hook(self._refuse)

    def _refuse(self, grad=None):
        del self.places[self.step]
        raise torch.OutOfMemoryError(*CUDA.args)


class Gradients(lightning.Callback):
    """The gradient of every optimizer step, before it is clipped, and whether DDP has averaged it in the backward."""

    def __init__(self):
        self.seen, self.inside = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.seen.append(torch.cat(grads).clone())
        self.inside.append(getattr(trainer.strategy.model, "require_backward_grad_sync", None))


def validated(stage, files, folder, callbacks=(), **options):
    data, module = data_of(stage, files, 4), module_of(stage)
    trainer = trainer_of(stage, folder, data, 1, callbacks, **options)
    data.setup("fit")
    data.val_items = data.train_items
    trainer.validate(module, dataloaders=data.val_dataloader(), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, module
