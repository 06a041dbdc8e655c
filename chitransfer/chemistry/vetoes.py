"""Atoms that match a UNIFAC subgroup's pattern but belong to chemistry its main group was not fitted to.

Called by `chemistry.groups`; docs/physics.md lists the structures that have no χ because of this.
"""

from __future__ import annotations

from functools import lru_cache

from rdkit import Chem

# The published patterns, taken literally, match more than the chemistry their parameters were fitted to. An atom that
# matches the SMARTS (as its first atom) is never covered by a subgroup of the listed main groups.
VETOES: tuple[tuple[str, frozenset[int]], ...] = (
    # the carbonyl of an ester, acid, amide or acid halide is not a ketone
    ("[CX3]([#8,#7,F,Br,I])=O", frozenset({9})),
    # the carbonyl of an amide, urethane or urea is not an ester
    ("[CX3]([#7])=O", frozenset({11, 12, 41})),
    # the imidazole group was fitted to imidazolium salts
    ("[n,c]", frozenset({84})),
    # a nitrogen next to a carbonyl or with a multiple bond is not an amine
    ("[$([#7X3][CX3]=[O,S]),$([NX3](=O)=O),$([NX3+](=O)[O-]),$([NX2]),$([NX1])]", frozenset({14, 15, 16, 17})),
    # the hydroxyl of a sulfonic acid, silanol, peroxide or hydroxylamine is not an alcohol
    ("[OX2H;!$(O[#6])]", frozenset({5})),
    # the nitrogen of a sulfonamide, silazane, hydroxylamine, hydrazine or cyanamide is not an amine
    ("[$([NX3][S,Si]),$([NX3][OX2]),$([NX3][NX3]),$([NX3]C#N)]", frozenset({14, 15, 16, 17})),
    # the nitrogen of a hydrazide, hydroxamate, acyl sulfonamide or silyl amide is not an amide
    ("[NX3;$(N[NX3,OX2,S,Si])]", frozenset({39, 46})),
    # the oxygen of a peroxide, sulfonate or sulfite is not an ether, ester or siloxane; that of a cyanate not an ether
    ("[OX2;$(O[OX2,S]),$(OC#N)]", frozenset({11, 12, 13, 41, 43})),
    # fluorine or sulfur on a double or triple bond or a carbonyl is not that of a fluoroalkane, thiol or sulfide
    ("[F;$(F[CX3,CX2])]", frozenset({40})),
    # nor is the sulfur of a thiosulfonate, sulfenamide or silyl sulfide; a disulfide's sulfur counts as a sulfide's
    ("[SX2;$(S[CX3,CX2]),$(S[!#6;!#1;!$([SX2])])]", frozenset({29, 48})),
    # a carbon with a double or triple bond is not the saturated carbon of these groups
    ("[CX3,CX2;!$(C=O)]", frozenset({13, 14, 15, 16, 26, 29, 40, 48, 55})),
    # hydrogen fluoride and halogens are not organic halides
    ("[F,Br,I;!$(*[#6])]", frozenset({32, 33, 40})),
)


@lru_cache(maxsize=1)
def veto_patterns() -> tuple[tuple[Chem.Mol, frozenset[int]], ...]:
    """`VETOES` with parsed SMARTS; the veto applies to the first atom of a match."""
    return tuple((Chem.MolFromSmarts(smarts), mains) for smarts, mains in VETOES)
