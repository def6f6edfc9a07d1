"""What every test may use; and at the end of a run, which tests were left out and why."""

import os
from functools import partial

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("slow machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow machines")

OTHER_SYSTEMS = ("only on Windows", "only on macOS", "only on Linux")  # reasons that no installation can mend


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def figure(record_property):
    """For what a test has measured: `figure("front end gone, upstream left: p99 3 ms")` is shown after the run."""
    return partial(record_property, "figure")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that measure something can be asked for: -m "slow or figures"."""
    for item in items:
        if "figure" in getattr(item, "fixturenames", ()):
            item.add_marker("figures")


@pytest.fixture
async def anthropic():
    """A fake upstream, ready to queue replies for."""
    from tests.fakes import fake_anthropic

    async with fake_anthropic() as fake:
        yield fake


@pytest.fixture
async def proxy(tmp_path, anthropic):
    """The whole program in this process, before that upstream."""
    from tests.running import running

    async with running(tmp_path, anthropic.url) as made:
        yield made


@pytest.fixture
async def oauth():
    """A token endpoint."""
    from tests.fake_oauth import FakeOAuth

    async with FakeOAuth().serving() as oauth:
        yield oauth


@pytest.fixture
def clock():
    """A clock that the test moves."""
    from tests.pools import Clock

    return Clock()


@pytest.fixture
async def pool(tmp_path, oauth, clock):
    """The accounts on a folder of their own; nobody is signed in."""
    from tests.pools import make_pool, started

    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        yield pool


@pytest.fixture
async def tavern(tmp_path):
    """The pages alone, before real accounts, sign-ins and owner."""
    from tests.pages_app import running

    async with running(tmp_path / "data") as tavern:
        yield tavern


@pytest.fixture
async def browser(tavern):
    """The owner at those pages, by HTTP alone."""
    from tests.pages_app import Browser

    async with Browser(tavern) as browser:
        yield browser


@pytest.fixture
async def stranger(tavern):
    """Somebody without the owner's cookie."""
    from tests.pages_app import Browser

    async with Browser(tavern, owner=False) as browser:
        yield browser


@pytest.fixture
async def person(tavern):
    """The owner at those pages, in a real Chromium."""
    from tests.browsing import browsing

    async with browsing(tavern) as person:
        yield person


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots go."""
    from tests.browsing import picture_folder

    return picture_folder(tmp_path)


def left_out(config):
    """`(test, reason)` of each skipped test."""
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return [(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")) for report in skipped]


def figures(config):
    """`(test, figure)` of what was measured."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    reports = [report for kind in ("passed", "failed") for report in stats.get(kind, []) if report.when == "call"]
    return [
        (r.nodeid.rpartition("::")[2], said) for r in reports for name, said in r.user_properties if name == "figure"
    ]


def pytest_terminal_summary(terminalreporter, config):
    if found := figures(config):
        terminalreporter.section("figures")
        for test, said in found:
            terminalreporter.write_line(f"{said}  ({test})")
    if found := left_out(config):
        terminalreporter.section("left out on this machine")
        for test, reason in found:
            terminalreporter.write_line(f"Left out: {test} because: {reason}")


def pytest_sessionfinish(session, exitstatus):
    """On a CI machine everything is installed, so there a test that was left out is a failure."""
    mendable = [test for test, reason in left_out(session.config) if not reason.startswith(OTHER_SYSTEMS)]
    if mendable and exitstatus == 0 and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
