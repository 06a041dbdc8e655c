"""Polymers that differ only in stereochemistry: features leave it out, so they are one polymer to every model here.

Called by `data.assemble` and `data.check`, so that such polymers are never on both sides of a split, and by
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
    """The identity of the polymer without its stereo centres and E/Z bonds; of one that has none, itself.

    >>> without_stereo(polymer_identity("*C/C=C\\\\C*")) == polymer_identity("*CC=CC*")
    True
    """
    if STEREO_MARKS.isdisjoint(identity):
        return identity
    unit = parse_repeat_unit(identity)
    Chem.RemoveStereochemistry(unit)
    return polymer_identity(Chem.MolToSmiles(unit))


def merge_stereo_variants(identities: Iterable[str]) -> dict[str, str]:
    """What each polymer is called where variants count as one: those that differ only in stereo get one name.

    A polymer without such a variant among `identities` keeps its own identity.
    """
    variants: dict[str, set[str]] = {}
    for identity in identities:
        variants.setdefault(without_stereo(identity), set()).add(identity)
    restore_interrupts()
    return {one: name if len(same) > 1 else one for name, same in variants.items() for one in same}
