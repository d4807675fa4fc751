"""Answers of several tokens as a tree: what they begin with alike is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from epicrisis.corpus.packing import PackedBatch
from epicrisis.settings import refuse


@dataclass(frozen=True)
class AnswerTree:
    """Where in the tree each answer's tokens are predicted, and by which token.

    The root is the prompt's last token; each further node is a token that some answer goes on after. tokens,
    parents: of the further nodes, int64 [n_nodes], a parent counted with the root as 0. edges: for each answer its
    (node, next token) pairs.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    edges: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def n_nodes(self) -> int:
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """Of the root (0) and the further nodes, how many tokens they are behind the prompt."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths

    def way_to(self, node: int) -> list[int]:
        """The tokens from the root (without it) to a node, that node's own the last."""
        return [] if node == 0 else [*self.way_to(self.parents[node - 1]), self.tokens[node - 1]]

    def ancestry(self) -> torch.Tensor:
        """Whether each node (row) sees each node (column): itself, those it descends from, the root for all."""
        sees = torch.eye(1 + self.n_nodes, dtype=torch.bool)
        for node, parent in enumerate(self.parents, start=1):
            sees[node] |= sees[parent]
        return sees


def answer_tree(sequences: Sequence[Sequence[int]]) -> AnswerTree:
    """The tree of these answers' tokens; the root alone where each begins with a token of its own.

    Raises InputError where an answer is the beginning of another, or the same: their probabilities would not be of
    different things.
    """
    if len({sequence[0] for sequence in sequences}) == len(sequences):
        return AnswerTree((), (), tuple(((0, sequence[0]),) for sequence in sequences))
    ordered = sorted(tuple(sequence) for sequence in sequences)
    if any(second[: len(first)] == first for first, second in pairwise(ordered)):
        raise refuse(
            "model.answers",
            "one answer's tokens are the beginning of another's",
            "choose answers of which none begins with another whole one, or set model.head: score",
        )
    nodes: dict[tuple[int, ...], int] = {(): 0}
    tokens, parents = [], []
    for sequence in sequences:
        for length in range(1, len(sequence)):
            begun = tuple(sequence[:length])
            if begun not in nodes:
                tokens.append(begun[-1])
                parents.append(nodes[begun[:-1]])
                nodes[begun] = len(tokens)
    edges = (tuple((nodes[tuple(s[:i])], s[i]) for i in range(len(s))) for s in sequences)
    return AnswerTree(tuple(tokens), tuple(parents), tuple(edges))


@dataclass(frozen=True)
class Branched:
    """A packed batch with the tree's nodes laid behind its rows, once for each document.

    input_ids, position_ids: int64 [n_rows, length]. seen: bool [n_rows, length, length], what each token sees.
    places: int64 [n_documents, 1 + n_nodes, 2], the (row, column) of each document's root and further nodes.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    seen: torch.Tensor
    places: torch.Tensor


def branch(batch: PackedBatch, tree: AnswerTree) -> Branched:
    """Lay the tree behind each document: a node sees its document and the nodes that it descends from."""
    device, (n_rows, width) = batch.input_ids.device, batch.input_ids.shape
    rows, last = batch.ends[:, 0], batch.ends[:, 1]
    order = torch.argsort(rows, stable=True)
    place = torch.empty_like(order)  # of each document among those of its row
    counts = torch.bincount(rows, minlength=n_rows)
    place[order] = torch.arange(len(rows), device=device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    n_new = int(counts.max()) * tree.n_nodes
    columns = width + place[:, None] * tree.n_nodes + torch.arange(tree.n_nodes, device=device)

    input_ids = torch.cat([batch.input_ids, batch.input_ids.new_zeros(n_rows, n_new)], dim=1)
    position_ids = torch.cat([batch.position_ids, batch.position_ids.new_zeros(n_rows, n_new)], dim=1)
    document = torch.cat(
        [(batch.position_ids == 0).cumsum(1), -torch.arange(1, n_new + 1, device=device).expand(n_rows, -1)], 1
    )
    node = torch.zeros_like(input_ids)
    where = (rows[:, None], columns)
    depths = torch.tensor(tree.depths, device=device)
    input_ids[where] = torch.tensor(tree.tokens, device=device).expand(len(rows), -1)
    position_ids[where] = batch.position_ids[rows, last][:, None] + depths[1:]
    document[where] = document[rows, last][:, None].expand(-1, tree.n_nodes)
    node[where] = torch.arange(1, 1 + tree.n_nodes, device=device).expand(len(rows), -1)

    causal = torch.ones(width + n_new, width + n_new, dtype=torch.bool, device=device).tril()
    same = document[:, :, None] == document[:, None, :]
    seen = same & causal & tree.ancestry().to(device)[node[:, :, None], node[:, None, :]]
    places = torch.cat([batch.ends[:, None], torch.stack([rows[:, None].expand_as(columns), columns], dim=-1)], dim=1)
    return Branched(input_ids, position_ids, seen, places)
