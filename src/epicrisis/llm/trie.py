"""Sequences of tokens that may be written, as a tree that says what may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Trie:
    """A tree of the sequences; node 0 is its root.

    following: int64 [n_nodes, vocabulary], the node that a token leads to, -1 where it may not come.
    ends: bool [n_nodes], a sequence ends here and nothing may follow.
    """

    following: torch.Tensor
    ends: torch.Tensor

    def to(self, device: torch.device) -> Trie:
        return Trie(self.following.to(device), self.ends.to(device))


def make_trie(sequences: Sequence[Sequence[int]], vocabulary: int) -> Trie:
    """The tree of these sequences; ValueError where one is empty, or the beginning of another."""
    nodes: list[dict[int, int]] = [{}]
    last = []
    for sequence in sequences:
        node = 0
        for token in sequence:
            if token not in nodes[node]:
                nodes[node][token] = len(nodes)
                nodes.append({})
            node = nodes[node][token]
        last.append(node)
    ends = torch.tensor([not children for children in nodes])
    if not all(ends[node] for node in last) or len(set(last)) < len(last) or 0 in last:
        raise ValueError("a sequence is empty, given twice, or the beginning of another: end it with EOS")
    following = torch.full((len(nodes), vocabulary), -1, dtype=torch.long)
    for node, children in enumerate(nodes):
        following[node, list(children)] = torch.tensor(list(children.values()), dtype=torch.long)
    return Trie(following, ends)


def none_begins_another(sequences: Sequence[Sequence[int]], end: int) -> list[list[int]]:
    """The sequences, with `end` after those that another one goes on from."""
    listed = [list(sequence) for sequence in sequences]
    begins = [any(a is not b and b[: len(a)] == a for b in listed) for a in listed]
    return [[*sequence, end] if more else sequence for sequence, more in zip(listed, begins, strict=True)]
