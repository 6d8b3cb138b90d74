"""Where a run's numbers go besides its files: the sinks of `tracker.sinks`."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlcore.cluster import cleanup
from rlcore.config import TrackerConfig
from rlcore.errors import ConfigError
from rlcore.files import write_text

_FINISH_SECONDS = 60  # most that wandb may take to upload what is left


class Wandb:
    """Weights & Biases. WANDB_MODE=offline and disabled work without an account; a resumed run goes on in its own."""

    def __init__(self, run_dir: Path, cfg: TrackerConfig, config: DictConfig, step: int) -> None:
        import wandb

        identity = run_dir / "wandb_id"
        known = identity.read_bytes() if identity.exists() else b""
        if step <= 1 or re.fullmatch(rb"[0-9a-f]{12}", known) is None:  # torn: its run cannot be gone on with
            write_text(identity, uuid.uuid4().hex[:12])
        # wandb's own process outlives the workers, to send the last lines.
        marker = os.environ.pop(cleanup.VARIABLE, None)
        try:
            self._run = wandb.init(
                project=cfg.project,
                name=cfg.name or run_dir.resolve().name,
                dir=str(run_dir),
                id=identity.read_text(encoding="utf-8"),
                resume="allow",
                config=OmegaConf.to_container(config, throw_on_missing=False, enum_to_str=True),  # type: ignore[arg-type]
                settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS),
            )
        except wandb.Error as e:
            raise ConfigError(f"tracker.sinks: wandb does not start: {e}; WANDB_MODE=offline works without it") from e
        finally:
            if marker is not None:
                os.environ[cleanup.VARIABLE] = marker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


class TensorBoard:
    """Event files in RUN_DIR/tensorboard; what earlier attempts at `step` and later ones wrote is dropped."""

    def __init__(self, run_dir: Path, cfg: TrackerConfig, config: DictConfig, step: int) -> None:
        # TensorBoard looks for TensorFlow to say that it is not there.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)
        self._writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(config)}```", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        self._writer.close()


SINKS: dict[str, type[Wandb | TensorBoard]] = {"wandb": Wandb, "tensorboard": TensorBoard}
