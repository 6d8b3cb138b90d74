"""Reward models without Ray: the loss, the layout of sequences and pairs, what transformers says, the driver's lane."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlcore.algo.preference import bradley_terry
from rlcore.config import Config, DataConfig, DeadlineConfig, ModelConfig
from rlcore.errors import ConfigError, WorkerError
from rlcore.isolated.outcome import Outcome
from rlcore.models.load import load_tokenizer, load_tokenizer_path, load_value_path
from rlcore.models.logp import TokenValue, batch_value
from rlcore.records import Prompt, Response
from rlcore.workers.packing import plan
from rlcore.workers.reward_model import RewardModelLane, _conversation
from rlcore.workers.reward_model_rank import conversation_tokens, ending, preference_tokenizer
from tests.close import assert_close
from tests.tiny import give_head, make_tiny_model

CPU = torch.device("cpu")


def test_a_response_is_the_end_of_the_assistants_message() -> None:
    """What a template opens is a part of it; what the row's conversation has begun stands in it already."""
    asked, begun = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Sure: <think>"}
    prompt = Prompt("p", [1], "4", messages=[asked], opened="<think>\n")
    answered = [asked, {"role": "assistant", "content": "<think>\nby hand"}]
    assert _conversation(prompt, Response("<think>\nby hand")) == answered
    prompt = Prompt("p", [1], "4", messages=[asked, begun], opened="<think>")
    answered = [asked, {"role": "assistant", "content": "Sure: <think>by hand"}]
    assert _conversation(prompt, Response("<think>by hand")) == answered


# -- the loss


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "accuracy"),
    [
        (0.0, 0.0, math.log(2), 0.5), (1.0, 1.0, math.log(2), 0.5), (3.0, 1.0, math.log(1 + math.exp(-2)), 1.0),
        (1.0, 3.0, math.log(1 + math.exp(2)), 0.0), (500.0, -500.0, 0.0, 1.0), (-500.0, 500.0, 1000.0, 0.0),
    ],
)  # fmt: skip
def test_bradley_terry(chosen: float, rejected: float, loss: float, accuracy: float) -> None:
    a, b = (torch.tensor([x], requires_grad=True) for x in (chosen, rejected))
    found, stats = bradley_terry(a, b)
    assert_close(found, [loss], 10, "loss")  # 0.6
    assert stats["accuracy"].tolist() == [accuracy] and stats["margin"].tolist() == [chosen - rejected]
    found.sum().backward()
    assert a.grad is not None and b.grad is not None and a.grad.equal(-b.grad)
    assert_close(a.grad, -torch.sigmoid(torch.tensor([rejected - chosen])), 10, "slope")  # 0.6


# -- the layout


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=12), st.sampled_from([None, 0, 3]))
def test_ending(sequences: list[list[int]], pad: int | None) -> None:
    """The value before the one masked token of a sequence is the value after the last token transformers counts."""
    before = [list(s) for s in sequences]
    batch = ending(sequences, pad)
    assert sequences == before and len(batch) == len(sequences)
    for i, tokens in enumerate(sequences):
        mine = batch.select([i])
        assert mine.mask.tolist() == [False] * (len(mine.tokens) - 1) + [True]
        kept = mine.tokens[:-1].tolist()
        not_pad = [t != pad for t in tokens]
        last = max((n for n, real in enumerate(not_pad) if real), default=0)
        assert kept == tokens[: last + 1]


# -- what transformers says


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def reward_model(directory: Path, out: Path, **changes: Any) -> Path:
    give_head(directory, out, **changes)
    load_tokenizer_path(str(directory), "model.path").save_pretrained(out)
    return out


def sequences() -> list[list[int]]:
    """Some end with the padding token 0, with the end-of-sequence token 1, or are nothing but padding."""
    g = torch.Generator().manual_seed(0)
    found = [torch.randint(4, 100, (n,), generator=g).tolist() for n in (1, 2, 7, 30, 55, 3, 12, 8)]
    return [*found, [5, 6, 0], [5, 0, 6, 0, 0], [7, 8, 1], [7, 1, 1], [0, 0]]


def one_by_one(path: Path, tokens: list[list[int]]) -> torch.Tensor:
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return torch.stack([plain(input_ids=torch.tensor([t])).logits[0, 0] for t in tokens])


def scores(model: PreTrainedModel, tokens: list[list[int]], microbatch_tokens: int) -> torch.Tensor:
    batch = ending(tokens, model.config.pad_token_id)
    (microbatches,) = plan(batch.lengths.tolist(), 1, microbatch_tokens)
    return batch_value(TokenValue(model), batch, [*microbatches, []], CPU)[batch.mask]


@pytest.mark.parametrize("pad", [0, 1, None])
def test_scores_are_transformers_own_whatever_is_batched(language_model: Path, tmp_path: Path, pad: int | None) -> None:
    path = reward_model(language_model, tmp_path, pad_token_id=pad)
    model = load_value_path(str(path), "reward_model.path", torch.float32, new_head=False)
    want = one_by_one(path, sequences())
    assert float(want.std()) > 0.3
    for microbatch_tokens in (1, 40, 10_000):
        assert_close(scores(model, sequences(), microbatch_tokens), want, 100, f"{microbatch_tokens} tokens")  # 5.1


def test_a_language_model_is_no_reward_model(language_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward_model.path: .* without a scoring head, so all its scores would be 0"):
        load_value_path(str(language_model), "reward_model.path", torch.float32, new_head=False)
    with pytest.raises(ConfigError, match="reward_model.path: cannot make a reward model of"):
        load_value_path(str(tmp_path), "reward_model.path", torch.float32, new_head=False)
    with pytest.raises(ConfigError, match="reward_model.path: no tokenizer in"):
        load_tokenizer_path(str(tmp_path), "reward_model.path")


def test_tokens_are_those_of_the_models_own_template(language_model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(language_model)))
    asked = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2<eos>"}]
    want = tokenizer.apply_chat_template(asked, tokenize=True, return_dict=False)
    found = conversation_tokens(tokenizer, asked)
    assert found == want and tokenizer.decode(found) == "<user>1+1?<assistant>2<eos>"
    bare = preference_tokenizer(ModelConfig(path=str(language_model)), DataConfig(chat_template=False))
    assert conversation_tokens(bare, asked) == bare("1+1?2<eos>")["input_ids"]
    with pytest.raises(ValueError, match="not text"):
        conversation_tokens(bare, [{"role": "user", "content": [{"type": "text", "text": "a"}]}])
    with pytest.raises(ValueError, match="no tokens"):
        conversation_tokens(bare, [{"role": "assistant", "content": ""}])
    tokenizer.chat_template = "{{ raise_exception('no system prompts') }}"
    with pytest.raises(ValueError, match="chat template refuses it: .*no system prompts"):
        conversation_tokens(tokenizer, asked)


def test_special_tokens_come_once_from_the_template_or_from_the_tokenizer(language_model: Path) -> None:
    """A tokenizer that puts a token before any text must not put a second one before a template's."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = preference_tokenizer(ModelConfig(path=str(language_model)), DataConfig())
    start = tokenizer.convert_tokens_to_ids("<user>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore
        single="<user> $A", special_tokens=[("<user>", start)]
    )
    asked = [{"role": "user", "content": "a"}]
    letter = tokenizer.convert_tokens_to_ids("a")
    assert conversation_tokens(tokenizer, asked) == [start, letter]
    tokenizer.chat_template = None
    assert conversation_tokens(tokenizer, asked) == [start, letter]


# -- the driver's lane, with ranks that are not there


class Watch:
    phase = "rollout"

    def __init__(self) -> None:
        self.finished: set[str] = set()
        self.results: dict[str, Any] = {}

    def any(self, refs: dict[str, Any], seconds: float) -> list[str]:
        return [ref for ref in refs if ref in self.finished]

    def get(self, ref: str, worker: str) -> Any:
        if isinstance(self.results[ref], Exception):
            raise self.results[ref]
        return self.results[ref]


class Group:
    """Each call's conversations, rank by rank; a reply is the length of the response's text."""

    def __init__(self, ranks: int) -> None:
        self.workers = [f"reward_model rank {i}" for i in range(ranks)]
        self.watch, self.deadline = Watch(), DeadlineConfig(update_seconds=50.0)
        self.calls: list[list[list[Any]]] = []

    def begin(self, method: str, each: list[tuple[list[Any]]]) -> list[str]:
        assert method == "score"
        self.calls.append([conversations for (conversations,) in each])
        refs = [f"{len(self.calls)}/{rank}" for rank in range(len(each))]
        for ref, (conversations,) in zip(refs, each, strict=True):
            self.watch.results[ref] = [Outcome(float(len(c[-1]["content"]))) for c in conversations]
        return refs


def lane_of(ranks: int, microbatch_tokens: int) -> tuple[RewardModelLane, Group]:
    cfg, group = Config(), Group(ranks)
    cfg.actor.microbatch_tokens = microbatch_tokens
    return RewardModelLane(group, cfg), group  # type: ignore


def submit(lane: RewardModelLane, keys: range, tokens: int = 9) -> None:
    for key in keys:
        prompt = Prompt("p", [], "", {}, [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])
        lane.submit(key, prompt, Response("x" * key, tokens), None)


def test_a_lane_sends_what_fits_one_call_at_a_time_and_gives_each_its_own() -> None:
    lane, group = lane_of(ranks=2, microbatch_tokens=30)  # 10 tokens a sample: 6 a call
    assert lane.names == ["reward_model"] and lane.pending == 0 and lane.poll(0.0) == []
    submit(lane, range(8))
    assert lane.pending == 8 and lane.poll(0.0) == []
    assert len(group.calls) == 1 and sorted(map(len, group.calls[0])) == [3, 3]
    first = group.calls[0][0][0]
    assert [m["role"] for m in first] == ["system", "user", "assistant"]
    group.watch.finished.add("1/1")
    got = dict(lane.poll(0.0))
    assert len(got) == 3 and len(group.calls) == 1  # collective: the next call waits for both ranks
    group.watch.finished.add("1/0")
    got |= dict(lane.poll(0.0))
    assert len(group.calls) == 2 and lane.pending == 2
    group.watch.finished |= {"2/0", "2/1"}
    got |= dict(lane.poll(0.0))
    assert lane.pending == 0 and lane.poll(0.0) == []
    assert {k: v["reward_model"].reward for k, v in got.items()} == {k: float(k) for k in range(8)}


def test_a_response_goes_on_from_the_prompts_last_words() -> None:
    lane, group = lane_of(ranks=1, microbatch_tokens=100)
    asked = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>\n"}]
    lane.submit(0, Prompt("p", [], "", {}, asked), Response("2</think>2", 9), None)
    lane.poll(0.0)
    assert group.calls[0][0] == [[asked[0], {"role": "assistant", "content": "<think>\n2</think>2"}]]
    assert asked[1]["content"] == "<think>\n"


def test_a_sample_larger_than_a_call_is_sent_alone() -> None:
    lane, group = lane_of(ranks=2, microbatch_tokens=5)
    submit(lane, range(2), tokens=100)
    lane.poll(0.0)
    assert sorted(len(share) for share in group.calls[0]) == [0, 1]  # a rank without a sample is called too


def test_a_lane_that_is_stuck_or_whose_rank_died_is_a_worker_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, group = lane_of(ranks=2, microbatch_tokens=100)
    submit(lane, range(4))
    lane.poll(0.0)
    group.watch.finished.add("1/0")
    group.watch.results["1/0"] = WorkerError("reward_model rank 0 died")
    with pytest.raises(WorkerError, match="rank 0 died"):
        lane.poll(0.0)
    lane, group = lane_of(ranks=2, microbatch_tokens=100)
    submit(lane, range(4))
    lane.poll(0.0)
    group.watch.finished.add("1/0")
    now = __import__("time").monotonic()
    monkeypatch.setattr("rlcore.workers.reward_model.time.monotonic", lambda: now + 51)
    with pytest.raises(
        WorkerError, match="reward_model.score: no answer from reward_model rank 1 within 50 s, phase r"
    ):
        lane.poll(0.0)
    lane.close()
    assert lane.pending == 0
