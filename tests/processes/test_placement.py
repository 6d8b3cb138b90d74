"""What a user sees when Ray itself does not start."""

from __future__ import annotations

import time

import pytest
import ray

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.config import Config
from rlcore.errors import WorkerError


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # of its guard while it closes
def test_a_ray_that_does_not_start_is_named_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(*args: object, **settings: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - Ray's own words and class

    monkeypatch.setattr(ray, "init", times_out)
    cfg = Config()
    with pytest.raises(WorkerError, match=r"Ray does not start .*load average \d+.*timed out during startup"):
        Cluster(cfg.ray, cfg.placement, cfg.deadline, {"actor": 1}, Watch())
    time.sleep(1)
