"""Reads report.html as a browser would."""

from __future__ import annotations

import json
import re
from typing import Any

from chitransfer.search.study_folder import StudyFolder


def read_page(folder: StudyFolder) -> dict[str, Any]:
    """The data inside report.html."""
    text = (folder.path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    contents: dict[str, Any] = json.loads(found.group(1))
    return contents
