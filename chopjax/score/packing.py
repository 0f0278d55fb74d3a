"""A planned batch as the arrays that the network reads.

A row is a prefix tree in preorder. A node sees its ancestors: node k is one of node q exactly if
k ≤ q < ends[k], where ends[k] is the slot after the last descendant of k. So one number a slot
says everything about the attention mask.

Axes: B rows, T slots of a row, G groups of neighbouring rows (one for each part of the batch on a
mesh), S scores of a group.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chopjax.score.planning import ScoringBatch, ScoringPlan, common_length


@dataclasses.dataclass(frozen=True)
class Packed:
    """A batch on its way to the device. Everything int32.

    tokens_BT, positions_BT, ends_BT: the nodes; unused slots see only themselves.
    sources_GS, targets_GS: score s of a group is the log-probability of token targets[s] after the
    token at slot sources[s], counted through the group's rows. scores: the largest number of them
    in a group. places: where the scores of each path are, in order: (path, group, score numbers).
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    ends_BT: np.ndarray
    sources_GS: np.ndarray
    targets_GS: np.ndarray
    scores: int
    places: tuple[tuple[int, int, np.ndarray], ...]


def pack_batch(plan: ScoringPlan, batch: ScoringBatch, groups: int = 1) -> Packed:
    """Arrays of shape [batch.shape.rows, batch.shape.length]; unneeded rows are empty.

    groups: divides the number of rows; a group has as many scores at most as slots.
    """
    B, T = batch.shape.rows, batch.shape.length
    tokens_BT, positions_BT = np.zeros((2, B, T), np.int32)
    ends_BT = np.broadcast_to(np.arange(1, T + 1, dtype=np.int32), (B, T)).copy()
    sources_GS, targets_GS = np.zeros((2, groups, B // groups * T), np.int32)
    depth = batch.trunk[1] if batch.trunk else 0
    places: list[tuple[int, int, np.ndarray]] = []
    filled = [0] * groups
    for row, indices in enumerate(batch.rows):
        group, row_of_group = divmod(row, B // groups)
        paths = [plan.paths[index] for index in indices]
        slots = np.zeros(0, np.int32)  # of the tokens of the path before, from place `depth` on
        before = paths[0].read[:depth]
        used = 0
        pairs = []  # (source, target) of every score of the row, as one number
        for path in paths:
            common = common_length(before, path.read)
            ends_BT[row, slots[common - depth :]] = used
            fresh = np.arange(used, used + path.length - common, dtype=np.int32)
            tokens_BT[row, fresh] = path.read[common:]
            positions_BT[row, fresh] = np.arange(common, path.length)
            slots = np.concatenate([slots[: common - depth], fresh])
            used += len(fresh)
            sources = row_of_group * T + slots[path.context - depth :].astype(np.int64)
            pairs.append(sources << 32 | path.tokens[path.context + 1 :])
            before = path.read
        ends_BT[row, slots] = used
        distinct, numbers = np.unique(np.concatenate(pairs), return_inverse=True)
        start = filled[group]
        filled[group] = stop = start + len(distinct)
        sources_GS[group, start:stop] = distinct >> 32
        targets_GS[group, start:stop] = distinct & 0xFFFFFFFF
        parts = np.split(start + numbers, np.cumsum([len(part) for part in pairs])[:-1])
        places += [(index, group, part) for index, part in zip(indices, parts, strict=True)]
    return Packed(
        tokens_BT, positions_BT, ends_BT, sources_GS, targets_GS, max(filled), tuple(places)
    )
