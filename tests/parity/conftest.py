"""What holds for every test in this folder: no network, which warnings are not ours, and when a skip is a failure.

The tests here need the ``oracle`` extra of pyproject.toml. Where it is missing, importing ``oracle`` skips the module
with the reason. With ``LDM_ORACLES=required`` in the environment, as in CI, every skip in this folder fails instead.
"""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the Rust threads and a later fork do not agree

ORACLES = "torch|torchvision|torchsde|torchdiffeq|diffusers|transformers|accelerate|k_diffusion|open_clip"


def required() -> bool:
    """Whether this run may not do without the oracles."""
    return os.environ.get("LDM_ORACLES") == "required"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Programs as users run them. Warnings are errors in this project, but not those of the oracles' own code."""
    item.add_marker(pytest.mark.optimised)
    item.add_marker(pytest.mark.filterwarnings(rf"ignore:::({ORACLES})(\.|$)"))


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure that keeps the reason."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"LDM_ORACLES=required, and this did not run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Modules that skip while they are imported."""
    report = yield
    if required():
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Tests that skip while they run."""
    report = yield
    if required():
        fail_if_skipped(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the figures that passed: every line in which a test here printed a relative error."""
    passed = [report for report in terminalreporter.getreports("passed") if "parity/" in report.nodeid]
    lines = [line for report in passed for line in report.capstdout.splitlines() if "relative error" in line]
    if lines:
        terminalreporter.section("against the oracles")
        terminalreporter.write_line("\n".join(lines))
