"""The study of controls: how sudden a curve rises, what nets are tried on, and what is asked of them."""

import numpy as np
import pytest

from ldm.adapters.control import RULES
from ldm.evaluation.adherence import edge_agreement
from ldm.toybox.parsing import parse
from ldm.toybox.recipe import control
from ldm.training.config import TrainConfig, read
from ldm.training.controlnet import ControlOptions
from ldm.training.losses import DiffusionOptions


def test_a_leap_is_told_from_a_slope():
    leap = control.jump([0.2] * 10 + [0.8] * 10)
    assert leap["greatest rise"] == pytest.approx(1) and leap["left by a step"] == pytest.approx(0)
    assert leap["left by a line"] == pytest.approx(0.25, abs=0.01)
    slope = control.jump(np.linspace(0.2, 0.8, 20))
    assert slope["greatest rise"] == pytest.approx(1 / 19) and slope["left by a line"] == pytest.approx(0, abs=1e-9)
    assert slope["left by a step"] == pytest.approx(0.25, abs=0.01), "as of any line that is cut in the middle"


@pytest.mark.long
def test_scenes_are_fresh_and_the_true_pictures_follow_their_own_edges():
    told = control.scenes(0)
    assert len(told.captions) == len(told.pictures) == len(told.hints["edges"]) == control.SCENES
    assert {len(parse(text).descriptions) for text in told.captions} == {1, 2}
    assert edge_agreement(told.pictures[:4], told.pictures[:4]).min() == 1
    assert control.as_told(told.captions, told.pictures.astype(np.float32) / 255) > 90
    assert control.as_told(told.captions, told.pictures[::-1].astype(np.float32) / 255) < 20


def test_nets_and_ways_are_what_their_options_allow():
    for said in control.NETS.values():
        assert set(said) <= {"begin", "drop", "count", "hint", "rate", "every"}
        read(ControlOptions, {key: said[key] for key in ("begin", "drop") if key in said}, "loss")
    assert {how["rule"] for how in control.WAYS.values() if "rule" in how} == set(RULES) - {"uniform"}
    assert read(TrainConfig, control.study.COMMON) and read(DiffusionOptions, control.study.NOISE)
