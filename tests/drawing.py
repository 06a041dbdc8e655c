"""Whether RDKit can draw here."""

import pytest

from chitransfer.chemistry.rdkit_drawing import why_no_drawing

needs_drawing = pytest.mark.skipif(why_no_drawing() is not None, reason="needs libXrender and libXext")
