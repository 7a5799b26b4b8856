"""Hosts and servers as fixtures: everything below runs once for every ComfyUI found."""
import pytest
from host import harness, tiny

HOSTS = harness.find_hosts()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host" in metafunc.fixturenames:
        missing = pytest.param(None, marks=pytest.mark.skip(reason=harness.not_run()), id="none")
        metafunc.parametrize("host", [pytest.param(each, id=each.version) for each in HOSTS] or [missing],
                             scope="session", indirect=True)


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> harness.Host:
    return request.param


@pytest.fixture(scope="session")
def base(host: harness.Host, tmp_path_factory: pytest.TempPathFactory):
    """A folder with tiny models and the pack linked in, as a fresh installation would have."""
    folder = tmp_path_factory.mktemp(f"comfyui-{host.version}-")
    harness.link_pack(folder / "custom_nodes")
    tiny.write_models(folder / "models", host.path)
    return folder


@pytest.fixture(scope="session")
def server(host: harness.Host, base):
    """The host, started once and stopped at the end."""
    running = harness.Server(host, base)
    try:
        running.__enter__()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    yield running
    running.stop()
