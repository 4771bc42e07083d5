"""Training and sampling on several devices, virtual ones and processes of one machine, give what one device gives."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mesh_programs
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from ldm import program
from ldm.training.sharding import distributed, make_mesh, rows, shard_batch, shard_state, state_shardings, whole
from ldm.training.step import make_step, start

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent
QUICK = "--xla_backend_optimization_level=0"  # compiling is what takes time here


def begin(*arguments: str, devices: int = 8) -> subprocess.Popen:
    """A process of mesh_programs.py with so many virtual devices."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(TESTS.parent)
    command = [sys.executable, str(TESTS / "mesh_programs.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def report(process: subprocess.Popen) -> dict:
    """What it said, as soon as it has."""
    try:
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


# ---- eight devices ----


@pytest.fixture(scope="module")
def training() -> dict:
    return report(begin("training"))


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_a_step_of_a_unet_equals_the_one_on_one_device(training, mesh):
    run = training[mesh]
    assert run["losses"] < 1e-6 and run["parameters"] < 1e-5 and run["average"] < 1e-5
    assert run["moved"] > 1e-2
    assert run["kept"], "the state lies as it lay: else the next step would be compiled again"


def test_data_parallel_training_sums_gradients_and_moves_nothing_else(training):
    """The compiler makes one all-reduce of all gradients and metrics."""
    assert set(training["data"]["collectives"]) == {"all-reduce"}
    assert 1 <= training["data"]["collectives"]["all-reduce"] <= 4
    assert training["data"]["share"] == 1


def test_fully_sharded_training_gathers_every_weight_once_and_scatters_gradients(training):
    """One all-gather for each array that is cut. On a CPU XLA writes a reduce-scatter as an all-reduce and a slice."""
    counts, arrays = training["fsdp"]["collectives"], training["arrays"]
    assert 0.9 * arrays <= counts["all-gather"] <= arrays
    assert 0 < counts.get("reduce-scatter", 0) + counts["all-reduce"] <= arrays + 4
    assert not {"all-to-all", "collective-permute"} & set(counts), "activations stay where they are"
    assert training["fsdp"]["share"] < 1 / 8 + 0.02


def test_every_mesh_trains_alike_and_compiles_once():
    runs = report(begin("lines"))
    loss = runs.pop("loss")
    for name, (far, its_loss, compiled, _) in runs.items():
        assert far < 1e-5 and its_loss == pytest.approx(loss, rel=1e-5) and compiled == 1, name
    shares = {name: share for name, (*_, share) in runs.items()}
    assert shares["8 x 1, 1"] == 1
    assert shares["1 x 8, 1"] < shares["2 x 4, 2"] < shares["-1 x 2, 1"] < 0.6


def test_pictures_are_the_same_over_eight_devices():
    """From noise, from a picture, and from a picture with a hole, outside of which not a bit moves."""
    for name, sampled in report(begin("sampling")).items():
        assert sampled["difference"] < 1e-4 and sampled["size"] > 0.1, name
        assert sampled["share"] == 1 / 8, "one picture on each"
        assert sampled["outside"] and (sampled["kept"] > 0) == (name == "hole")


def test_every_stochastic_sampler_draws_the_same_over_eight_devices():
    """Its noise to the bit, per step and along a Brownian path; with a part that is known."""
    reports = report(begin("randomness"))
    assert {name.split(",")[0] for name in reports} >= {"ddim", "ddpm", "lcm", "euler_a", "dpm2_a", "dpmpp_2s_a"}
    for name, sampled in reports.items():
        assert sampled["bits"] and sampled["difference"] < 1e-5 and sampled["size"] > 0.1, name
        assert sampled["share"] == 1 / 8


# ---- two processes ----


def test_two_processes_train_to_the_parameters_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [begin("together", coordinator, "2", str(i), devices=1) for i in range(2)]
    try:
        first, second = map(report, processes)
    finally:
        for process in processes:
            process.kill()
    assert first["process"] == [0, 2, 2, 2] and second["process"] == [1, 2, 2, 2]
    assert first["params"] == second["params"] and first["loss"] == second["loss"]
    assert first["share"] < 0.6, "each holds half of the state"
    _, alone, metrics = mesh_programs.line_run(None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.array(b), a, atol=1e-5),
        dict(alone.params["line"]),
        first["params"]["line"],
    )
    assert first["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_joining_asks_for_what_is_missing(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    assert distributed() == (0, 1)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES, got ''"):
        distributed("localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID, got 'first'"):
        monkeypatch.setenv("JAX_PROCESS_ID", "first")
        distributed("localhost:1234")
    with pytest.raises(ValueError, match="process 2 of 2"):
        distributed("localhost:1234", process=2)


# ---- layouts ----


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(1, 48), max_size=4), st.sampled_from([1, 2, 3, 4, 8]))
def test_the_largest_axis_that_fits_is_cut(shape, parts):
    mesh = AbstractMesh((2, parts), ("data", "fsdp"))
    spec = state_shardings(mesh, jax.ShapeDtypeStruct(tuple(shape), jnp.float32)).spec
    fits = [size for size in shape if size % parts == 0] if parts > 1 else []
    cut = [size for size, name in zip(shape, spec, strict=False) if name]
    assert cut == ([max(fits)] if fits else [])
    assert set(spec) <= {None, "fsdp"}


def test_layouts_look_at_shapes_only():
    mesh = AbstractMesh((1, 4), ("data", "fsdp"))
    tree = {"kernel": np.zeros((3, 3, 8, 8)), "bias": np.zeros(6), "step": np.int32(0)}
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, tree))
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "bias": PartitionSpec(),
        "step": PartitionSpec(),
    }
    assert rows(mesh).spec == PartitionSpec(("data", "fsdp")) and whole(mesh).spec == PartitionSpec()


def test_one_device_is_a_mesh_too():
    """Also what is put on it is a copy: training there destroys nobody's arrays."""
    mesh, optimiser = make_mesh(devices=jax.devices()[:1]), optax.sgd(0.1)
    mine = jnp.ones((4, 2))
    state = shard_state(mesh, start({"w": mine}, optimiser))
    step = make_step(lambda p, f, b, k: ((b @ p["w"]).sum(), {}), optimiser, seed=0, mesh=mesh)
    kept = state.params["w"]
    again = shard_state(mesh, state)
    for _ in range(2):
        again, _ = step(again, {}, shard_batch(mesh, np.ones((2, 4), np.float32)))
    assert again.params["w"][0, 0] == pytest.approx(1 - 2 * 0.2)
    assert kept[0, 0] == 1 and mine[0, 0] == 1
    assert isinstance(again.params["w"].sharding, NamedSharding)


def test_meshes_and_batches_that_cannot_be():
    one = jax.devices()[:1]
    with pytest.raises(ValueError, match="mesh of 3 x 1 devices does not use the 1 there are"):
        make_mesh(3, devices=one)
    with pytest.raises(ValueError, match="mesh of 0 x 2 devices"):
        make_mesh(fsdp=2, devices=one)
    with pytest.raises(ValueError, match="1 or more devices along an axis"):
        make_mesh(fsdp=0, devices=one)
    with pytest.raises(ValueError, match=r"shape \(\) cannot be cut"):
        shard_batch(make_mesh(devices=one), {"x": np.float32(1)})


# ---- other platforms ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_lowers_for_cuda_and_tpu(dtype):
    """On a machine that need have neither."""
    optimiser = mesh_programs.make(mesh_programs.OptimiserConfig(), 10)
    shaped = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)
    state = jax.eval_shape(
        lambda: start({"unet": mesh_programs.init(mesh_programs.UNet, mesh_programs.CONFIG, 0)}, optimiser)
    )
    step = make_step(mesh_programs.unet_loss, optimiser, seed=0, dtype=dtype, accumulate=2)
    exported = jax.export.export(step, platforms=("cuda", "tpu"))(state, {}, shaped(mesh_programs.unet_batch(0)))
    assert exported.platforms == ("cuda", "tpu")
    assert ("bf16" in exported.mlir_module()) == (dtype == "bfloat16")


def test_the_sampler_lowers_for_cuda_and_tpu():
    _, params, inputs, static = mesh_programs.sampler()
    said, state = jax.eval_shape(functools.partial(program.begin, configs=static["configs"]), params, inputs)
    wanted = {name: static[name] for name in ("configs", "sampler", "noise")}
    given = {"unet": params["unet"]}, inputs._replace(texts=said), state, np.int32(0), np.int32(3)
    exported = jax.export.export(program.advance, platforms=("cuda", "tpu"))(*given, **wanted)
    assert exported.platforms == ("cuda", "tpu") and exported.out_avals[0].shape == (8, 8, 8, 4)
