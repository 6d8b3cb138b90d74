"""What is wrong with a checkpoint is found before anything is made of it, by name, and nothing whole is lost for it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlcore.cli import export as export_command
from rlcore.cli.resume import resume
from rlcore.compose.compose import compose
from rlcore.errors import CheckpointError, ConfigError
from rlcore.runs.checkpoint import Checkpoints, step_of
from rlcore.runs.export import export
from rlcore.runs.manifest import NAME, write_manifest
from rlcore.workers.shards import ShardWriter

WEIGHTS, ADAM = "model/model-00001-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"
INDEX = "model/model.safetensors.index.json"


def write(directory: Path) -> None:
    """Two shards of weights and of Adam's state, as a rank writes them."""
    for path, stem in ((directory / "model", "model"), (directory, "optimizer")):
        writer = ShardWriter(path, stem, shard_bytes=4000)
        for name in ("a", "b"):
            writer.add(name, torch.full((800,), 0.1))
        writer.add("count", torch.tensor([7]))
        writer.close()
    (directory / "model/config.json").write_text('{"torch_dtype": "float32"}')


def save(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    for step in steps:
        Checkpoints(run_dir, keep).save(step, write, {"data": {}})
    return run_dir / f"checkpoints/step_{steps[-1]:06d}"


def rewrite_manifest(at: Path) -> None:
    """As whoever changed the files on purpose would."""
    (at / NAME).unlink()
    write_manifest(at)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def outside_index(at: Path, to: str) -> None:
    save_file({"a": torch.ones(1)}, at.parents[1] / "evil.safetensors")
    (at / INDEX).write_text(json.dumps({"weight_map": {"a": to}}))
    rewrite_manifest(at)


def manifest_names(at: Path, name: str) -> None:
    from rlcore.runs.manifest import _digest

    manifest = json.loads((at / NAME).read_text())
    manifest.pop("sha256")
    manifest["files"][name] = {"bytes": 0, "sha256": ""}
    (at / NAME).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}))


def with_manifest(at: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((at / NAME).read_text())
    change(manifest)
    (at / NAME).write_text(json.dumps(manifest))


def linked(at: Path, name: str) -> None:
    """The same bytes, but elsewhere."""
    elsewhere = Path(f"{at}-elsewhere")
    (at / name).rename(elsewhere)
    (at / name).symlink_to(elsewhere)


FAULTS = {
    "a bit of a weight": (lambda at: flip_a_bit(at / WEIGHTS), f"{WEIGHTS}: its content is not what was saved"),
    "a bit of Adam's": (lambda at: flip_a_bit(at / ADAM), f"{ADAM}: its content"),
    "a bit of a config": (lambda at: flip_a_bit(at / "model/config.json"), "model/config.json: its content"),
    "a cut file": (lambda at: os.truncate(at / ADAM, 100), f"{ADAM}: 100 bytes, manifest.json says"),
    "a missing file": (lambda at: (at / WEIGHTS).unlink(), f"{WEIGHTS}: missing"),
    "state torn": (lambda at: (at / "state.json").write_text('{"st'), "state.json: 4 bytes"),
    "no manifest": (lambda at: (at / NAME).unlink(), f"{NAME}: missing"),
    "a torn manifest": (lambda at: os.truncate(at / NAME, 50), f"{NAME}: torn"),
    "an empty manifest": (lambda at: (at / NAME).write_text(""), f"{NAME}: torn"),
    "zeros for a manifest": (lambda at: (at / NAME).write_bytes(bytes(500)), f"{NAME}: torn"),
    "a list for a manifest": (lambda at: (at / NAME).write_text("[1]"), f"{NAME}: torn"),
    "sizes for a manifest": (lambda at: (at / NAME).write_text('{"state.json": 9}'), f"{NAME}: torn"),
    "nested beyond reading": (lambda at: (at / NAME).write_text("[" * 100_000), f"{NAME}: torn"),
    "another format": (lambda at: with_manifest(at, lambda m: m.update(format=2)), f"{NAME}: a manifest of another"),
    "a wrong hash": (
        lambda at: with_manifest(at, lambda m: m["files"][ADAM].update(sha256="0" * 64)),
        f"{NAME}: it has been changed",
    ),
    "a file left out": (lambda at: with_manifest(at, lambda m: m["files"].pop(ADAM)), f"{NAME}: it has been changed"),
    "one file too many": (lambda at: (at / "model/x.bin").write_text(""), f"model/x.bin: {NAME} does not list it"),
    "another's name": (lambda at: (at / "state.json").write_text('{"step": 5}'), "state.json: it is of step 5"),
    "state without a step": (lambda at: (at / "state.json").write_text("{}"), "state.json: missing, torn or without"),
    "names above": (lambda at: manifest_names(at, "../x"), f"{NAME}: it names '../x', which is outside"),
    "names from the root": (lambda at: manifest_names(at, "/etc/hosts"), f"{NAME}: it names '/etc/hosts'"),
    "a linked file": (lambda at: linked(at, WEIGHTS), f"{WEIGHTS}: a link"),
    "a linked directory": (lambda at: linked(at, "model"), "model: a link"),
    "a pipe": (lambda at: os.mkfifo(at / "model/pipe"), "model/pipe: a link or a special file"),
    "a linked checkpoint": (lambda at: linked(at.parent, at.name), "step_000009: a checkpoint is a directory"),
    "a file in its place": (
        lambda at: (shutil.rmtree(at), at.write_text("")),
        "step_000009: a checkpoint is a directory, this is a link or a file",
    ),
    "an empty directory": (lambda at: (shutil.rmtree(at), at.mkdir()), f"{NAME}: missing"),
    "an index above": (lambda at: outside_index(at, "../../../evil.safetensors"), f"{INDEX}: it names '../../../evil"),
    "an index from the root": (
        lambda at: outside_index(at, str(at.parents[1] / "evil.safetensors")),
        f"{INDEX}: it names '/",
    ),
    "an index elsewhere inside": (lambda at: outside_index(at, f"../{ADAM}"), f"{INDEX}: it names '../opt"),
    "an index of nothing": (lambda at: outside_index(at, "gone.safetensors"), f"{INDEX}: it names 'gone"),
}
_REHASHED = ("another's name", "state without a step")


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_named_and_an_older_one_can_be_taken(tmp_path: Path, fault: str) -> None:
    damage, says = FAULTS[fault]
    at = save(tmp_path, 3, 6, 9)
    damage(at)
    if fault in _REHASHED:
        rewrite_manifest(at)
    for use in (
        lambda: Checkpoints(tmp_path, keep=2).latest(),
        lambda: export(tmp_path, tmp_path / "out", "float32"),
        lambda: export(tmp_path, tmp_path / "out", "float32", step=9),
    ):
        with pytest.raises(CheckpointError) as error:
            use()
        assert says in str(error.value) and f"`rlcore resume {tmp_path} step=6`" in str(error.value)
        assert "whole: step 3, 6;" in str(error.value) and not (tmp_path / "out").exists()
    older = Checkpoints(tmp_path, keep=2).latest(6)
    assert older is not None and older.name == "step_000006"
    export(tmp_path, tmp_path / "out", "float32", step=6)
    assert load_file(tmp_path / "out" / Path(WEIGHTS).name).keys() == {"a"}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_whole_is_deleted_or_passed_over_for_the_sake_of_what_is_damaged(tmp_path: Path, fault: str) -> None:
    at = save(tmp_path, 3, 6, 9)
    FAULTS[fault][0](at)
    if fault in _REHASHED:
        rewrite_manifest(at)
    save(tmp_path, 12, keep=2)
    there = [step_of(p) for p in Checkpoints(tmp_path, 2).all()]
    assert {6, 12} <= set(there) and 3 not in there


def test_the_best_is_never_a_damaged_one(tmp_path: Path) -> None:
    for step, value in ((1, 0.5), (2, 0.9)):
        Checkpoints(tmp_path, 9, "accuracy").save(step, write, {}, value)
    flip_a_bit(tmp_path / "checkpoints/step_000002" / WEIGHTS)
    here = Checkpoints(tmp_path, 1, "accuracy")
    assert here.best() == (1, 0.5) and here.is_better(0.6)
    here.save(3, write, {}, 0.1)
    assert [step_of(p) for p in here.all()] == [1, 3]


def test_what_a_killed_save_left_is_told_and_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3)
    killed = tmp_path / "checkpoints/.step_000006.partial"
    killed.mkdir()
    here = Checkpoints(tmp_path, 2)
    assert here.left_by_a_kill() == [killed] and here.latest() == tmp_path / "checkpoints/step_000003"
    here.save(9, write, {})
    assert here.left_by_a_kill() == []


def test_what_is_later_is_set_aside_and_never_counts_again(tmp_path: Path) -> None:
    save(tmp_path, 3, 6, 9)
    here = Checkpoints(tmp_path, 1)
    aside = tmp_path / "checkpoints/set_aside"
    assert here.set_aside_after(3) == [aside / "step_000006", aside / "step_000009"]
    save(tmp_path, 6)
    assert here.set_aside_after(3) == [aside / "step_000006-2"]
    assert here.latest() == tmp_path / "checkpoints/step_000003"
    here.save(4, write, {})
    assert len(list(aside.iterdir())) == 3 and [step_of(p) for p in here.all()] == [4]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda model: [shard.unlink() for shard in model.glob("model*")], "no weights"),
        (lambda model: (model / Path(INDEX).name).write_text('{"weight_map": {}}'), "weights that .* does not name"),
        (lambda model: shutil.copy(model / "model-00002-of-00002.safetensors", model / "more.safetensors"), "more.saf"),
        (
            lambda model: (model / Path(INDEX).name).write_text(
                '{"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}'
            ),
            "model-00002-of-00002.safetensors: b is in it or in model.safetensors.index.json, not in both",
        ),
    ],
)
def test_nothing_is_exported_without_its_weights(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    at = save(tmp_path, 3)
    spoil(at / "model")
    rewrite_manifest(at)
    with pytest.raises(CheckpointError, match=says):
        export(tmp_path, tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


def test_an_export_has_every_tensor_in_its_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 3, 6)
    assert export_command.export([str(tmp_path), "--dtype", "bfloat16", "--step", "3"]) == 0
    assert f"exported step 3 (3 tensors, bfloat16) to {tmp_path / 'export'}" in capsys.readouterr().out
    index = json.loads((tmp_path / "export" / Path(INDEX).name).read_text())
    assert index["metadata"] == {"total_size": 2 * 800 * 2 + 8}
    found = {}
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "export" / shard, framework="pt") as opened:
            found[name] = opened.get_tensor(name)
    assert {name: (t.dtype, t[0].item()) for name, t in found.items()} == {
        "a": (torch.bfloat16, torch.tensor(0.1).bfloat16().item()),
        "b": (torch.bfloat16, torch.tensor(0.1).bfloat16().item()),
        "count": (torch.int64, 7),
    }


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """A run directory with three checkpoints, as `rlcore resume` finds it."""
    run_dir = tmp_path / "a run"
    save(run_dir, 3, 6, 9)
    composed, _ = compose("demo", ["algorithm=dapo"])
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(composed.config))
    return run_dir


def test_resume_refuses_damage_before_anything_starts(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_bit(a_run / "checkpoints/step_000009" / ADAM)
    with pytest.raises(CheckpointError, match=re.escape(f"{ADAM}: its content")):
        resume([str(a_run)])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; there: step_000003, step_000006, step_000009"):
        resume([str(a_run), "step=7"])
    for wrong in ("step=", "step=six", "step=1,2", "step=-3"):
        with pytest.raises(ConfigError, match="must be the step of a checkpoint"):
            resume([str(a_run), wrong])
    out = capsys.readouterr().out
    assert "Ray: starting" not in out and "the run can go on" not in out


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "holds no run: there is no"),
        (lambda path: path.write_text(""), "config.yaml lacks .*: it is torn or of another version"),
        (lambda path: path.write_bytes(bytes(4000)), "config.yaml: cannot be read"),
        (lambda path: path.write_bytes(b"steps: \xff\xfe"), "config.yaml: cannot be read"),
        (lambda path: path.write_text("a: [1, 2"), "config.yaml: cannot be read"),
        (lambda path: path.write_text("- 1"), "config.yaml: .*a mapping"),
        (
            lambda path: path.write_text(path.read_text()[: path.read_text().index("\nkl:") + 1]),
            "config.yaml lacks .*kl.coef",
        ),
        (lambda path: path.write_text(path.read_text().replace("steps:", "step:")), "step .*is not a key"),
    ],
)
def test_resume_refuses_a_torn_config(a_run: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(a_run / "config.yaml")
    with pytest.raises(ConfigError, match=says):
        resume([str(a_run)])


def test_what_a_config_lacks_can_be_said(a_run: Path) -> None:
    from rlcore.compose.compose import compose_run

    path = a_run / "config.yaml"
    path.write_text(re.sub(r"\nkeep_checkpoints: .*\n", "\n", path.read_text()))
    with pytest.raises(ConfigError, match="lacks keep_checkpoints"):
        compose_run(a_run, [])
    assert compose_run(a_run, ["keep_checkpoints=5"]).config.keep_checkpoints == 5
