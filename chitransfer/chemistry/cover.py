"""Exact covers: choose pieces that cover every atom exactly once at the lowest cost.

Called by `chemistry.groups`; contains no chemistry itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import add

# Largest number of partial covers held before giving up. Grafts of 60 acetals or glycolides need fewer than ten; side
# chains with six kinds of equally good choices at twenty places each exceed the limit.
MOST_COVERS = 50_000
Cost = tuple[int, int]
# How often each piece occurs in a cover, in order of piece number.
Counts = tuple[int, ...]


class CoverError(RuntimeError):
    """The search for covers was given up before the best cover was known."""


@dataclass(frozen=True)
class Candidate:
    """A piece: its number, the atoms it covers, and its cost (summed over pieces, compared left to right)."""

    piece: int
    atoms: frozenset[int]
    cost: Cost


def cheapest_covers(universe: Sequence[int], candidates: Collection[Candidate]) -> list[list[int]]:
    """All covers of lowest total cost that contain each element of `universe` exactly once, as sorted lists of pieces.

    Elements are covered from the lowest to the highest, so the search is fast when elements that share a piece have
    similar numbers, as the atoms of a SMILES do.

    Returns
    -------
    list of lists of `Candidate.piece`, in order; empty when there is no cover. Covers that differ only in where a piece
    sits count as one.

    Raises
    ------
    CoverError
        There are too many partial covers to follow them all.
    """
    pieces = sorted({candidate.piece for candidate in candidates})
    solutions: set[Counts] = {(0,) * len(pieces)}
    for part in _independent_parts(universe, candidates):
        found = _best_covers(part, [candidate for candidate in candidates if candidate.atoms <= part], pieces)
        _check_number(len(solutions) * len(found))
        solutions = {tuple(map(add, old, new)) for old in solutions for new in found}
    return sorted(
        [piece for piece, count in zip(pieces, counts, strict=True) for _ in range(count)] for counts in solutions
    )


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


def _best_covers(part: frozenset[int], candidates: Sequence[Candidate], pieces: Sequence[int]) -> set[Counts]:
    """Counts of `pieces` in the cheapest covers of one part, by dynamic programming over its elements.

    The remaining work depends only on which later elements a partial cover already contains. Among partial covers that
    contain the same ones, only the cheapest are kept.
    """
    elements = sorted(part)
    bits = {element: 1 << place for place, element in enumerate(elements)}
    place_of = {piece: place for place, piece in enumerate(pieces)}
    starting: dict[int, list[tuple[int, int, Cost]]] = {element: [] for element in elements}
    for candidate in candidates:
        mask = sum(bits[element] for element in candidate.atoms)
        starting[min(candidate.atoms)].append((mask, place_of[candidate.piece], candidate.cost))
    covers: dict[int, tuple[Cost, set[Counts]]] = {0: ((0, 0), {(0,) * len(pieces)})}
    for element in elements:
        longer: dict[int, tuple[Cost, set[Counts]]] = {}
        n_covers = 0
        for covered, (cost, found) in covers.items():
            if covered & bits[element]:
                n_covers += _keep(longer, covered, cost, found)
                continue
            for mask, place, price in starting[element]:
                if not covered & mask:
                    grown = {(*counts[:place], counts[place] + 1, *counts[place + 1 :]) for counts in found}
                    n_covers += _keep(longer, covered | mask, (cost[0] + price[0], cost[1] + price[1]), grown)
            _check_number(n_covers)
        covers = longer
    # All remaining covers contain every element, so there is at most one entry.
    return next(iter(covers.values()))[1] if covers else set()


def _keep(covers: dict[int, tuple[Cost, set[Counts]]], covered: int, cost: Cost, found: set[Counts]) -> int:
    """Keep covers of the elements `covered` unless a cheaper one is known; returns how many were kept."""
    known = covers.get(covered)
    if known is not None and cost > known[0]:
        return 0
    covers[covered] = (cost, known[1] | found if known is not None and cost == known[0] else found)
    return len(found)


def _check_number(n_covers: int) -> None:
    if n_covers > MOST_COVERS:
        raise CoverError(f"the search for the best cover was given up at {MOST_COVERS} partial covers")
