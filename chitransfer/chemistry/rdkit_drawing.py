"""RDKit's drawing, which needs libraries of X11 (libXrender, libXext) that many servers and containers lack.

Called by `chemistry.groups` and `commands.model`.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

_DRAWING = "rdkit.Chem.Draw"


def why_no_drawing() -> str | None:
    """The reason why RDKit cannot draw on this machine, and the remedy; ``None`` if it can."""
    try:
        import_module(_DRAWING)
    except ImportError as error:
        return (
            f"RDKit cannot draw on this machine ({error}); install libXrender and libXext "
            "(Debian and Ubuntu: apt install libxrender1 libxext6)"
        )
    return None


@lru_cache(maxsize=1)
def import_ugropy() -> Any:
    """The package ugropy, also where RDKit cannot draw.

    ugropy imports RDKit's drawing, although only its pictures of fragmentations use it. Where that import fails, a
    module without content takes its place while ugropy is imported.
    """
    is_missing = why_no_drawing() is not None
    if is_missing:
        stand_in = ModuleType(_DRAWING)
        vars(stand_in)["rdMolDraw2D"] = None
        sys.modules[_DRAWING] = stand_in
    try:
        import ugropy
    finally:
        if is_missing:
            del sys.modules[_DRAWING]
    return ugropy
