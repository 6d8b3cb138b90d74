"""A command that starts a local Ray, shows what its workers see, waits for a line, and ends Ray again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlcore.surroundings import settle

if __name__ == "__main__":
    settle()  # first, as a command does

from rlcore.cli.shell import guarded  # noqa: E402
from rlcore.config import Config  # noqa: E402


class Looks:
    def look(self) -> dict[str, str]:
        import random

        import datasets

        import rewards
        import rollout

        found = {module.__name__: str(module.__file__) for module in (random, datasets, rewards, rollout)}
        return found


class Fails(Looks):
    def __init__(self) -> None:
        raise KeyError("a key of its own")


def work() -> int:
    from rlcore.cluster.deadlines import Watch, Worker
    from rlcore.cluster.placement import Cluster
    from rlcore.errors import WorkerError

    cfg, watch = Config(), Watch()
    cfg.ray.object_store_mib = 80
    print("STARTING", flush=True)
    with Cluster(
        cfg.ray, cfg.placement, cfg.deadline, {"actor": 1, "rollout": 1}, watch, False, Path("logs")
    ) as cluster:
        import ray

        def created(role: str, cls: type) -> Worker:
            worker = Worker(role, 0, ray.remote(cls).options(**cluster.options(role, 0)).remote())
            watch.workers.append(worker)
            return worker

        looks = created("rollout", Looks)
        assert cluster.local is not None
        seen = {"ray": str(cluster.local.folder.path)} | watch.gather(
            [looks], [looks.handle.look.remote()], "look", 60
        )[0]
        fails = created("actor", Fails)
        try:
            watch.gather([fails], [fails.handle.look.remote()], "look", 60)
        except WorkerError as e:
            seen["died"] = str(e)
        print(json.dumps(seen), flush=True)
        sys.stdin.readline()
        print("ENDING", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(work))
