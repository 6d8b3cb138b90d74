"""Every stage of given texts goes through the one loop: what it logs and saves, and that a killed one goes on."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcore.compose import stages
from rlcore.compose.stages import STAGES, Stage, stage_of
from rlcore.config import fields_read, forget_reads
from rlcore.errors import CheckpointError, ConfigError, DataError
from rlcore.runs.checkpoint import Checkpoints
from rlcore.runs.tracker import Tracker
from tests.close import assert_close
from tests.loop.fakes import LETTERS, PROMPTS
from tests.loop.toy_stages import ToySupervised, ToyWriter, config, run

ROOT = Path(__file__).parents[2]
LOSSES = ["sft", "dpo"]


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time", "perf/"))} for line in found]


def events(run_dir: Path) -> list[str]:
    return [line["event"] for line in lines(run_dir / "events.jsonl")]


def dying(patch: pytest.MonkeyPatch, step: int) -> None:
    """Killed where this step would be logged."""
    log = Tracker.log

    def log_or_die(self: Tracker, at: int, metrics: Any) -> None:
        if at == step:
            raise KeyboardInterrupt
        log(self, at, metrics)

    patch.setattr(Tracker, "log", log_or_die)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_and_leaves_what_every_run_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:  # fmt: skip
    finished = run(config(tmp_path, loss, steps=30, actor__learning_rate=0.3), monkeypatch)
    metrics = lines(tmp_path / "metrics.jsonl")
    held_out = [(line["step"], line["eval/toys/loss"]) for line in metrics if "eval/toys/loss" in line]
    assert [step for step, _ in held_out] == [0, *range(3, 31, 3)] and held_out[-1][1] < 0.5 * held_out[0][1]
    assert not [name for line in metrics for name in line if name.startswith(("sync/", "correction/", "actor/kl"))]
    assert {"actor/loss", "actor/grad_norm", "actor/lr", "actor/skipped_updates"} <= metrics[1].keys()
    raw = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[3])
    assert {
        "time/rollout_s",
        "time/credit_s",
        "time/update_s",
        "time/held_out_s",
        "perf/tokens_per_second",
    } <= raw.keys()
    seen = events(tmp_path)
    assert seen[:2] == ["data", "workers"] and seen[-1] == "closed"
    assert seen.count("evaluated") == len(held_out) and seen.count("saved") == 15
    table = load_file(finished.exported / "model.safetensors")["table"]
    assert table.equal(load_file(tmp_path / "checkpoints/step_000030/model/model.safetensors")["table"])


def test_a_file_beside_the_weights_that_fails_is_told_and_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = ToyWriter.save
    monkeypatch.setattr(ToyWriter, "save", lambda self, at: [save(self, at), "generation_config.json: why"][1:])
    assert run(config(tmp_path, "sft", steps=1), monkeypatch).exported.is_dir()
    told = [line for line in lines(tmp_path / "events.jsonl") if line["event"] == "not_saved"]
    assert told == [{"event": "not_saved", "message": "actor: generation_config.json: why", "step": 1}]
    assert "not_saved: actor: generation_config.json: why" in capsys.readouterr().out


def test_dpo_tells_margins_and_how_many_pairs_are_ranked_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(tmp_path, "dpo", steps=20, actor__learning_rate=0.3), monkeypatch)
    first, *_, last = lines(tmp_path / "metrics.jsonl")
    assert first["eval/toys/margin"] == 0 and first["eval/toys/ranked_right"] == 0.5
    assert last["eval/toys/margin"] > 0.1 and last["eval/toys/ranked_right"] == 1.0
    assert last["actor/margin"] == pytest.approx(last["actor/chosen_reward"] - last["actor/rejected_reward"], rel=1e-4)


def test_without_held_out_rows_no_knob_of_evaluations_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, "sft", data__eval=[])
    forget_reads()
    run(cfg, monkeypatch)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "EvalConfig.every_steps" not in fields_read() and "ActorConfig.learning_rate" in fields_read()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dies_at", [0, 1, 2, 3, 4, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, dies_at: int
) -> None:  # fmt: skip
    every = 2 if loss == "sft" else 3  # evaluations at the steps of checkpoints, and at others
    run(config(tmp_path / "whole", loss, eval__every_steps=every), monkeypatch)
    with monkeypatch.context() as each, pytest.raises(KeyboardInterrupt):
        dying(each, dies_at)
        run(config(tmp_path / "cut", loss, eval__every_steps=every), monkeypatch)
    assert events(tmp_path / "cut")[-1] == "closed"
    left = [line["step"] for line in lines(tmp_path / "cut/metrics.jsonl")]
    assert left == list(range(dies_at))
    run(config(tmp_path / "cut", loss, eval__every_steps=every), monkeypatch)
    assert lines(tmp_path / "cut/metrics.jsonl") == lines(tmp_path / "whole/metrics.jsonl")
    assert ("resumed" in events(tmp_path / "cut")) == (dies_at > 2)  # the first checkpoint is step 2's
    state, export = "checkpoints/step_000005/state.json", "export/model.safetensors"
    assert (tmp_path / "cut" / state).read_text() == (tmp_path / "whole" / state).read_text()
    assert (tmp_path / "cut" / export).read_bytes() == (tmp_path / "whole" / export).read_bytes()


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_an_older_one_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, "sft")
    run(cfg, monkeypatch)
    whole, newest = lines(tmp_path / "metrics.jsonl"), tmp_path / "checkpoints/step_000005"
    exported = (tmp_path / "export/model.safetensors").read_bytes()
    table = bytearray((newest / "model/model.safetensors").read_bytes())
    table[-1] ^= 1
    (newest / "model/model.safetensors").write_bytes(table)
    with pytest.raises(CheckpointError, match=rf"model.safetensors: its content.*rlcore resume {tmp_path} step=4"):
        run(cfg, monkeypatch)
    with pytest.raises(ConfigError, match="steps is 3, and .*step_000004 is of step 4"):
        run(config(tmp_path, "sft", steps=3), monkeypatch, step=4)
    run(cfg, monkeypatch, step=4)
    assert lines(tmp_path / "metrics.jsonl") == whole
    assert (tmp_path / "export/model.safetensors").read_bytes() == exported
    assert [path.name for path in (tmp_path / "checkpoints/set_aside").iterdir()] == ["step_000005"]
    (aside,) = (e for e in lines(tmp_path / "events.jsonl") if e["event"] == "set_aside")
    assert aside["checkpoints"] == [str(tmp_path / "checkpoints/set_aside/step_000005")]
    assert [path.name for path in Checkpoints(tmp_path, 2).all()] == ["step_000004", "step_000005"]


class Spoiled(ToySupervised):
    """The rows of one source have changed, as its file may have; their number has not."""

    spoiled = ""

    def read(self, sources: Any) -> Any:
        rows = super().read(sources)
        if sources == [self.spoiled]:
            rows.content = dict.fromkeys(sources, "other rows")
        return rows


@pytest.mark.parametrize(
    ("spoiled", "complaint"),
    [
        ("toys", r"toys: not the rows that eval/toys/\.\.\. was of when the run began"),
        ("toy", r"toy: not the rows that the run began with; give it the same, or start a new run from its model"),
    ],
)
def test_a_run_whose_files_have_changed_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str, complaint: str
) -> None:
    """Which is said before anything is started."""
    run(config(tmp_path, "sft", steps=2), monkeypatch)
    monkeypatch.setattr(Spoiled, "spoiled", spoiled)
    monkeypatch.setattr(Spoiled, "start", lambda *args: pytest.fail("something was started"))
    with pytest.raises(DataError, match=complaint):
        run(config(tmp_path, "sft", steps=4), monkeypatch, made_by=f"{__name__}.Spoiled")


def test_nothing_stays_of_an_attempt_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it there while the first step of the next one is under way."""
    for dies_at, left in ((2, [0, 1]), (0, [])):
        with monkeypatch.context() as each, pytest.raises(KeyboardInterrupt):
            dying(each, dies_at)
            run(config(tmp_path, "sft"), monkeypatch)
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == left


def test_the_best_checkpoint_by_an_eval_number_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved when it is found, though no step is due, and not deleted by newer ones."""
    cfg = config(tmp_path, "sft", steps=12, save_every_steps=0, keep_checkpoints=1, eval__every_steps=1)
    cfg.keep_best, cfg.actor.learning_rate, cfg.actor.schedule = (
        "eval/toys/loss",
        3.0,
        type(cfg.actor.schedule)("constant"),
    )
    run(cfg, monkeypatch)
    losses = {line["step"]: line["eval/toys/loss"] for line in lines(tmp_path / "metrics.jsonl")}
    del losses[0]
    best = min(losses, key=losses.__getitem__)
    kept = Checkpoints(tmp_path, 1, cfg.keep_best)
    assert kept.best() == (best, losses[best])
    assert [path.name for path in kept.all()] == sorted({f"step_{best:06d}", "step_000012"})


def test_keep_best_that_no_evaluation_has_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match="keep_best: the evaluation has no eval/toys/accuracy; it has eval/toys/loss"):
        run(config(tmp_path, "sft", keep_best="eval/toys/accuracy"), monkeypatch)
    assert not (tmp_path / "checkpoints").exists()


def test_keys_that_nothing_read_are_an_event_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = run(config(tmp_path, "sft"), monkeypatch, unread=lambda by_workers: {"a.b": "command line"})
    assert finished.unread == {"a.b": "command line"} and (tmp_path / "export").is_dir()
    assert lines(tmp_path / "events.jsonl")[-2:] == [
        {"event": "unread", "keys": {"a.b": "command line"}}, {"event": "closed", "status": "done"},
    ]  # fmt: skip


@pytest.mark.parametrize("then", [{"prompts_per_step": 2}, {"prompts_per_step": 8}, {"steps": 9}])
def test_a_dpo_run_that_goes_on_with_more_rows_has_their_reference_from_its_first_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, object]
) -> None:  # fmt: skip
    """The rows of the steps to come, whatever was taken before, under the weights of step 0."""
    run(config(tmp_path / "run", "dpo", steps=2, prompts_per_step=3), monkeypatch)
    first = load_file(tmp_path / "run/reference_logp.safetensors")
    run(config(tmp_path / "run", "dpo", **{"steps": 6, "prompts_per_step": 3, **then}), monkeypatch)
    column = load_file(tmp_path / "run/reference_logp.safetensors")
    assert len(column) == 2 * PROMPTS > 0 and column.keys() >= first.keys()
    for logp in column.values():  # of a table of zeros
        assert_close(logp[-1], torch.tensor(-math.log(LETTERS)), 10, "logp")
    assert lines(tmp_path / "run/metrics.jsonl")[-1]["step"] == then.get("steps", 6)


def test_a_dpo_run_that_left_no_checkpoint_leaves_no_reference_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with monkeypatch.context() as each, pytest.raises(KeyboardInterrupt):
        dying(each, 1)
        run(config(tmp_path, "dpo"), monkeypatch)
    file = tmp_path / "reference_logp.safetensors"
    foreign = {name: logp * (1.0 + i) for i, (name, logp) in enumerate(load_file(file).items())}
    save_file(foreign, file, metadata={"model.path": "toy", "model.dtype": "auto"})
    run(config(tmp_path, "dpo", steps=1), monkeypatch)
    assert lines(tmp_path / "metrics.jsonl")[0]["eval/toys/margin"] == 0


# -- adding a stage: a line in stages.py, and one file


class Mine(ToySupervised):
    """A stage of one's own: it stops where its rows are too few."""

    def __init__(self, cfg: Any, say: Any) -> None:
        super().__init__(cfg, say)
        if cfg.prompts_per_step > len(self.rows):
            raise DataError("too few")


def test_a_new_stage_is_a_line_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's checks, the names of losses, resume and the loop know it by the line alone."""
    from rlcore.compose.check import check
    from rlcore.compose.function_names import wrong_name

    line = Stage("mine", "my own", "my_loss", f"{__name__}.Mine", "never", needs={"kl.coef": 0}, unread=("advantage.",))
    monkeypatch.setitem(stages.STAGES, "mine", line)
    assert stage_of("my_loss") is line and wrong_name("loss.name", "my_loss") == []
    cfg = config(tmp_path / "a", "my_loss", kl__coef=0.1)
    assert any("kl.coef is 0.1: rlcore mine needs kl.coef=0" in error for error in check(cfg))
    assert line.why_unread("advantage.name", cfg) == "nothing reads it in `rlcore mine`; remove it"
    monkeypatch.setattr("rlcore.algo.LOSSES", {"my_loss": "rlcore.algo.loss.sft"})
    monkeypatch.setattr("rlcore.algo.loss.LOSSES", {"my_loss": "rlcore.algo.loss.sft"})
    monkeypatch.setattr("rlcore.algo.objective.LOSSES", {"my_loss": "rlcore.algo.loss.sft"})
    run(config(tmp_path / "b", "my_loss", steps=2), monkeypatch, made_by=line.made_by)
    assert [row["step"] for row in lines(tmp_path / "b/metrics.jsonl")] == [0, 1, 2]


def test_no_branch_asks_which_stage_it_is() -> None:
    """A stage's class is named in stages.py and the files of stages only; nothing compares with its command or loss."""
    files = {ROOT / (stage.made_by.rpartition(".")[0].replace(".", "/") + ".py") for stage in STAGES.values()}
    assert all(file.is_file() for file in files)
    others = set((ROOT / "rlcore").rglob("*.py")) - files - {ROOT / "rlcore/compose/stages.py"}
    names = "|".join(stage.made_by.rpartition(".")[2] for stage in STAGES.values())
    words = "|".join({stage.loss or "train" for stage in STAGES.values()} | STAGES.keys())
    asks = re.compile(rf"\b({names})\b|[!=]= \"({words})\"|in \(\"({words})\"")
    assert [(path.name, found.group()) for path in sorted(others) if (found := asks.search(path.read_text()))] == []


def test_a_knob_that_cannot_count_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step is always evaluated and saved, however often that is asked for: the end of the run says so."""
    one, two = config(tmp_path / "one", "sft", steps=1), config(tmp_path / "two", "sft", steps=2)
    forget_reads()
    run(one, monkeypatch)
    assert not fields_read() & {"Config.save_every_steps", "EvalConfig.every_steps"}
    run(two, monkeypatch)
    assert fields_read() >= {"Config.save_every_steps", "EvalConfig.every_steps"}
