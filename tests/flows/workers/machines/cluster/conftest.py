"""One Ray cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.ray_cluster import Nodes, nodes


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head, and one more machine."""
    with nodes(tmp_path_factory.mktemp("ray")) as made:
        made.add()
        yield made
