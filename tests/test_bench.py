"""The bench's parts that are no timing: what is asked, ratios, tables, random models; and the worker's protocol."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import gpu, models, profiling, questions, report, turns
from bench.__main__ import arguments
from bench.peers import OURS, PEERS
from bench.workers import ldm as worker
from bench.workers.protocol import answers, one_sentence

CACHE = Path("cache")


@pytest.mark.parametrize("name", questions.QUESTIONS)
def test_every_question_can_be_asked_at_both_sizes_and_written_as_json(name: str):
    for small in (False, True):
        asked = list(questions.asks(name, questions.Options(CACHE, small=small)))
        assert asked == json.loads(json.dumps(asked)) and asked
        assert all(one["family"] == "small" for one in asked) == small
        assert all(side % 8 == 0 for one in asked for side in one["size"])


def test_batches_and_steps_of_the_command_line_go_before_the_questions_own():
    options = questions.Options(CACHE, batch=(1, 16), steps=3)
    asked = list(questions.asks("picture", options))
    assert [one["batch"] for one in asked] == [1, 16] and {one["steps"] for one in asked} == {3}
    assert arguments(["unet", "--batch", "1,16"]).batch == (1, 16)


def test_a_peer_that_cannot_answer_is_left_out_by_a_sentence():
    (ask,) = questions.asks("text", questions.Options(CACHE, small=True))
    assert turns.refused(OURS, ask, questions.Options(CACHE, small=True)) is None
    assert "public sizes" in turns.refused("stable-diffusion.cpp", {**ask, "question": "picture"}, SMALL)
    assert "left out" in turns.refused("stable-diffusion.cpp", ask, questions.Options(CACHE))
    assert all(peer.install for peer in PEERS.values())


SMALL = questions.Options(CACHE, small=True)


def test_ratios_are_of_medians_and_of_rounds():
    row = turns.compared([1.0, 2.0, 9.0], [4.0, 4.0, 3.0])
    assert row["ratio"] == 0.5
    assert row["ratio_paired"] == {"median": 0.5, "min": 0.25, "max": 3.0}
    assert turns.compared([2.0, 3.0], [2.0, 3.0])["ratio"] == 1.0


def row(peer: str = "diffusers", median: float = 1.0, **changes) -> dict:
    """A row as ``turns.calls`` makes them."""
    seconds = {"median": median, "min": median, "max": 2 * median}
    side = {"seconds": seconds, "peak_mb": 1500.0}
    known = {"question": "unet", "family": "sd1", "batch": 2, "size": [512, 512], "dtype": "float32", "steps": 0}
    return {**known, "peer": peer, "ours": side, "theirs": side, **turns.compared([median], [1.0]), **changes}


def test_of_rows_that_ask_the_same_the_last_counts():
    rows = [row(median=5.0), {"question": "pictures a second"}, row("openvino"), {"processor": "x"}, row(median=2.0)]
    found = report.latest(rows)
    assert [r["peer"] for r in found] == ["diffusers", "openvino"]
    assert found[0]["ours"]["seconds"]["median"] == 2.0


def test_tables_say_the_figures():
    text = report.calls([row(median=0.5)])
    assert text.count("\n") == 3 and "**0.50**" in text and "0.5 (0.5–1)" in text and "1.5 / 1.5" in text
    assert report.calls([]) == ""


def test_a_section_is_replaced_and_nothing_else():
    text = "before\n<!-- a: made by python -m bench -->\nold\n<!-- end of a -->\nafter"
    once = report.replaced(text, "a", "new \\1")
    assert once == report.replaced(once, "a", "new \\1")
    assert once.startswith("before\n") and once.endswith("\nafter") and "old" not in once and "new \\1" in once
    with pytest.raises(ValueError, match="no marks"):
        report.replaced(text, "b", "")
    report.replaced(report.README.read_text(encoding="utf-8"), "results", "")


def test_random_weights_are_of_ordinary_size_and_not_zero():
    params = models.random_params(models.FAMILIES["small"].configs.unet, "float32")
    kernel, scale = params["encoder.down.1.res.0.conv2.kernel"], params["norm_out.scale"]
    assert all((array == 0).mean() < 1e-3 for array in params.values())
    assert kernel.std() == pytest.approx(np.prod(kernel.shape[:-1]) ** -0.5, rel=0.02)
    assert abs(scale.mean() - 1) < 0.1


def test_what_is_written_once_is_not_written_again(tmp_path: Path):
    (tmp_path / "unfinished-file").mkdir()
    made = models.once(tmp_path / "file", lambda to: to.write_text("one"))
    assert models.once(made, lambda to: to.write_text("two")).read_text() == "one"
    assert not (tmp_path / "unfinished-file").exists()


def test_our_worker_answers_on_a_tiny_model(tmp_path: Path):
    answer = answers(worker)
    assert answer({"do": "about"})["peer"] == OURS
    options = questions.Options(tmp_path, small=True)
    for name in ("text", "decode"):
        (ask,) = map(questions.with_files, questions.asks(name, options))
        ready = answer({"do": "prepare", "ask": ask})
        assert ready["temporaries_mb"] >= 0 and ready["compiles"] >= 1, ready
        compiled, run = ready["compiles"], answer({"do": "run"})
        assert run["seconds"] > 0 and run["compiles"] == compiled and run["peak_mb"] > 50
    assert (tmp_path / "small-float32" / "model_index.json").exists()


def test_a_worker_says_in_a_sentence_what_went_wrong(tmp_path: Path):
    ask = {"question": "decode", "model": str(tmp_path / "nothing"), "dtype": "float32"}
    assert answers(worker)({"do": "prepare", "ask": ask})["error"].startswith("ValueError: ")
    assert one_sentence(RuntimeError("\n one \n two")) == "RuntimeError: one"


def test_utilisation_is_the_models_arithmetic_over_the_peak():
    second = {"seconds": {"median": 1.0}}
    one = gpu.utilisation({"question": "unet", "batch": 2, "ours": second, "theirs": second})
    many = gpu.utilisation({"question": "picture", "batch": 16, "steps": 20, "ours": second, "theirs": {}})
    assert one["ours_utilisation"] == one["theirs_utilisation"] == round(1.354 / 989, 3)
    assert many["ours_tflop_s"] == round(16 * 20 * 1.354, 1) and "theirs_tflop_s" not in many


def test_the_profiler_knows_each_kind_of_operation_and_counts_its_arithmetic():
    def program(x, kernel, w):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        q = jnp.dot(y.reshape(1, 64, 1, 16), w)
        return jax.nn.silu(profiling.marked("site", q, q, q))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 8, 8, 3), (3, 3, 3, 16), (16, 16))]
    traced = jax.jit(program).trace(*shapes)
    counted = profiling.flops(traced.jaxpr.jaxpr)
    assert counted == {"convolution": 2 * 64 * 16 * 27, "matmul": 2 * 64 * 16 * 16, "attention": 4 * 64 * 64 * 16}
    kinds = {operation.kind for operation in profiling.operations(traced.lower().compile().as_text()).values()}
    assert {"convolution", "matmul", "attention"} <= kinds <= set(profiling.KINDS)


def test_sizes_and_kinds_are_read_from_a_programs_text():
    assert profiling.size_of("f32[2,64,64,320]{3,2,1,0}") == 4 * 2 * 64 * 64 * 320
    assert profiling.size_of("(bf16[8], s32[])") == 16 + 4
    assert profiling.kind_of({"fusion", "transpose", "copy"}, "") == "layout"
    assert profiling.kind_of({"fusion", "multiply", "reduce"}, "") == "norm and activation"
    assert profiling.kind_of({"fusion", "dot"}, "attention_scope/dot_general") == "attention"
