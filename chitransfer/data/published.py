"""The public tables that can be fetched, each with its location, commit, SHA-256, licence and citation.

Called by `data.sources`.
"""

from __future__ import annotations

from dataclasses import dataclass

from chitransfer.errors import DataError

RAW_ADDRESS = "https://raw.githubusercontent.com"

_MIT = """MIT License

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_POLYVERSE = """polyVERSE (Ramprasad Group) has a licence of its own: share alike, no sale.
Read it before you use or pass on this table: https://github.com/Ramprasad-Group/polyVERSE
This copy was fetched for you from there and is not part of chitransfer; do not bundle it with anything you sell.
"""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a public repository at a fixed commit.

    Attributes
    ----------
    repository, commit, path
        Location: ``owner/name``, 40 hex digits, path in the repository.
    sha256
        SHA-256 of the content.
    size
        Size in bytes; ``None`` if not recorded.
    """

    repository: str
    commit: str
    path: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return self.path.rsplit("/", 1)[-1]

    def addresses(self, base_url: str | None) -> list[str]:
        """Addresses to try, in order; a mirror may use the pinned layout or hold the file under its plain name."""
        pinned = f"{self.repository}/{self.commit}/{self.path}"
        base = (base_url or RAW_ADDRESS).rstrip("/")
        return [f"{base}/{pinned}"] if base_url is None else [f"{base}/{pinned}", f"{base}/{self.name}"]


@dataclass(frozen=True)
class Source:
    """A public table that `fetch_table` can fetch.

    Attributes
    ----------
    name
        Name by which the user asks for it.
    kind
        ``stage1``, ``chi`` or ``solubility``: which of the tables in ``paths`` it can serve as.
    description, citation, licence
        Shown to the user; the licence is stored with the table.
    files
        The files to fetch.
    conversion
        Name of the function in `data.public_tables` that makes the table.
    """

    name: str
    kind: str
    description: str
    citation: str
    licence: str
    files: tuple[RemoteFile, ...]
    conversion: str


_MTL = "yoshida-lab/MTL_ChiParameter", "7d9a4d872af19e0025898a09118fb1847ae4171c"
_MTL_CHI = RemoteFile(
    *_MTL, "sample_data/data_Chi.csv", "cc8fbf4a100d3a5b2379c5bff5d495a68f61ffb4d04ce41d1f66650b1c80573d", 731_956
)
_MTL_COSMO = RemoteFile(
    *_MTL, "sample_data/data_COSMO.csv", "6c303495159a3a15d342ef2b775b1e0312574a2a5dfc6ed1de55cb3cca629528", 673_207
)
_MTL_CITATION = (
    "Aoki et al.: Multitask machine learning to predict polymer-solvent miscibility using Flory-Huggins interaction "
    "parameters, Macromolecules (2023), doi 10.1021/acs.macromol.2c02600"
)
_POLYSOL = RemoteFile(
    "cstubb/PolySol",
    "5d2fc43be8f547acdbe2441b805969e653244d62",
    "data/csvs/df_atactic_NOPE_nr_norad_nomol.csv",
    "7c407e3990934957f2a044f9de6f82f1923d24928a9ac22186a242e92207b073",
    180_387,
)
_POLYSOL_CITATION = (
    "Stubbs, Kim, Quinn, Pérez-Soto, Chen, Kim: Predicting homopolymer and copolymer solubility through machine "
    "learning, Digital Discovery, doi 10.1039/d4dd00290c; curated from Brandrup's Polymer Handbook"
)
_SOURCES = (
    Source(
        "mtl-chi",
        "chi",
        "experimental χ of 46 polymers in 140 solvents (Orwoll and Arnold), 1,190 rows",
        _MTL_CITATION,
        _MIT.format(holder="2022 yoshida-lab"),
        (_MTL_CHI,),
        "convert_mtl_chi",
    ),
    Source(
        "mtl-cosmo-rs",
        "stage1",
        "χ computed by COSMO-RS for the pairs of mtl-chi, 1,206 rows: a small Stage 1 table",
        _MTL_CITATION,
        _MIT.format(holder="2022 yoshida-lab"),
        (_MTL_CHI, _MTL_COSMO),
        "convert_mtl_cosmo",
    ),
    Source(
        "polysol",
        "solubility",
        "solubility of homopolymers near room temperature (Polymer Handbook), every entry that names one repeat unit",
        _POLYSOL_CITATION,
        _MIT.format(holder="2024 cstubb"),
        (_POLYSOL,),
        "convert_polysol",
    ),
    Source(
        "polysol-vinyl",
        "solubility",
        "the vinyl subset of PolySol as published comparisons use it, uncorrected, 788 rows",
        _POLYSOL_CITATION,
        _MIT.format(holder="2024 cstubb"),
        (_POLYSOL,),
        "convert_polysol_vinyl",
    ),
    Source(
        "polyverse-chi",
        "chi",
        "experimental χ collected by the Ramprasad group",
        "Nistane, Chen, Lee, Lively, Ramprasad: Estimation of the Flory-Huggins interaction parameter of "
        "polymer-solvent mixtures using machine learning, MRS Communications 12 (2022) 1096, "
        "doi 10.1557/s43579-022-00237-x",
        _POLYVERSE,
        (
            RemoteFile(
                "Ramprasad-Group/polyVERSE",
                "8463838bc1b7f74e63eab127f2341c1abf50b0ab",
                "Other/chi_parameter/chi_parameter.csv",
                "108f755a9e1aea70b64841a36c5fdf0d7dca13b38e852816b1f129729f8a6489",
            ),
        ),
        "convert_polyverse_chi",
    ),
)


def list_sources() -> tuple[Source, ...]:
    """The public tables that can be fetched by name."""
    return _SOURCES


def find_source(name: str) -> Source:
    """The source called `name`; raises DataError with the known names."""
    for source in _SOURCES:
        if source.name == name:
            return source
    known = "\n".join(f"  {source.name}: {source.description}" for source in _SOURCES)
    raise DataError(f"there is no public table called {name!r}; known:\n{known}")
