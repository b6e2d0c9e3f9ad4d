"""How many responses are learned from at once."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Responses on one rank."""

    rows: int  # of a rollout
    minibatch: int
    micro: int  # of a micro-batch; by length it may hold more that are shorter
    micro_batches: int  # of a minibatch
    by_length: bool
    packed: bool = False  # the rows of a micro-batch need not be of similar length

    def at_most(self, micro: int) -> Schedule:
        """The same with micro-batches of at most ``micro`` responses."""
        micro = min(micro, self.micro)
        return replace(self, micro=micro, micro_batches=max(self.micro_batches, -(-self.minibatch // micro)))
