"""Repeat units from monomers of given families, by SMiPoly's polymerisation rules and four of our own.

Called by `data.build` with the project's list, `data/builtin/monomers.csv`, or another one. `data.polymerisation`
works out how a single monomer polymerises by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdChemReactions

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.repeat_units import PolymerError

CARBON_MONOXIDE = "[C-]#[O+]"
# Number of ways to map a rule onto its monomers to try before concluding that the rule does not apply.
MOST_PRODUCTS = 50


@dataclass(frozen=True)
class Rule:
    """One way to polymerise.

    Attributes
    ----------
    polymer_class
        Class name of the product.
    families
        Monomer families of each reactant (one or two reactants), by their names in `monomers.csv`.
    smipoly
        SMiPoly's polymer class and the monomer class of each reactant, or ``None`` for one of our own rules.
    smarts
        Reaction SMARTS, for our own rules.
    """

    polymer_class: str
    families: tuple[tuple[str, ...], ...]
    smipoly: tuple[str, tuple[str, ...]] | None = None
    smarts: str = ""


HYDROXY = ("diol", "bisphenol")
RULES: tuple[Rule, ...] = (
    Rule("vinyl", (("vinyl",),), ("polyolefin", ("vinyl", "none"))),
    Rule("vinyl", (("vinyl", "cyclic_olefin"),), ("polyolefin", ("cOle", "none"))),
    # 1,4-addition; SMiPoly has dienes only as units of copolymers
    Rule("diene", (("diene",),), smarts="[CX3:1]=[CX3:2]-[CX3:3]=[CX3:4]>>*-[C:1]-[C:2]=[C:3]-[C:4]-*"),
    Rule("polyester", (("hydroxy_acid",),), ("polyester", ("hydCOOH", "none"))),
    Rule("polyester", (("lactone",),), ("polyester", ("lactone", "none"))),
    Rule("polyester", (("diacid",), HYDROXY), ("polyester", ("diCOOH", "diol"))),
    Rule("polyester", (("cyclic_anhydride",), ("epoxide",)), ("polyester", ("cAnhyd", "epo"))),
    Rule("polycarbonate", (HYDROXY, ("carbon_monoxide",)), ("polyester", ("diol", "CO"))),
    Rule("polyether", (("epoxide",),), ("polyether", ("epo", "none"))),
    Rule("polyether", (("cyclic_ether",),), smarts="[CX4;r4,r5,r7,r8:1]@[OX2;r4,r5,r7,r8:2]>>(*-[C:1].[O:2]-*)"),
    Rule("polyether", (("dihalide",), ("bisphenol",)), ("polyether", ("sfonediX", "diol_b"))),
    Rule("polyether", (("dihalide",), ("bisphenol",)), ("polyether", ("BzodiF", "diol_b"))),
    Rule("polyamide", (("lactam",),), ("polyamide", ("lactam", "none"))),
    Rule("polyamide", (("amino_acid",),), ("polyamide", ("aminCOOH", "none"))),
    Rule("polyamide", (("diacid",), ("diamine",)), ("polyamide", ("diCOOH", "diamin"))),
    Rule("polyimide", (("dianhydride",), ("diamine",)), ("polyimide", ("dicAnhyd", "diamin"))),
    Rule("polyurethane", (("diisocyanate",), HYDROXY), ("polyurethane", ("diNCO", "diol"))),
    Rule(
        "polyurea",
        (("diisocyanate",), ("diamine",)),
        smarts="([NX2:1]=[CX2:2]=[OX1:3].[NX2:4]=[CX2:5]=[OX1:6])"
        ".([NX3;H2,H1;!$(N[C,S]=*):7].[NX3;H2,H1;!$(N[C,S]=*):8])"
        ">>(*-[C:2](=[O:3])[N:1].[N:4][C:5](=[O:6])[N:7].[N:8]-*)",
    ),
    Rule("polysiloxane", (("silanediol",),), smarts="([OX2H:1]-[Si:2].[OX2H:3]-[Si:4])>>([*:5]-[Si:2].[Si:4]-[O:3]-*)"),
)
# Families that a monomer list may name; carbon monoxide is always available.
FAMILIES = tuple(
    sorted({name for rule in RULES for reactant in rule.families for name in reactant} - {"carbon_monoxide"})
)
# In the usual silanediol one silicon carries both hydroxyls, which needs a separate pattern.
GEMINAL_SILANEDIOL = "[Si:2]([OX2H:1])[OX2H:3]>>*-[Si:2]-[O:3]-*"
# C=C of styrenes, acrylates, acrylonitriles, vinyl ethers, esters and amides. A monomer with two of them crosslinks;
# with one, none is left in its polymer. Allyl groups, dienes and C=C inside a chain or a ring are not included.
POLYMERISABLE = Chem.MolFromSmarts("[CH2]=[CX3]-[c,O,N,S,$(C=O),$(C#N)]")


@dataclass(frozen=True)
class Reaction:
    """One polymerisation to try: the index of its rule and the SMILES of its monomers."""

    rule: int
    monomers: tuple[str, ...]


@dataclass(frozen=True)
class RepeatUnit:
    """A repeat unit by its polymer identity, its class, and the monomers it came from."""

    identity: str
    polymer_class: str
    monomers: tuple[str, ...]


def list_reactions(families: dict[str, list[str]], seed: int) -> Iterator[Reaction]:
    """All polymerisations of the monomers, one of each polymer class in turn, in an order fixed by `seed`.

    Small classes run out first and the large ones fill the rest, so any prefix of the list is as varied as possible.
    """
    streams: dict[str, list[Reaction]] = {}
    for index, (rule, pools) in enumerate(zip(RULES, _make_pools(families), strict=True)):
        if len(pools) == 1:
            reactions = [Reaction(index, (monomer,)) for monomer in pools[0]]
        else:
            reactions = [Reaction(index, (first, second)) for first in pools[0] for second in pools[1]]
        streams.setdefault(rule.polymer_class, []).extend(reactions)
    generator = np.random.default_rng(seed)
    queues = [[stream[place] for place in generator.permutation(len(stream))] for stream in streams.values()]
    for turn in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if turn < len(queue):
                yield queue[turn]


def find_unused(families: dict[str, list[str]]) -> list[str]:
    """The monomers that take part in no polymerisation, each as ``family SMILES``, with the reason if known."""
    taken: set[tuple[str, str]] = set()
    reacting: set[tuple[str, str]] = set()
    for index, (rule, pools) in enumerate(zip(RULES, _make_pools(families), strict=True)):
        fitting = [{one for one in pool if _fits(index, place, one)} for place, pool in enumerate(pools)]
        members = {
            (family, one)
            for names, pool in zip(rule.families, fitting, strict=True)
            for family in names
            for one in families.get(family, [])
            if one in pool
        }
        taken |= members
        reacting |= members if all(fitting) else set()
    unused = []
    for family, monomers in families.items():
        for monomer in monomers:
            if (family, monomer) in reacting:
                continue
            reason = ""
            if (family, monomer) in taken:
                reason = " (no partner in the list)"
            elif family == "vinyl" and _crosslinks(monomer):
                reason = " (two C=C that polymerise: it crosslinks)"
            unused.append(f"{family} {monomer}{reason}")
    return unused


def run_reaction(reaction: Reaction) -> RepeatUnit | None:
    """The repeat unit of a polymerisation, or ``None`` when the rule does not apply or gives no linear chain.

    If the rule gives several regioisomers (an asymmetric diol), the first in RDKit's order represents them all; the
    canonical SMILES of the monomers fix that order. In a vinyl monomer with a second C=C (allyl methacrylate), the
    C=C that polymerises by itself reacts.
    """
    is_vinyl = RULES[reaction.rule].polymer_class == "vinyl"
    with rdBase.BlockLogs():
        reactants = [Chem.MolFromSmiles(smiles) for smiles in reaction.monomers]
        for transformation in _transformations(reaction.rule):
            for products in transformation.RunReactants(reactants, MOST_PRODUCTS):
                identity = _identity(products[0])
                if identity is not None and not (is_vinyl and _count_polymerisable(identity)):
                    return RepeatUnit(identity, RULES[reaction.rule].polymer_class, reaction.monomers)
    return None


def _identity(product: Chem.Mol) -> str | None:
    try:
        Chem.SanitizeMol(product)
    except (Chem.KekulizeException, Chem.AtomValenceException, Chem.MolSanitizeException):
        return None
    smiles = Chem.MolToSmiles(product, isomericSmiles=False)
    if smiles.count("*") != 2 or "." in smiles:
        return None
    try:
        return polymer_identity(smiles)
    except PolymerError:
        return None


def _make_pools(families: dict[str, list[str]]) -> list[list[list[str]]]:
    """The monomers that each rule accepts, by reactant."""
    allowed = _smipoly_classes(tuple(sorted({monomer for members in families.values() for monomer in members})))
    return [[_pool(rule, place, families, allowed) for place in range(len(rule.families))] for rule in RULES]


def _fits(rule_index: int, place: int, monomer: str) -> bool:
    """Whether one of our own rules finds its groups in a monomer; for SMiPoly's rules this was checked earlier."""
    if RULES[rule_index].smipoly is not None:
        return True
    molecule = Chem.MolFromSmiles(monomer)
    return any(molecule.HasSubstructMatch(one.GetReactantTemplate(place)) for one in _transformations(rule_index))


def _crosslinks(monomer: str) -> bool:
    return _count_polymerisable(monomer) > 1


def _count_polymerisable(smiles: str) -> int:
    """Number of `POLYMERISABLE` C=C in a monomer or repeat unit."""
    return len({match[0] for match in Chem.MolFromSmiles(smiles).GetSubstructMatches(POLYMERISABLE)})


def _pool(rule: Rule, place: int, families: dict[str, list[str]], allowed: dict[str, set[str]]) -> list[str]:
    if rule.families[place] == ("carbon_monoxide",):
        return [CARBON_MONOXIDE]
    members = [monomer for family in rule.families[place] for monomer in families.get(family, [])]
    if rule.smipoly is None:
        return members
    pool = [monomer for monomer in members if monomer in allowed[rule.smipoly[1][place]]]
    return [monomer for monomer in pool if not _crosslinks(monomer)] if rule.polymer_class == "vinyl" else pool


@lru_cache(maxsize=1)
def _smipoly_classes(monomers: tuple[str, ...]) -> dict[str, set[str]]:
    """Which monomers SMiPoly assigns to each of its monomer classes."""
    import pandas as pd
    from smipoly.smip.monc import moncls

    wanted = {name for rule in RULES if rule.smipoly is not None for name in rule.smipoly[1]} - {"none"}
    with rdBase.BlockLogs():
        table = moncls(pd.DataFrame({"SMILES": list(monomers)}), "SMILES")
    return {name: set(table.loc[table[name], "smip_cand_mons"]) for name in wanted}


@lru_cache(maxsize=64)
def _transformations(rule_index: int) -> tuple[Any, ...]:
    rule = RULES[rule_index]
    if rule.smipoly is not None:
        from smipoly.smip.polg import Ps_GenL

        polymer_class, monomer_classes = rule.smipoly
        wanted = (*monomer_classes, "none")[:2]
        return tuple(entry[2] for entry in Ps_GenL[polymer_class] if (entry[0], entry[1]) == wanted)
    own = [rule.smarts, GEMINAL_SILANEDIOL] if rule.polymer_class == "polysiloxane" else [rule.smarts]
    return tuple(rdChemReactions.ReactionFromSmarts(smarts) for smarts in own)


__all__: Sequence[str] = (
    "FAMILIES",
    "RULES",
    "Reaction",
    "RepeatUnit",
    "Rule",
    "find_unused",
    "list_reactions",
    "run_reaction",
)
