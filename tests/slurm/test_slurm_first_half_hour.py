"""The first half hour of somebody on a cluster without a network, as a session beside this file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import cluster, site, why_not
from tests.support.sessions import type_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def test_a_user_of_a_cluster_without_a_network(tmp_path: Path) -> None:
    with cluster(tmp_path / "slurm") as slurm:
        desk = tmp_path / "desk"
        desk.mkdir()
        site(slurm.root).rename(desk / "site.yaml")
        type_in(Path(__file__).parent / "cluster.txt", desk, **slurm.environment)
