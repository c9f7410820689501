"""What makes the tests of faults long, and what several of them begin with."""

from pathlib import Path
from typing import Any

import pytest

from .scene import Scene, make_scene


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fault-minutes"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def minutes(request: pytest.FixtureRequest) -> float:
    """For how long the tests may look for faults; 0 in CI."""
    return float(request.config.getoption("--fault-minutes"))


@pytest.fixture(scope="session")
def fault_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-seed"))


@pytest.fixture(scope="session")
def undisturbed(
    tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scene, dict[str, Any]]:
    """A scene in which nothing went wrong, and what it left behind."""
    scene = make_scene(tiny_model, tiny_collection, tmp_path_factory.mktemp("undisturbed") / "scene")
    return scene, scene.undisturbed()
