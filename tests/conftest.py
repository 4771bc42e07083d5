"""What several test files share: one small random model, in memory and as a folder of the public layout."""

from pathlib import Path

import pytest

from ldm.bundle import Bundle
from weights_convert.export import export_folder
from weights_convert.tiny import random_bundle


@pytest.fixture(scope="session")
def tiny() -> Bundle:
    """The small random Stable Diffusion of ``weights_convert.tiny``."""
    return random_bundle()


@pytest.fixture(scope="session")
def tiny_folder(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the public folder layout. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("public") / "tiny-sd"
    export_folder(tiny, folder)
    return folder
