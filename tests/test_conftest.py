import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

def test_that_runs():
    pass

@pytest.mark.skip(reason={reason!r})
def test_that_waits():
    pass
"""


def run(folder, reason, ci):
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(TESTS.format(reason=reason))
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
    return subprocess.run(command, cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True)


def test_a_test_that_was_left_out_is_named_with_its_reason(tmp_path):
    ran = run(tmp_path, "no browser here", ci="")
    assert "Left out: test_it.py::test_that_waits because: no browser here" in ran.stdout
    assert ran.returncode == 0


@pytest.mark.parametrize(("reason", "code"), [("no browser here", 1), ("only on Windows", 0)])
def test_on_ci_a_test_that_was_left_out_is_a_failure_unless_it_needs_another_system(tmp_path, reason, code):
    ran = run(tmp_path, reason, ci="true")
    assert (ran.returncode, "1 passed, 1 skipped" in ran.stdout) == (code, True)
