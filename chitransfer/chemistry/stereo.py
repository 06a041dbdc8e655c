"""Merge polymers that differ only in stereochemistry: features ignore it, so to the models they are the same polymer.

Called by `data.assemble` and `data.check`, so that such polymers never end up on both sides of a split, and by
`training.finetune`, which must recognise the test polymers of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from rdkit import Chem

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.repeat_units import STEREO_MARKS, parse_repeat_unit
from chitransfer.interrupts import restore_interrupts


@lru_cache(maxsize=50_000)
def without_stereo(identity: str) -> str:
    """The polymer's identity without stereo centres and E/Z bonds; unchanged if it has none.

    >>> without_stereo(polymer_identity("*C/C=C\\\\C*")) == polymer_identity("*CC=CC*")
    True
    """
    if STEREO_MARKS.isdisjoint(identity):
        return identity
    unit = parse_repeat_unit(identity)
    Chem.RemoveStereochemistry(unit)
    return polymer_identity(Chem.MolToSmiles(unit))


def merge_stereo_variants(identities: Iterable[str]) -> dict[str, str]:
    """Map each identity to a name that polymers differing only in stereochemistry share.

    A polymer without such a variant among `identities` keeps its own identity.
    """
    variants: dict[str, set[str]] = {}
    for identity in identities:
        variants.setdefault(without_stereo(identity), set()).add(identity)
    restore_interrupts()
    return {one: name if len(same) > 1 else one for name, same in variants.items() for one in same}
