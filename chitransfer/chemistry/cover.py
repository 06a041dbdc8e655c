"""Exact covers: choose pieces so that every atom is covered exactly once at the least cost.

Called by `chemistry.groups`; knows nothing of chemistry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import add

# Partial covers held before giving up; grafts of 60 acetals or glycolides need fewer than ten, side chains with six
# kinds of equally good choices at twenty places each need more.
MOST_COVERS = 50_000
Cost = tuple[int, int]
# How often each piece is in a cover, in the order of the pieces' numbers.
Counts = tuple[int, ...]


class CoverError(RuntimeError):
    """The search for covers was given up, so that nothing is known about the best of them."""


@dataclass(frozen=True)
class Candidate:
    """A piece: what it is, the atoms it covers, and its cost (compared left to right, summed over pieces)."""

    piece: int
    atoms: frozenset[int]
    cost: Cost


def cheapest_covers(universe: Sequence[int], candidates: Collection[Candidate]) -> list[list[int]]:
    """All ways of least total cost to cover each element of `universe` exactly once, as sorted lists of pieces.

    Elements are covered from the lowest to the highest, so a search is quick when those that share a piece are near
    each other in number, as the atoms of a SMILES are.

    Returns
    -------
    list of lists of `Candidate.piece`, in order; empty when there is no cover. Ways that differ only in where a piece
    sits are one.

    Raises
    ------
    CoverError
        There are too many partial covers to follow all of them.
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
    """Counts of `pieces` in the cheapest covers of one part.

    All covers of the elements before a given one are worked out at once. What is left to do depends only on the later
    elements that they cover already, so of those that agree in these the cheapest are kept.
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
    # Every element is covered in each of them, so there is one or none.
    return next(iter(covers.values()))[1] if covers else set()


def _keep(covers: dict[int, tuple[Cost, set[Counts]]], covered: int, cost: Cost, found: set[Counts]) -> int:
    """Keep covers of the elements `covered` when none cheaper is known; how many were kept."""
    known = covers.get(covered)
    if known is not None and cost > known[0]:
        return 0
    covers[covered] = (cost, known[1] | found if known is not None and cost == known[0] else found)
    return len(found)


def _check_number(n_covers: int) -> None:
    if n_covers > MOST_COVERS:
        raise CoverError(f"the search for the best cover was given up at {MOST_COVERS} partial covers")
