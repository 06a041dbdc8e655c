"""Exact covers: choose pieces so that every atom is covered exactly once at the least cost.

Called by `chemistry.groups`; knows nothing of chemistry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# Search steps before giving up; real structures need fewer than a hundred once forced pieces are taken.
STEP_LIMIT = 20_000
Cost = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A piece: what it is, the atoms it covers, and its cost (compared left to right, summed over pieces)."""

    piece: int
    atoms: frozenset[int]
    cost: Cost


def cheapest_covers(universe: Sequence[int], candidates: Collection[Candidate]) -> list[list[int]]:
    """All ways of least total cost to cover each element of `universe` exactly once, as lists of pieces.

    Returns
    -------
    list of lists of `Candidate.piece`; empty when there is no cover. Ways that differ only in where a piece sits
    are all listed (parts that do not touch each other are combined, so the list can repeat the same pieces).
    """
    solutions: list[list[int]] = [[]]
    for part in _independent_parts(universe, candidates):
        found = _search(part, [candidate for candidate in candidates if candidate.atoms <= part])
        distinct = {tuple(sorted(pieces)) for pieces in found}
        merged = {tuple(sorted((*old, *new))) for old in solutions for new in distinct}
        solutions = [list(pieces) for pieces in merged]
        if not solutions:
            return []
    return solutions


def _independent_parts(universe: Iterable[int], candidates: Iterable[Candidate]) -> list[frozenset[int]]:
    parent = {atom: atom for atom in universe}

    def root(atom: int) -> int:
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    for candidate in candidates:
        first, *rest = candidate.atoms
        for atom in rest:
            parent[root(atom)] = root(first)
    parts: dict[int, set[int]] = {}
    for atom in parent:
        parts.setdefault(root(atom), set()).add(atom)
    return [frozenset(part) for part in parts.values()]


def _search(part: frozenset[int], candidates: Sequence[Candidate]) -> list[list[int]]:
    bits = {atom: 1 << place for place, atom in enumerate(sorted(part))}
    masked = [(sum(bits[atom] for atom in c.atoms), c.piece, c.cost) for c in candidates]
    best: list[Cost] = []
    found: list[list[int]] = []
    steps = 0

    def visit(left: int, options: list[tuple[int, int, Cost]], chosen: list[int], cost: Cost) -> None:
        nonlocal steps
        steps += 1
        if steps > STEP_LIMIT or (best and cost > best[0]):
            return
        if left == 0:
            if not best or cost < best[0]:
                best[:] = [cost]
                found.clear()
            found.append(list(chosen))
            return
        # The element with fewest options first: forced pieces are taken without branching.
        fewest: list[tuple[int, int, Cost]] | None = None
        rest = left
        while rest:
            bit = rest & -rest
            rest ^= bit
            here = [option for option in options if option[0] & bit]
            if fewest is None or len(here) < len(fewest):
                fewest = here
                if len(here) < 2:
                    break
        for mask, piece, price in sorted(fewest or [], key=lambda option: option[2]):
            chosen.append(piece)
            remaining = [option for option in options if not option[0] & mask]
            visit(left & ~mask, remaining, chosen, (cost[0] + price[0], cost[1] + price[1]))
            chosen.pop()

    visit((1 << len(bits)) - 1, masked, [], (0, 0))
    return found
