"""Which atoms UNIFAC's main groups were not fitted to, although the patterns of their subgroups match them.

Called by `chemistry.groups`; docs/physics.md says what has no χ for it.
"""

from __future__ import annotations

from functools import lru_cache

from rdkit import Chem

# Published patterns read as text match more than the chemistry their parameters were fitted to. An atom of the first
# kind keeps every subgroup of these main groups off itself.
VETOES: tuple[tuple[str, frozenset[int]], ...] = (
    # the carbonyl of an ester, acid, amide or acid halide is no ketone
    ("[CX3]([#8,#7,F,Br,I])=O", frozenset({9})),
    # the carbonyl of an amide, urethane or urea is no ester
    ("[CX3]([#7])=O", frozenset({11, 12, 41})),
    # the imidazole group was fitted to imidazolium salts
    ("[n,c]", frozenset({84})),
    # the nitrogen beside a carbonyl, and one with a multiple bond, is no amine
    ("[$([#7X3][CX3]=[O,S]),$([NX3](=O)=O),$([NX3+](=O)[O-]),$([NX2]),$([NX1])]", frozenset({14, 15, 16, 17})),
    # the hydroxyl of a sulfonic acid, silanol, peroxide or hydroxylamine is no alcohol
    ("[OX2H;!$(O[#6])]", frozenset({5})),
    # the nitrogen of a sulfonamide, silazane, hydroxylamine, hydrazine or cyanamide is no amine
    ("[$([NX3][S,Si]),$([NX3][OX2]),$([NX3][NX3]),$([NX3]C#N)]", frozenset({14, 15, 16, 17})),
    # that of a hydrazide, hydroxamate, acyl sulfonamide or silyl amide is no amide
    ("[NX3;$(N[NX3,OX2,S,Si])]", frozenset({39, 46})),
    # an oxygen of a peroxide, sulfonate or sulfite is no ether, ester or siloxane, that of a cyanate no ether
    ("[OX2;$(O[OX2,S]),$(OC#N)]", frozenset({11, 12, 13, 41, 43})),
    # fluorine and sulfur on a double or triple bond or a carbonyl are not those of fluoroalkanes, thiols and sulfides
    ("[F;$(F[CX3,CX2])]", frozenset({40})),
    # nor is the sulfur of a thiosulfonate, sulfenamide or silyl sulfide; that of a disulfide is taken for a sulfide's
    ("[SX2;$(S[CX3,CX2]),$(S[!#6;!#1;!$([SX2])])]", frozenset({29, 48})),
    # a carbon of a double or triple bond is not the saturated one of these groups
    ("[CX3,CX2;!$(C=O)]", frozenset({13, 14, 15, 16, 26, 29, 40, 48, 55})),
    # hydrogen fluoride and halogens are no organic halide
    ("[F,Br,I;!$(*[#6])]", frozenset({32, 33, 40})),
)


@lru_cache(maxsize=1)
def veto_patterns() -> tuple[tuple[Chem.Mol, frozenset[int]], ...]:
    """`VETOES` with their SMARTS read; the first atom of a match is the one meant."""
    return tuple((Chem.MolFromSmarts(smarts), mains) for smarts, mains in VETOES)
