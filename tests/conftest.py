"""What every test may use; and at the end of a run, which tests were left out and why."""

import os

import pytest

OTHER_SYSTEMS = ("only on Windows", "only on macOS", "only on Linux")  # reasons that no installation can mend


@pytest.fixture
def anyio_backend():
    return "asyncio"


def left_out(config):
    """`(test, reason)` of each skipped test."""
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return [(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")) for report in skipped]


def pytest_terminal_summary(terminalreporter, config):
    if found := left_out(config):
        terminalreporter.section("left out on this machine")
        for test, reason in found:
            terminalreporter.write_line(f"Left out: {test} because: {reason}")


def pytest_sessionfinish(session, exitstatus):
    """On a CI machine everything is installed, so there a test that was left out is a failure."""
    mendable = [test for test, reason in left_out(session.config) if not reason.startswith(OTHER_SYSTEMS)]
    if mendable and exitstatus == 0 and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
