"""Pictures shared out over the devices of a machine: those of one device, and nothing is said between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm
from ldm.devices import check_count

TESTS = Path(__file__).parent


def report(name: str) -> dict:
    """What a program of device_programs.py says, run with eight virtual devices."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    environment |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(TESTS / "device_programs.py"), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_pictures_are_those_of_one_device():
    """Each with a prompt and a negative prompt of its own, by every way to say them; with a hole; with a memory;
    under controls."""
    found = report("generating")
    assert found.pop("levels") <= 1 and found.pop("decoded") <= 1
    for name, (difference, size) in found.items():
        assert difference < 1e-4 and size > 0.1, name
    assert {"texts", "scheduled", "context", "hole", "brownian", "memory", "controls"} == set(found)


def test_noise_is_the_same_to_the_bit_and_nothing_is_communicated():
    found = report("programs")
    assert found == {"bits": True, "shards": [1] * 8, "collectives": 0, "partitions": 8, "devices": 8}


def test_one_device_is_a_mesh_too(least):
    options = {"steps": 2, "size": (64, 48), "progress": False, "output": "latents"}
    alone, mesh = ldm.generate(least, ["a", "b"], **options), ldm.on_devices(least, 1)
    np.testing.assert_allclose(ldm.generate(mesh, ["a", "b"], **options), alone, atol=1e-5)


def test_what_cannot_be_shared_out(least):
    with pytest.raises(ValueError, match=r"2 devices were asked for, but JAX sees 1 here \(cpu\)"):
        ldm.on_devices(least, len(jax.local_devices()) + 1)
    with pytest.raises(ValueError, match="0 devices were asked for"):
        ldm.on_devices(least, 0)

    class Eight:
        size = 8

    for count, near in ((1, 8), (12, 8), (17, 16)):
        with pytest.raises(ValueError, match=f"{count} pictures cannot be .* by 8 devices; try {near}"):
            check_count(Eight(), count)
    check_count(Eight(), 16)
    check_count(None, 3)


# ---- memory given back ----


def test_parts_are_given_back_as_soon_as_they_have_done_their_work(least):
    options = {"steps": 2, "size": (64, 48), "progress": False, "output": "latents"}
    kept = ldm.generate(least, "a", **options)
    copy = ldm.Bundle(
        least.configs,
        {part: jax.tree.map(lambda a: jax.device_put(np.array(a)), dict(p)) for part, p in least.params.items()},
        least.tokenizer,
        least.size,
    )
    assert np.array_equal(ldm.generate(copy, "a", release=True, **options), kept)
    gone = {part: {array.is_deleted() for array in copy.params[part].values()} for part in copy.params}
    assert gone == {"unet": {True}, "text": {True}, "vae": {False}}
    assert ldm.decode(copy, kept).shape == (1, 48, 64, 3)


def test_a_context_needs_no_text_tower(least):
    """So a bundle without one draws, and its memory is free."""
    options = {"steps": 2, "size": (64, 48), "progress": False}
    context = ldm.encode_prompts(least, ["a cat"])
    rest = {part: arrays for part, arrays in least.params.items() if part != "text"}
    bundle = ldm.Bundle(least.configs, rest, None, least.size)
    assert np.array_equal(ldm.generate(bundle, "", context=context, **options), ldm.generate(least, "a cat", **options))
    with pytest.raises(ValueError, match="text is needed too"):
        ldm.generate(bundle, "a cat", **options)
