"""What other tools call the samplers."""

import pytest

from ldm.samplers import SAMPLERS, named
from ldm.samplers.names import ALIASES


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2S a", ("dpmpp_2s_a", "leading")),
        ("DPM++ SDE", ("dpmpp_sde", "leading")),
        ("DPM2 a", ("dpm2_a", "leading")),
        ("Euler a", ("euler_a", "leading")),
        ("euler_ancestral", ("euler_a", "leading")),
        ("LMS Karras", ("lms", "karras")),
        ("dpmpp_3m_sde", ("dpmpp_3m_sde", "leading")),
        ("UniPCMultistepScheduler", ("unipc", "leading")),
        ("PNDM", ("plms", "leading")),
        ("k_dpm_2_a", ("dpm2_a", "leading")),
    ],
)
def test_names(name, ours):
    assert named(name, "leading") == ours


def test_our_names_are_left_alone_and_aliases_lead_to_them():
    for name in SAMPLERS:
        assert named(name, "ays") == (name, "ays")
    assert set(ALIASES.values()) <= set(SAMPLERS)
    assert all(named(alias, "leading")[0] == name for alias, name in ALIASES.items())


def test_a_name_that_nobody_knows():
    with pytest.raises(ValueError, match=r"unknown sampler 'dpmpp_4m'; did you mean 'dpmpp_2m'"):
        named("dpmpp_4m", "leading")
