"""The syntax of prompts: weights, BREAK and scheduling, each by its examples, its laws and its mistakes."""

import re
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.prompts import Part, Stage, chunks, stages, weighted
from ldm.tokenizer import Tokenizer

CLIP, CLIP_2 = Tokenizer.clip(), Tokenizer.clip(pad="!")
PLAIN = st.text().filter(lambda text: not re.search(r"[()\[\]\\]|BREAK", text))
NESTED = st.recursive(  # colons only where they belong to the syntax
    st.sampled_from(["a", "b ", " c", r"\(", r"\]", r"\:", "|", "BREAK", "0.5", ""]),
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("[{}]".format, inner),
        st.builds("({}:1.5)".format, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("[{}::3]".format, inner),
    ),
    max_leaves=8,
)


# ---------------------------------------------------------------------------------------------------------------------
# Weights

WEIGHTS = {
    "a cat": [("a cat", 1)],
    "a (cat)": [("a ", 1), ("cat", 1.1)],
    "a (red cat:1.3) here": [("a ", 1), ("red cat", 1.3), (" here", 1)],
    "a [cat] here": [("a ", 1), ("cat", 1 / 1.1), (" here", 1)],
    "((cat))": [("cat", 1.21)],
    "(a (b:2) c:1.5)": [("a ", 1.5), ("b", 3), (" c", 1.5)],
    "(a [b])": [("a ", 1.1), ("b", 1)],
    "[[cat]]": [("cat", 1 / 1.21)],
    "a ([b]) c": [("a b c", 1)],  # equal neighbours are one part, here of brackets that cancel
    "(a)(b)": [("ab", 1.1)],
    "(a:0)(b:-0.5)(c:+2)(d:.5)(e:2.)": [("a", 0), ("b", -0.5), ("c", 2), ("d", 0.5), ("e", 2)],
    "(a: 1.3 )": [("a", 1.3)],
    "(a:100)(b:-100)": [("a", 100), ("b", -100)],
    "(16:9)": [("16", 9)],
    r"(16\:9)": [("16:9", 1.1)],
    "(at noon: cat)": [("at noon: cat", 1.1)],
    "(a:1.5:1.3)": [("a:1.5", 1.3)],
    "(a:)": [("a:", 1.1)],
    "[a:b]": [("a:b", 1 / 1.1)],
    "[a|b]": [("a|b", 1 / 1.1)],
    "a:b:0.5": [("a:b:0.5", 1)],
    r"\(a\) \[b\] \\ c\d \:": [(r"(a) [b] \ c\d :", 1)],
    r"(a \(b\):1.3)": [("a (b)", 1.3)],
    r"(\\)": [("\\", 1.1)],
    r"(a\:1.3)": [("a:1.3", 1.1)],
    "()": [("", 1)],
    "": [("", 1)],
}


def close(sections: list[list[Part]], wanted: list[list[tuple[str, float]]]) -> bool:
    """Whether the texts are equal and the weights within rounding."""
    found = [[part.text for part in section] for section in sections]
    if found != [[text for text, _ in section] for section in wanted]:
        return False
    pairs = zip(chain(*sections), chain(*wanted), strict=True)
    return all(part.weight == pytest.approx(weight, rel=1e-12) for part, (_, weight) in pairs)


@pytest.mark.parametrize("text", WEIGHTS)
def test_brackets_weigh(text):
    assert close(weighted(text), [WEIGHTS[text]]), weighted(text)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_a_text_without_syntax_is_one_part_of_weight_1(text):
    assert weighted(text) == [[Part(text, 1.0)]]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_an_escaped_text_is_itself(text):
    text = text.replace("BREAK", "")
    assert weighted(re.sub(r"[\\()\[\]:]", r"\\\g<0>", text)) == [[Part(text, 1.0)]]


@settings(max_examples=60, deadline=None)
@given(NESTED)
def test_brackets_around_a_stage_multiply_each_of_its_weights(text):
    text = stages(text, 5)[0].text
    once, twice = (
        [[(c, p.weight) for p in section for c in p.text] for section in weighted(t)] for t in (text, f"({text}:2)")
    )
    assert twice == [[(c, 2 * weight) for c, weight in section] for section in once]


BREAKS = {
    "a cat BREAK a dog": [[("a cat ", 1)], [(" a dog", 1)]],
    "aBREAK BREAKFAST break BREAK_": [[("aBREAK BREAKFAST break BREAK_", 1)]],
    "(a BREAK b:1.3)": [[("a ", 1.3)], [(" b", 1.3)]],
    "(a)BREAK,b": [[("a", 1.1)], [(",b", 1)]],
    "BREAK BREAK": [[("", 1)], [(" ", 1)], [("", 1)]],
}


@pytest.mark.parametrize("text", BREAKS)
def test_break_ends_a_section(text):
    assert close(weighted(text), BREAKS[text]), weighted(text)


# ---------------------------------------------------------------------------------------------------------------------
# Scheduling

SCHEDULES = {  # of 10 steps
    "a cat": [(0, "a cat")],
    "": [(0, "")],
    "a [cat:dog:0.5] here": [(0, "a cat here"), (5, "a dog here")],
    "[cat:dog:3]": [(0, "cat"), (3, "dog")],
    "[cat:dog: 3 ]": [(0, "cat"), (3, "dog")],
    "a[ cat:0.25]": [(0, "a"), (2, "a cat")],
    "a[ cat::0.25]": [(0, "a cat"), (2, "a")],
    "[a:b:1]": [(0, "a"), (1, "b")],
    "[a:b:1.0]": [(0, "a"), (1, "b")],  # one step, not all of them
    "[a:b:0]": [(0, "b")],
    "[a:b:0.09]": [(0, "b")],
    "[a:b:0.1]": [(0, "a"), (1, "b")],
    "[a:b:9]": [(0, "a"), (9, "b")],
    "[a:b:.99]": [(0, "a"), (9, "b")],
    "[a:b:10]": [(0, "a")],
    "[a:b:1000000]": [(0, "a")],
    "[a:b:3][c:d:3]": [(0, "ac"), (3, "bd")],
    "[a:b:3][c:d:7]": [(0, "ac"), (3, "bc"), (7, "bd")],
    "[a:a:3]": [(0, "a")],  # no change, no stage
    "[a:[b:c:6]:3]": [(0, "a"), (3, "b"), (6, "c")],
    "[[a:b:3]:c:6]": [(0, "a"), (3, "b"), (6, "c")],
    "[a:[b:c:3]:6]": [(0, "a"), (6, "c")],  # b's time is over before it begins
    "([a:b:3]:1.3)": [(0, "(a:1.3)"), (3, "(b:1.3)")],
    "[(a:1.3):[b]:3]": [(0, "(a:1.3)"), (3, "[b]")],
    "[(a:b:c):d:3]": [(0, "(a:b:c)"), (3, "d")],
    r"[a\::\[b\]:3]": [(0, r"a\:"), (3, r"\[b\]")],
    r"\[a:b:3\]": [(0, r"\[a:b:3\]")],
    "[a:b]": [(0, "[a:b]")],
    "[a:b:c]": [(0, "[a:b:c]")],
    "[a BREAK b:c:5]": [(0, "a BREAK b"), (5, "c")],
    "[:5][::5]": [(0, "")],
}


@pytest.mark.parametrize("text", SCHEDULES)
def test_scheduling_writes_out_the_text_of_each_step(text):
    assert stages(text, 10) == [Stage(*stage) for stage in SCHEDULES[text]]


def test_a_fraction_of_the_steps_is_exact():
    """0.29 * 100 is 28.999999999999996 in binary."""
    for steps in (1, 7, 50, 100):
        for hundredths in range(100):
            wanted = hundredths * steps // 100
            assert stages(f"[a:b:{hundredths / 100}]", steps)[-1] == Stage(wanted, "b")


@settings(max_examples=60, deadline=None)
@given(NESTED, NESTED, st.integers(0, 12), st.integers(1, 10))
def test_stages_rise_differ_and_leave_no_scheduling(a, b, when, steps):
    found = stages(f"[({a}):({b}):{when}]", steps)
    firsts, texts = zip(*found, strict=True)
    assert firsts[0] == 0 and firsts[-1] < steps
    assert all(x < y for x, y in pairwise(firsts)) and all(x != y for x, y in pairwise(texts))
    assert all(stages(text, steps) == [Stage(0, text)] for text in texts)
    for text in texts:
        weighted(text)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes

BROKEN = {  # text -> what the error says
    "a (cat": r"'\(' at character 3, near 'a \(cat', has no '\)' after it: close it, or write \\\( for a literal",
    "a (b [c)": r"'\)' at character 8, near .* stands where the '\[' of character 6 expects its '\]': balance the",
    "(a (b) c": r"'\(' at character 1, near '\(a \(b\) c', has no '\)' after it",
    "smile :)": r"'\)' at character 8, near 'smile :\)', has no '\(' before it: .* or write \\\) for a literal bracket",
    "[a)": r"'\)' at character 3, near '\[a\)', stands where the '\[' of character 1 expects its '\]'",
    "a]\n" + "b" * 90: r"'\]' at character 2, near 'a\]\\nbbbbbbbbbbb', has no '\[' before it",
    r"(a\)": r"'\(' at character 1, near '\(a\\\)', has no '\)' after it",
}
BAD_WEIGHTS = ["101", "-100.5", "nan", "inf", "-Infinity", "1e2", "0,5", "1.2.3", "+-1", "9" * 400]
BAD_SWITCHES = ["1.5", "-1", "-0.5", "nan", "inf", "1e1", "0,5", "9" * 400 + ".5"]


def complaint(run) -> str:
    """The text of the ValueError that ``run`` raises, which is one line."""
    with pytest.raises(ValueError) as error:
        run()
    assert "\n" not in str(error.value) and len(str(error.value)) < 220
    return str(error.value)


@pytest.mark.parametrize("text", BROKEN)
def test_unbalanced_brackets_are_named_with_their_place(text):
    for run in (lambda: weighted(text), lambda: stages(text, 10), lambda: chunks(CLIP, text)):
        assert re.match(BROKEN[text], complaint(run))


@pytest.mark.parametrize("weight", BAD_WEIGHTS)
def test_a_weight_is_a_finite_number(weight):
    said = complaint(lambda: weighted(f"a (cat:{weight})"))
    assert said.startswith(f"the weight '{weight[:30]}' at character 7, near 'a (cat:")
    assert "must be a finite number between -100 and 100" in said


def test_a_product_of_weights_keeps_the_limits_of_one():
    said = complaint(lambda: weighted("a ((cat:50):3)"))
    assert said.startswith("the brackets around the text at character 5, near")
    assert "multiply to 150, but a weight must be between -100 and 100" in said
    assert weighted("(((cat:50):50):0.01)") == [[Part("cat", 25.0)]]
    assert "multiply to inf" in complaint(lambda: weighted("(" * 200 + "a" + ":100)" * 200))


@pytest.mark.parametrize("number", BAD_SWITCHES)
def test_a_switch_is_a_fraction_or_a_whole_number_of_steps(number):
    said = complaint(lambda: stages(f"a [b:c:{number}]", 10))
    assert said.startswith(f"the number '{number[:30]}' at character 7, near 'a [b:c:")
    assert "must be a fraction of the steps below 1 or a whole number of steps" in said


def test_other_mistakes_of_scheduling():
    assert "expects one or two texts before its number" in complaint(lambda: stages("[a:b:c:0.5]", 10))
    assert complaint(lambda: stages("a", 0)) == "a schedule needs at least 1 step, got 0"
    said = complaint(lambda: weighted("a [b:c:0.5]"))
    assert said.startswith("'[' at character 3, near 'a [b:c:0.5]', begins scheduling by step: take the stages")


def test_long_and_deep_texts_take_no_quadratic_time():
    assert weighted("([" * 2000 + "a" + "])" * 2000)[0][0].text == "a"
    assert len(weighted("a BREAK " * 10_000)) == 10_001
    assert len(stages("[a:b:0.5] " * 5_000, 1000)) == 2
    assert weighted("(a:" + "1" * 20_000 + "x)") == [[Part("a:" + "1" * 20_000 + "x", 1.1)]]
