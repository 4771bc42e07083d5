"""What other tools call the samplers: their names, ours, and the spacing that some of them bring along.

A name is compared without case, and with spaces, ``+`` and ``-`` as in "DPM++ 2M SDE Karras". The names are those of
the common graphical tools, of k-diffusion's functions, and of diffusers' scheduler classes.
"""

from ldm.samplers.loop import SAMPLERS
from ldm.schedule import check_name

ALIASES = {
    "ddimscheduler": "ddim",
    "ddpmscheduler": "ddpm",
    "eulerdiscretescheduler": "euler",
    "k_euler": "euler",
    "euler ancestral": "euler_a",
    "k_euler_a": "euler_a",
    "eulerancestraldiscretescheduler": "euler_a",
    "heundiscretescheduler": "heun",
    "k_heun": "heun",
    "dpm_2": "dpm2",
    "k_dpm_2": "dpm2",
    "kdpm2discretescheduler": "dpm2",
    "dpm_2 ancestral": "dpm2_a",
    "k_dpm_2_a": "dpm2_a",
    "kdpm2ancestraldiscretescheduler": "dpm2_a",
    "dpm++ 2s": "dpmpp_2s_a",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmsolvermultistepscheduler": "dpmpp_2m",
    "dpmsolversdescheduler": "dpmpp_sde",
    "lmsdiscretescheduler": "lms",
    "k_lms": "lms",
    "pndm": "plms",
    "pndmscheduler": "plms",
    "unipcmultistepscheduler": "unipc",
    "lcmscheduler": "lcm",
}
SPACINGS_IN_NAMES = ("karras", "exponential")


def _plain(name: str) -> str:
    """A name as it is compared: "DPM++ 2M SDE" -> "dpmpp_2m_sde"."""
    return name.strip().lower().replace("++", "pp").replace("-", "_").replace(" ", "_")


_OURS = {_plain(alias): name for alias, name in ALIASES.items()}


def named(sampler: str, spacing: str) -> tuple[str, str]:
    """Our names of a sampler and a spacing: a last word "Karras" or "Exponential" of the sampler is its spacing.

    ("DPM++ 2M Karras", "leading") -> ("dpmpp_2m", "karras"). Raises ValueError for a sampler that nobody knows.
    """
    plain = _plain(str(sampler))
    for word in SPACINGS_IN_NAMES:
        if plain.endswith(f"_{word}"):
            plain, spacing = plain.removesuffix(f"_{word}"), word
    plain = _OURS.get(plain, plain)
    return (plain, spacing) if plain in SAMPLERS else (check_name("sampler", sampler, SAMPLERS), spacing)
