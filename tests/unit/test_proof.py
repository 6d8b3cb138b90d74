"""What is known before Ray starts: a run's models go with their tokenizers, and what it learns can be saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlcore.config import Config, ModelConfig
from rlcore.errors import ConfigError
from rlcore.models import save
from rlcore.models.load import load_path, load_tokenizer, load_tokenizer_path, proved
from rlcore.models.save import prove_saved, require_space, save_beside
from rlcore.models.tokens import require_own_tokens, require_rows, require_same_tokens
from rlcore.records import Batch
from rlcore.train import proof
from rlcore.train.dpo import DirectPreference
from rlcore.train.prepare import with_directory
from rlcore.train.reinforcement import Reinforcement
from rlcore.train.reward_model import RewardModelling
from rlcore.train.supervised import Supervised
from rlcore.workers.critic_rank import CriticRank
from rlcore.workers.shards import ShardWriter
from tests.tiny import give_head, make_tiny_model
from tests.unit.test_model import FAMILIES
from tests.unit.test_whole_checkpoints import small


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def config(tiny: Path, run_dir: Path) -> Config:
    cfg = Config(run_dir=str(run_dir))
    cfg.model.path, cfg.steps = str(tiny), 2
    return cfg


def with_json(tiny: Path, out: Path, file: str, change: Mapping[str, Any]) -> Path:
    """A copy of a model, with other values in one of its JSON files."""
    shutil.copytree(tiny, out)
    said = json.loads((out / file).read_text()) | change
    (out / file).write_text(json.dumps(said))
    return out


def with_more_tokens(tiny: Path, out: Path, tokens: list[str], special: bool = False) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(tokens, special_tokens=special)
    tokenizer.save_pretrained(out)
    return out


# -- what a run saves


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_beside_the_weights_comes_back(tmp_path: Path, tied: bool) -> None:
    """Sampling settings that transformers refuses to save are kept as they are, and the tie is the model's."""
    tiny = make_tiny_model(tmp_path / "made", tied=tied)
    path = with_json(tiny, tmp_path / "model", "generation_config.json", {"temperature": 0.6, "top_p": 0.95})
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig.from_pretrained(path).save_pretrained(tmp_path / "refused")
    tokenizer = load_tokenizer_path(str(path), "model.path")
    prove_saved(proved(str(path), "model.path"), path, tokenizer, tmp_path)
    model, out = load_path(str(path), torch.float32), tmp_path / "saved"
    writer = ShardWriter(out, "model")
    for name, p in model.named_parameters():
        writer.add(name, p)
    writer.close()
    assert save_beside(out, model, tokenizer) == []
    again = AutoModelForCausalLM.from_pretrained(out)
    assert again.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in dict(again.named_parameters())) is not tied
    assert again.generation_config.temperature == 0.6 and again.generation_config.top_p == 0.95
    assert not again.generation_config.do_sample
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    proved(str(out), "model.path")


@pytest.mark.parametrize("family", [family for family, _ in FAMILIES])
def test_every_family_can_be_saved(tiny: Path, family: str, tmp_path: Path) -> None:
    """Names, shapes and configuration; without memory for a weight, and leaving nothing behind."""
    (tmp_path / "run").mkdir()
    small(family).save_pretrained(tmp_path / "model")
    model, tokenizer = proved(str(tmp_path / "model"), "model.path"), load_tokenizer_path(str(tiny), "model.path")
    prove_saved(model, tmp_path / "model", tokenizer, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not a valid JSON"), ('{"max_new_tokens": 0}', "max_new_tokens"), ("[]", "not a mapping")],
)
def test_a_generation_config_that_does_not_load_is_named(tiny: Path, tmp_path: Path, text: str, why: str) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "model"))
    (path / "generation_config.json").write_text(text)
    model, tokenizer = proved(str(path), "model.path"), load_tokenizer_path(str(path), "model.path")
    with pytest.raises(ConfigError, match=f"model.path: .*generation_config.json: .*{why}"):
        prove_saved(model, path, tokenizer, tmp_path)


def test_a_tokenizer_that_saves_as_another_one_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = proved(str(tiny), "model.path"), load_tokenizer_path(str(tiny), "model.path")
    other = load_tokenizer_path(str(with_more_tokens(tiny, tmp_path / "other", ["more"])), "model.path")
    monkeypatch.setattr(tokenizer, "save_pretrained", other.save_pretrained)
    with pytest.raises(ConfigError, match="model.tokenizer: .* has another get_vocab"):
        prove_saved(model, tiny, tokenizer, tmp_path)
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda path: 1 / 0)
    with pytest.raises(ConfigError, match="could not be saved after training: the tokenizer: division by zero"):
        prove_saved(model, tiny, tokenizer, tmp_path)


def test_a_file_that_fails_when_it_is_saved_loses_no_other(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_path(str(tiny), torch.float32), load_tokenizer_path(str(tiny), "model.path")
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda path: 1 / 0)
    monkeypatch.setattr(GenerationConfig, "to_json_file", lambda *args, **kwargs: 1 / 0)
    failed = save_beside(tmp_path, model, tokenizer)
    assert failed == ["generation_config.json: division by zero", "the tokenizer: division by zero"]
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == 128


def test_a_run_directory_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = load_tokenizer_path(str(tiny), "model.path")
    with pytest.raises(ConfigError, match="run_dir: .*file cannot be written"):
        prove_saved(proved(str(tiny), "model.path"), tiny, tokenizer, tmp_path / "file")


# -- room on the disk


def test_a_disk_without_room_for_the_checkpoints_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = lambda gib: monkeypatch.setattr(save.shutil, "disk_usage", lambda at: SimpleNamespace(free=gib * 2**30))  # noqa: E731
    free(28)
    require_space(tmp_path, 12 << 30, 4 << 30, 2, "why")
    free(27.9)
    with pytest.raises(ConfigError, match="27.9 GiB free, and the run needs 28 GiB: 2 checkpoints of 12 GiB.*of 4 GiB"):
        require_space(tmp_path, 12 << 30, 4 << 30, 2, "why")


@pytest.mark.parametrize(
    ("changes", "there", "copies"),
    [
        ({}, 0, 1),  # after the last step only
        ({"save_every_steps": 1}, 0, 3),  # two are kept, and one is written
        ({"save_every_steps": 1}, 2, 1),
        ({"save_every_steps": 5}, 0, 2),
        ({"save_every_steps": 1, "keep_checkpoints": 1, "keep_best": "eval/a/accuracy"}, 0, 3),
        ({"save_every_steps": 1}, 5, 1),
    ],
)
def test_room_is_for_the_checkpoints_that_are_there_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], there: int, copies: int
) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(save, "require_space", lambda at, *sizes: asked.append(sizes[:3]))
    cfg = Config(run_dir=str(tmp_path))
    cfg.steps = 10
    for name, value in changes.items():
        setattr(cfg, name, value)
    for i in range(there):
        (tmp_path / "checkpoints" / f"step_{i}").mkdir(parents=True)
    layer: Any = torch.nn.Linear(3, 3, bias=False)
    proof.require_room(cfg, layer)
    proof.require_room(cfg, layer, critic=layer)
    cfg.kl.coef, cfg.reference.refresh_steps = 0.1, 1
    proof.require_room(cfg, layer)
    assert asked == [(9 * 12, 9 * 4, copies), (18 * 12, 9 * 4, copies), (9 * 16, 9 * 4, copies)]


# -- tokens


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_wherever_it_is_read(tiny: Path, tmp_path: Path) -> None:
    more = [f"<{i}>" for i in range(40)]  # 100 tokens, 128 rows
    model, policy = proved(str(tiny), "model.path"), f"model.path {tiny}"
    require_rows(load_tokenizer_path(str(tiny), ""), policy, model, policy)
    require_rows(load_tokenizer_path(str(with_more_tokens(tiny, tmp_path / "few", more[:28])), ""), "", model, "")
    many = with_more_tokens(tiny, tmp_path / "many", more, special=True)
    with pytest.raises(ConfigError, match=r"model.tokenizer T: .* 12 tokens that .*'<28>' is 128, .* 128 rows"):
        require_rows(load_tokenizer_path(str(many), ""), "model.tokenizer T", model, policy)


def test_a_picture_in_the_tokenizer_of_a_text_model_needs_no_row(tiny: Path, tmp_path: Path) -> None:
    """The tokenizer of Gemma 3 has one token more than the embedding of its text model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([f"<{i}>" for i in range(28)])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(said | {"extra_special_tokens": {"image_token": "<image>"}})
    )
    require_rows(load_tokenizer_path(str(tmp_path), ""), "", proved(str(tiny), "model.path"), "")


def test_an_id_without_a_token_is_read_as_no_text(tiny: Path) -> None:
    """An embedding is padded to a round number of rows, and an engine can sample what is beyond the tokens."""
    tokenizer = load_tokenizer_path(str(tiny), "model.path")
    assert tokenizer.decode([*tokenizer.encode("ab"), 120]) == "ab"


def test_a_critic_with_fewer_rows_reads_its_last_for_an_id_without_a_token(tiny: Path) -> None:
    """Two models of one tokenizer, their embeddings padded to different numbers."""
    critic: Any = object.__new__(CriticRank)
    critic.engine = SimpleNamespace(model=proved(str(tiny), "model.path"))
    tokens = torch.tensor([5, 127, 128, 200], dtype=torch.int32)
    batch = Batch(
        tokens=tokens, offsets=torch.tensor([0, 4]), mask=torch.ones(4, dtype=torch.bool), rollout_logp=torch.zeros(4),
        reward=torch.zeros(1), group=torch.zeros(1, dtype=torch.int64), baseline=torch.zeros(1),
    )  # fmt: skip
    assert critic._with_rows(batch).tokens.tolist() == [5, 127, 127, 127] and batch.tokens.equal(tokens)


def test_another_models_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    cfg = ModelConfig(path=str(tiny))
    mine = load_tokenizer(cfg)
    require_own_tokens(cfg, mine)
    require_own_tokens(ModelConfig(path=str(tiny), tokenizer=str(tiny)), mine)
    mine.save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"a":', '"@@":', 1).replace('"@":', '"a":', 1))
    theirs = load_tokenizer_path(str(tmp_path), "")
    with pytest.raises(
        ConfigError, match="critic.path P has another tokenizer than model.path M: 2 tokens differ; '@'"
    ):
        require_same_tokens(mine, "model.path M", theirs, "critic.path P")
    with pytest.raises(ConfigError, match=f"model.tokenizer {tmp_path} has another tokenizer than model.path {tiny}"):
        require_own_tokens(ModelConfig(path=str(tiny), tokenizer=str(tmp_path)), theirs)


@pytest.mark.parametrize("own", [True, False], ids=["its own tokenizer", "its config only"])
@pytest.mark.parametrize(("name", "was"), [("eos_token", 1), ("pad_token", 0)])
def test_other_special_tokens_than_the_models_are_refused(
    tiny: Path, tmp_path: Path, name: str, was: int, own: bool
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    if not own:
        (model / "tokenizer.json").unlink()
    cfg = ModelConfig(path=str(model), tokenizer=str(tmp_path / "other"))
    tokenizer = load_tokenizer_path(str(tiny), "")
    require_own_tokens(cfg, tokenizer)
    setattr(tokenizer, name, "<user>")
    with pytest.raises(
        ConfigError, match=rf"model.tokenizer .*other has '<user>' \(2\) for {name}, model.path .* {was};"
    ):
        require_own_tokens(cfg, tokenizer)


@pytest.mark.parametrize(
    ("own", "taken", "refused"),
    [
        ({}, {"pad_token": None}, {"eos_token": None, "bos_token": "<user>"}),
        ({"pad_token": None}, {"pad_token": "<eos>"}, {"eos_token": "<pad>"}),
        ({"eos_token": None}, {"eos_token": "<user>"}, {"bos_token": "<user>"}),
        ({"bos_token": "<user>"}, {}, {"bos_token": None, "eos_token": "<user>"}),
    ],
)
def test_what_a_model_does_not_say_may_be_said(
    tiny: Path, tmp_path: Path, own: dict[str, Any], taken: dict[str, Any], refused: dict[str, Any]
) -> None:
    """A padding token is set by many people, and no one is harmed; one that begins every text is part of it."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    cfg = ModelConfig(path=str(model), tokenizer="other")
    with_special(tiny, own).save_pretrained(model)
    require_own_tokens(cfg, with_special(tiny, own | taken))
    for name, token in refused.items():
        with pytest.raises(ConfigError, match=f"model.tokenizer other has {token!r} .* for {name}, model.path"):
            require_own_tokens(cfg, with_special(tiny, own | {name: token}))


def with_special(tiny: Path, change: Mapping[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for name, token in change.items():
        setattr(tokenizer, name, token)
    return tokenizer


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_directory_without_a_vocabulary_has_no_tokenizer(tiny: Path, tmp_path: Path, family: str) -> None:
    """transformers makes an empty one for some models."""
    path = with_json(tiny, tmp_path / "model", "config.json", {"model_type": family})
    (path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="model.path: no tokenizer in .*no vocabulary"):
        load_tokenizer(ModelConfig(path=str(path)))


def test_a_damaged_tokenizer_is_named(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "model"))
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=f"model.path: no tokenizer in {path}: "):
        load_tokenizer(ModelConfig(path=str(path)))


def test_a_path_under_home_is_found(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    cfg = config(Path("~/tiny"), tmp_path)
    cfg.critic.path = "~/tiny"
    found = with_directory(cfg, lambda text: None)
    assert found.model.path == found.critic.path == str(tiny) and cfg.model.path == "~/tiny"


# -- in every stage, before a row is read


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    path, tensors = Path(shutil.copytree(tiny, tmp_path / "broken")), load_file(tiny / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize("stage", [Supervised, RewardModelling])
def test_a_stage_that_learns_from_rows_refuses_its_model_first(broken: Path, tmp_path: Path, stage: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.path: .*no model.layers.1.mlp.up_proj.weight"):
        stage(config(broken, tmp_path), lambda text: None)


@pytest.mark.parametrize("role", ["model", "critic", "reward_model"])
def test_every_role_of_reinforcement_is_refused_at_start(
    tiny: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    cfg = config(tiny, tmp_path)
    cfg.critic.ranks, cfg.reward.fns = 1, ["reward_model"]
    cfg.critic.path, cfg.reward_model.path = str(tiny), str(give_head(tiny, tmp_path / "scoring"))
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "scoring")
    getattr(cfg, role).path = str(broken)
    monkeypatch.setattr("rlcore.train.reinforcement.make_rewards", lambda cfg: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr("rlcore.train.reinforcement.read_prompts", lambda *args: pytest.fail("rows are read"))
    with pytest.raises(ConfigError, match=rf"{role}.path: .*no model.layers.1.mlp.up_proj.weight"):
        Reinforcement(cfg, lambda text: None)


def test_a_critic_and_a_reward_model_know_the_tokens_they_read(tiny: Path, tmp_path: Path) -> None:
    cfg = config(tiny, tmp_path)
    more = with_more_tokens(tiny, tmp_path / "more", [f"<{i}>" for i in range(40)])
    scoring = give_head(tiny, tmp_path / "scoring")
    tokenizer = load_tokenizer_path(str(tiny), "")
    cfg.critic.path = cfg.reward_model.path = str(scoring)
    proof.require_critic(cfg, tokenizer)  # without a tokenizer of its own, it has the policy's
    with pytest.raises(ConfigError, match="its embedding has 128 rows"):
        proof.require_critic(cfg, load_tokenizer_path(str(more), ""))
    for file in more.iterdir():
        shutil.copy(file, scoring)
    proof.require_critic(cfg, tokenizer)
    proof.require_reward_model(cfg)  # none is asked
    cfg.reward.fns = ["reward_model"]
    with pytest.raises(ConfigError, match="reward_model.path .*12 tokens that .* its embedding has 128 rows"):
        proof.require_reward_model(cfg)
    text = (scoring / "tokenizer.json").read_text()
    (scoring / "tokenizer.json").write_text(text.replace('"a":', '"@@":', 1).replace('"@":', '"a":', 1))
    with pytest.raises(ConfigError, match=f"critic.path: {scoring} has another tokenizer than model.path {tiny}"):
        proof.require_critic(cfg, tokenizer)


# -- after the rows are read


@pytest.mark.parametrize(
    ("stage", "row", "longest"),
    [
        (Supervised, {"prompt": "x" * 90, "response": "y" * 30}, 123),
        (DirectPreference, {"prompt": "x" * 90, "chosen": "y" * 30, "rejected": "z"}, 123),
        (RewardModelling, {"prompt": "x" * 90, "chosen": "y" * 30, "rejected": "z"}, 122),
    ],
)
def test_rows_longer_than_what_a_model_was_made_for_are_refused(
    tiny: Path, tmp_path: Path, stage: Any, row: dict[str, str], longest: int
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "short"))
    changed = json.loads((path / "config.json").read_text())
    cfg = config(path, tmp_path)
    cfg.data.train = [str(tmp_path / "rows.jsonl")]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (path / "config.json").write_text(json.dumps(changed | {"max_position_embeddings": longest}))
    stage(cfg, lambda text: None)
    (path / "config.json").write_text(json.dumps(changed | {"max_position_embeddings": longest - 1}))
    with pytest.raises(ConfigError, match=rf"made for {longest - 1} tokens, .* has {longest}; set .* together"):
        stage(cfg, lambda text: None)
