"""What every test may count on: offline, one thread, fixed seeds, a cache of its own, skips that say why."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

# Before torch and transformers are imported, here or in a child process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["DEEPMLF_DTYPE"] = "float32"  # bases whose dtype no test names: much is compared exactly

import hypothesis
import pytest

from deepmlf_llm.paths import CACHE_VARIABLE, base_models_dir, downloads_dir
from tests import devices

REPOSITORY = Path(__file__).resolve().parent.parent

# Two workers on two cores: the time of one example says nothing. Derandomised: a red run is red again.
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("repository")


# A shell starts what is in its background with SIGINT ignored, and nohup with SIGHUP; tests of signals need them, here
# and in children.
for _number, _action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


def pytest_configure() -> None:
    """A device that is not there ends the session before it begins."""
    if reason := devices.missing(devices.chosen()):
        pytest.exit(reason, returncode=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes begin first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays to the end: the garbage collector need not look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if item.get_closest_marker("cpu") and devices.chosen() != "cpu":
        pytest.skip("about what a CPU does")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A signal that reached pytest while a run listened is for pytest: no further test begins."""
    if call.excinfo is not None and call.excinfo.typename == "RunStopped":
        item.session.shouldstop = f"a signal came during {item.nodeid}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped where it is not there."""
    directory = REPOSITORY.parent / "shared"
    if not directory.is_dir():
        pytest.skip("needs the reference data, the folder ../shared beside the checkout")
    return directory


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for this test session, shared by its workers: the user's own is read (downloads and converted base
    models, by link), never written."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "deepmlf_cache"
    for source in (downloads_dir(), base_models_dir()):
        target = cache / source.name
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir() if source.is_dir() else ():
            _link(entry, target / entry.name)
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(cache)
    yield cache
    if before is None:
        del os.environ[CACHE_VARIABLE]
    else:
        os.environ[CACHE_VARIABLE] = before


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except FileExistsError:
        return  # another worker was first
    except OSError as error:
        warnings.warn(f"the tests make {source.name} again, because it cannot be linked: {error}", stacklevel=1)


@pytest.fixture(scope="module", autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of this session's models; see :mod:`tests.devices`."""
    with _built_for(request.path):
        yield devices.chosen()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """What a module of tests makes as it is imported lies where its tests put theirs."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    with _built_for(collector.path):
        return (yield)


def _built_for(path: Path) -> AbstractContextManager[None]:
    if devices.chosen() == "cpu":
        return nullcontext()
    place = path.relative_to(REPOSITORY / "tests").parts[0].removesuffix(".py")
    return devices.built_on(devices.chosen(), place in devices.BY_HAND)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
