"""The guard of this folder: with LDM_ORACLES=required, whatever is skipped has failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FILES = {
    "test_inside.py": "import pytest\ndef test_one():\n    pytest.skip('reason 1')\n",
    "test_mark.py": "import pytest\n@pytest.mark.skip('reason 2')\ndef test_one():\n    pass\n",
    "test_import.py": "import pytest\npytest.skip('reason 3', allow_module_level=True)\n",
    "test_runs.py": "def test_one():\n    print('relative error 0')\n",
}


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A run of pytest over ``folder`` alone."""
    command = [sys.executable, "-m", "pytest", "-rs", "--continue-on-collection-errors", "--rootdir", folder.parent]
    inherited = {name: value for name, value in os.environ.items() if name != "LDM_ORACLES"}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, cwd=folder)


def test_a_skip_passes_unless_the_oracles_are_required(tmp_path: Path):
    folder = tmp_path / "parity"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    for name, code in FILES.items():
        (folder / name).write_text(code)
    relaxed, strict = run(folder), run(folder, LDM_ORACLES="required")
    assert relaxed.returncode == 0 and "1 passed, 3 skipped" in relaxed.stdout, relaxed.stdout
    assert strict.returncode != 0 and "skipped" not in strict.stdout, strict.stdout
    assert all(f"this did not run: Skipped: reason {i}" in strict.stdout for i in (1, 2, 3)), strict.stdout
    assert "relative error 0" in relaxed.stdout  # the figures are shown although the test passed
