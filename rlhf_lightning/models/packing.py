"""Several sequences in one row, without seeing each other: [prompt | answer 1 | answer 2 | other prompt | its answer].

Sequences that begin alike share what they have in common, so that a prompt is computed once for all its answers, and
unrelated ones fill the columns that would be pads. Positions restart with every sequence, and attention is cut so that
an answer sees its prompt and itself. The result is that of plain rows up to rounding; only the work differs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.configs import is_windowed
from rlhf_lightning.models.excerpt import excerpt
from rlhf_lightning.models.trunk import agree, plain_inputs, probe_ids, run_lower, states_of
from rlhf_lightning.private_api.transformers import attention_of

WORTHWHILE = 0.95  # pack only where it costs at most this part of plain rows


class PackedRows(NamedTuple):
    """M rows of up to W tokens that hold N sequences; ``row[n], column[n, t]`` is where token t of sequence n went."""

    input_ids: Tensor  # long [M, W]
    group: Tensor  # of each token, long [M, W], -1 at pads
    sequence: Tensor  # of each token, from 1, long [M, W], 0 where all of the group begin alike
    positions: Tensor  # long [M, W]
    row: Tensor  # long [N]
    column: Tensor  # long [N, S], 0 at pads

    def sees(self, row: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Whether the token in column ``one`` of a row sees that in column ``other``, bool; all three broadcast."""
        same = (self.sequence[row, other] == 0) | (self.sequence[row, other] == self.sequence[row, one])
        return (self.group[row, other] == self.group[row, one]) & same & (other <= one)

    def put(self, states: Tensor, real: Tensor) -> Tensor:
        """What belongs to the tokens of plain rows [N, S, D], bool [N, S] of them real, where they went [M, W, D]."""
        placed = states.new_zeros(*self.input_ids.shape, states.shape[-1])
        placed[self.row[:, None].expand_as(real)[real], self.column[real]] = states[real]
        return placed

    def take(self, found: Tensor) -> Tensor:
        """What was found in packed rows [M, W, ...], in plain rows [N, S, ...]; anything at pads."""
        return found[self.row[:, None], self.column]

    @property
    def attention(self) -> Tensor:
        """True where a token (third axis) sees another (last axis), bool [M, 1, W, W]."""
        count, width = self.input_ids.shape
        rows, columns = (torch.arange(n, device=self.input_ids.device) for n in (count, width))
        return self.sees(rows[:, None, None], columns[:, None], columns)[:, None]

    @property
    def blocks(self) -> BlockMask:
        """`attention` for kernels that leave out the blocks in which no token sees another."""
        count, width = self.input_ids.shape

        def sees(row: Tensor, head: Tensor, one: Tensor, other: Tensor) -> Tensor:
            return self.sees(row, one, other)

        return create_block_mask(sees, count, None, width, width, self.input_ids.device)


class Groups(NamedTuple):
    """Neighbouring sequences that share what they all begin with."""

    of: Tensor  # group of each sequence, 0 .. G - 1 in ascending order, long [N]
    prefix: Tensor  # tokens that all of a group begin with, long [G]
    tails: Tensor  # tokens of each sequence behind them, long [N]

    @property
    def widths(self) -> Tensor:
        """Columns that each group takes, long [G]."""
        return self.prefix.index_add(0, self.of, self.tails)


def find_groups(input_ids: Tensor, attention_mask: Tensor, groups: Tensor) -> Groups:
    """What the sequences of each group have in common.

    Args:
        input_ids: long [N, S], padded on either side.
        attention_mask: bool [N, S], True at real tokens.
        groups: group of each sequence, 0 .. G - 1 in ascending order, long [N].
    """
    prefix = _common_prefix(input_ids, attention_mask, groups)
    return Groups(groups, prefix, attention_mask.sum(1) - prefix[groups])


def pack(input_ids: Tensor, attention_mask: Tensor, groups: Groups, rows: Tensor) -> PackedRows:
    """Put each group into a row, behind the groups with lower numbers there.

    Args:
        input_ids: long [N, S], padded on either side.
        attention_mask: bool [N, S], True at real tokens.
        groups: of these sequences.
        rows: row of each group, long [G]; none of 0 .. M - 1 is left out.

    >>> ids = torch.tensor([[5, 6, 7], [5, 6, 8], [9, 4, 4]])
    >>> real = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])
    >>> pack(ids, real, find_groups(ids, real, torch.tensor([0, 0, 1])), torch.tensor([0, 0])).input_ids
    tensor([[5, 6, 7, 8, 9]])
    """
    of, prefix, tails = groups
    real, place = attention_mask, position_ids(attention_mask)
    before = _starts(tails, of)  # of a tail among the tails of its group
    start = _starts(groups.widths, rows)  # of a group in its row
    behind = place >= prefix[of, None]
    column = torch.where(real, place + start[of, None] + torch.where(behind, before[:, None], 0), 0)
    row = rows[of]
    where = row[:, None].expand_as(column)[real], column[real]
    shape = int(rows.max()) + 1, int(column.max()) + 1
    ids, positions, sequence = (torch.zeros(shape, dtype=torch.long, device=place.device) for _ in range(3))
    group = torch.full(shape, -1, device=place.device)  # -1 pad
    number = torch.arange(1, len(of) + 1, device=place.device)[:, None]
    ids[where], positions[where] = input_ids[real], place[real]
    sequence[where] = torch.where(behind, number, 0)[real]  # 0 where all of the group begin alike
    group[where] = of[:, None].expand_as(place)[real]
    return PackedRows(ids, group, sequence, positions, row, column)


def _starts(widths: Tensor, owners: Tensor) -> Tensor:
    """Where each of some pieces begins if those of one owner stand one behind the other, long [n]."""
    order = owners.argsort(stable=True)
    before = widths[order].cumsum(0) - widths[order]
    counts = torch.bincount(owners)
    first = before[(counts.cumsum(0) - counts)][owners[order]]
    return torch.empty_like(widths).scatter_(0, order, before - first)


def _common_prefix(input_ids: Tensor, real: Tensor, groups: Tensor) -> Tensor:
    """How many tokens all sequences of a group begin with, long [G]."""
    place, counts = position_ids(real), torch.bincount(groups)
    aligned = torch.full_like(input_ids, -1)
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(place)
    aligned[rows[real], place[real]] = input_ids[real]
    first = counts.cumsum(0) - counts
    same = (aligned == aligned[first][groups]) & (aligned >= 0)
    shared = same.long().cumprod(1).sum(1)
    return torch.full_like(counts, input_ids.shape[1]).scatter_reduce_(0, groups, shared, "amin")


def worthwhile_rows(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, groups: Tensor | None = None
) -> PackedRows | None:
    """The packed rows that cost the least; None where plain ones cost about as little, or the model does not pack.

    A model packs if `Pretrained` says so and `can_pack` found that it can.

    Args:
        model: with a transformers config.
        input_ids: long [N, S], padded on either side.
        attention_mask: bool [N, S], True at real tokens.
        groups: see `find_groups`; None means that no two sequences are alike.
    """
    if not getattr(model, "pack_rows", False) or len(input_ids) == 1:
        return None
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    alone = torch.arange(len(input_ids), device=input_ids.device)
    found = find_groups(input_ids, attention_mask, alone if groups is None else groups)
    limit = max(getattr(config, "max_position_embeddings", 0) or 0, input_ids.shape[1])
    best = cheapest_plan(found.widths.tolist(), limit, config.hidden_size)
    plain = _cost(tuple(input_ids.shape), config.hidden_size)
    if best is None or _cost(best.shape, config.hidden_size) > WORTHWHILE * plain:
        return None
    return pack(input_ids, attention_mask, found, torch.tensor(best.rows, device=input_ids.device))


class Plan(NamedTuple):
    """Where groups go."""

    rows: list[int]  # of each group
    shape: tuple[int, int]  # rows and columns


def cheapest_plan(widths: list[int], limit: int, hidden_size: int) -> Plan | None:
    """The way to put groups into rows of at most ``limit`` columns that costs the least; None if there is none.

    >>> cheapest_plan([100, 40, 30, 30], limit=512, hidden_size=64)
    Plan(rows=[0, 1, 1, 1], shape=(2, 100))
    """
    return min(_plans(widths, limit), key=lambda plan: _cost(plan.shape, hidden_size), default=None)


def _cost(shape: tuple[int, ...], hidden_size: int) -> int:
    """Of a forward, up to a factor: a token costs about 24 D^2 multiplications in the linear maps of a layer and 4 D W
    in attention over W columns, masked or not."""
    rows, columns = shape
    return rows * columns * (6 * hidden_size + columns)


def _plans(widths: list[int], limit: int) -> Iterator[Plan]:
    """One group in each row, or several in ever fewer rows."""
    count = min(sum(widths) // max(*widths, 1) + 1, len(widths))
    numbers = [len(widths), count]
    while count > 1:
        count -= -(-count // 16)
        numbers.append(count)
    for number in dict.fromkeys(numbers):
        plan = balanced(widths, number)
        if plan.shape[1] <= limit:
            yield plan


def balanced(widths: list[int], count: int) -> Plan:
    """Groups dealt out to ``count`` rows, the widest first, always to the row that holds the least (Graham 1969,
    doi:10.1137/0117039). None stays empty if there are as many groups."""
    loads = [(0, row) for row in range(count)]
    rows = [0] * len(widths)
    for group in sorted(range(len(widths)), key=lambda group: -widths[group]):
        load, rows[group] = heapq.heappop(loads)
        heapq.heappush(loads, (load + widths[group], rows[group]))
    return Plan(rows, (count, max(loads)[0]))


def adjacent_groups(prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """Groups of neighbouring rows with the same prompt, for `find_groups`; long [B].

    Args:
        prompt_ids: long [B, P], padded on the left.
        prompt_mask: bool [B, P].

    >>> adjacent_groups(torch.tensor([[5, 6], [5, 6], [5, 7]]), torch.ones(3, 2, dtype=torch.bool))
    tensor([0, 0, 1])
    """
    ids = torch.where(prompt_mask, prompt_ids, -1)
    differs = (ids[1:] != ids[:-1]).any(1)
    return torch.cat([differs.new_zeros(1), differs]).long().cumsum(0)


def packed_inputs(model: PreTrainedModel, packed: PackedRows) -> dict[str, Any]:
    """What a model or its decoder is called with for packed rows."""
    kernel = attention_of(model.config)
    mask: Tensor | BlockMask = packed.blocks if kernel == "flex_attention" else packed.attention
    if kernel == "eager" and isinstance(mask, Tensor):  # adds its mask
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
    return {
        "input_ids": packed.input_ids, "attention_mask": mask, "position_ids": packed.positions, "use_cache": False
    }  # fmt: skip


def inputs_of(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, packed: PackedRows | None
) -> dict[str, Any]:
    """What a model or its decoder is called with for rows [N, S], or for the packed ones that hold them."""
    return plain_inputs(input_ids, attention_mask) if packed is None else packed_inputs(model, packed)


def lower_states(
    model: PreTrainedModel, depth: int, input_ids: Tensor, attention_mask: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Hidden states [N, S, D] after the lowest ``depth`` layers, without gradient; packed where that pays.

    Args:
        model: see `worthwhile_rows`, as are the other arguments.
        depth: number of layers.
        input_ids: long [N, S].
        attention_mask: bool [N, S].
        groups: long [N] or None.
    """
    packed = worthwhile_rows(model, input_ids, attention_mask, groups)
    states = run_lower(model, depth, inputs_of(model, input_ids, attention_mask, packed))
    return states if packed is None else packed.take(states)


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether a model takes positions and attention as given: tried on a few tokens, before it is sharded.

    Windows, states and attention kernels without masks say no, and so does whatever gives other numbers. A float32
    `excerpt` is tried, since in half precision rounding is as large as what a model makes of a position. In place of
    flex attention, which would be compiled for these few tokens, it has torch's own with the same mask.
    """
    kernel = attention_of(model.config)
    if kernel not in ("sdpa", "eager", "flex_attention") or is_windowed(model.config):
        return False
    row = probe_ids(model)[0]
    ids = torch.stack([row[[0, 1, 2, 3]], row[[0, 1, 4, 5]], row[[0, 1, 2, 0]]])
    real = torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]], device=model.device)
    groups = find_groups(ids, real, torch.tensor([0, 0, 1], device=model.device))
    packed = pack(ids, real, groups, torch.zeros(2, dtype=torch.long, device=model.device))
    try:
        small = excerpt(model)
        if kernel == "flex_attention":
            small.set_attn_implementation("sdpa")
        plain = states_of(small, plain_inputs(ids, real))
        found = packed.take(states_of(small, packed_inputs(small, packed)))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return agree(found[real], plain[real])
