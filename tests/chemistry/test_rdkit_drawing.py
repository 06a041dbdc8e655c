"""Machines on which RDKit's drawing cannot be imported, for lack of X11's libraries."""

from __future__ import annotations

import sys
from unittest.mock import patch

from chitransfer.chemistry.rdkit_drawing import import_ugropy, why_no_drawing


def test_ugropys_groups_are_there_where_rdkit_cannot_draw() -> None:
    expected = import_ugropy().unifac.subgroups
    import_ugropy.cache_clear()
    with patch.dict(sys.modules, {"rdkit.Chem.Draw": None}):
        for name in [name for name in sys.modules if name.partition(".")[0] == "ugropy"]:
            del sys.modules[name]
        reason = why_no_drawing()
        found = import_ugropy()
        assert "rdkit.Chem.Draw" not in sys.modules
    import_ugropy.cache_clear()
    assert found.unifac.subgroups.equals(expected)
    assert "install libXrender and libXext" in (reason or "")
