"""vLLM engines in Ray actors on CPU: what they sample, with which log-probabilities, and how a response ends."""

import copy
import dataclasses
import itertools

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlcore.cluster.deadlines import Watch, Worker
from rlcore.config import Config, RolloutConfig
from rlcore.errors import ConfigError
from rlcore.models.logp import TokenLogp, batch_logp
from rlcore.models.pack import pack
from rlcore.records import Batch, Group, Prompt, Rollout
from rlcore.weights import WeightInfo
from rlcore.workers.sender import Sender
from rollout.collector import Ask, Collector, response_text
from rollout.engine import Engine, EngineSpec, SampleRequest, kept_of
from tests.close import assert_close
from tests.tiny import make_tiny_model

EOS = 1
TOKENS = 24
STOP = ["a", "Q7"]


def spec(directory, index=0):
    return EngineSpec(str(directory), "float32", "cpu", 128, (EOS,), index=index)


def actor(directory, cfg, index=0):
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return ray.remote(Engine).options(**options).remote(spec(directory, index), cfg)


def publish(model, engines, version=0):
    named = list(model.named_parameters())
    infos = [WeightInfo(n, tuple(p.shape), "float32") for n, p in named]
    return Sender("shm", engines, rank=0, seconds=120).publish(infos, lambda some: gather(named, some), version)


class gather:
    """The plain model's stand-in for a ZeRO-3 gather."""

    def __init__(self, named, indices):
        self.tensors = [named[i][1] for i in indices]

    def __enter__(self):
        return self.tensors

    def __exit__(self, *_):
        return None


def model_with_narrow_heads(directory):
    """Its attention heads are 16 wide."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, eos_token_id=EOS, **sizes)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def narrow_heads(stack, tmp_path_factory):
    """What starting an engine of such a model gives."""
    made = actor(model_with_narrow_heads(tmp_path_factory.mktemp("narrow")), RolloutConfig(kv_cache_gib=0.0625), 3)
    return made.start.remote()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """(plain model, two engines of it, one with stop strings and log-probabilities of all tokens), all at version 0."""
    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20)
    small = {"max_sequences": 32, "kv_cache_gib": 0.0625}
    plain = RolloutConfig(max_response_tokens=TOKENS, **small)
    stops = RolloutConfig(max_response_tokens=TOKENS, stop=STOP, vllm_args={"max_logprobs": -1}, **small)
    engines = [actor(directory, plain, 0), actor(directory, plain, 1), actor(directory, stops, 2)]
    try:
        ray.get([e.start.remote() for e in engines], timeout=400)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).requires_grad_(False)
        publish(model, engines)
        yield model, engines[:2], engines[2]
    finally:
        ray.shutdown()


def requests(prompts=6, samples=4, temperature=1.0):
    """Prompts of 3 to 53 tokens: shorter and longer than a block of the cache."""
    for p, s in itertools.product(range(prompts), range(samples)):
        tokens = [2] + [10 + (7 * p + i) % 80 for i in range(1 + 10 * p)] + [3]
        yield SampleRequest((p, s), tokens, 1000 * p + s, temperature)


def run(engine, asked):
    asked = list(asked)
    ray.get(engine.submit.remote(asked))
    done = []
    while batch := ray.get(engine.advance.remote(30.0), timeout=120):
        done += batch
    assert {s.key for s in done} == {r.key for r in asked} and len(done) == len(asked)
    return {s.key: s for s in done}


def reference_logp(model, prompt, response):
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_log_probabilities_are_the_models(stack):
    model, (engine, _), _ = stack
    asked = {r.key: r for r in requests()}
    found = run(engine, asked.values())
    for key, sample in found.items():
        want = reference_logp(model, asked[key].tokens, sample.tokens)
        assert_close(torch.tensor(sample.logp), want, 40, f"logp of {key}")  # 1.7
    assert len({tuple(s.tokens) for s in found.values()}) == len(found), "samples of one prompt must differ"


def test_more_prompt_tokens_than_one_step_takes_give_the_same_samples(stack):
    """vLLM would cut a prompt over two steps, which fails for a seeded request on CPU."""
    _, (first, second), _ = stack
    asked = [SampleRequest((i, 0), [2, i + 4, *range(5, 95), 3], i, 1.0) for i in range(60)]
    assert sum(len(r.tokens) for r in asked[:32]) > 2048
    together = run(first, asked)
    for request in asked[20:24]:
        assert run(second, [request])[request.key].tokens == together[request.key].tokens


def test_temperature_is_in_the_log_probabilities(stack):
    model, (engine, _), _ = stack
    asked = {r.key: r for r in requests(2, 4, temperature=0.5)}
    for key, sample in run(engine, asked.values()).items():
        prompt = asked[key].tokens
        logits = model(torch.tensor([prompt + sample.tokens])).logits[0, len(prompt) - 1 : -1] / 0.5
        want = torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        assert_close(torch.tensor(sample.logp), want, 40, f"logp of {key}")  # 1.7


def test_a_response_ends_with_its_eos_or_at_its_length(stack):
    _, (engine, _), _ = stack
    found = run(engine, requests(6, 8)).values()
    assert {s.finish for s in found} == {"stop", "length"}
    for sample in found:
        assert len(sample.tokens) == len(sample.logp)
        if sample.finish == "stop":
            assert sample.tokens[-1] == EOS and EOS not in sample.tokens[:-1]
        else:
            assert len(sample.tokens) == TOKENS and EOS not in sample.tokens


def test_the_runs_ending_tokens_are_stopped_at_and_no_others(stack):
    """Not those of the model's generation config, which is one file of several that say how a response ends."""
    _, (engine, _), _ = stack
    others = (20, 50)
    ray.get(engine.__ray_call__.remote(lambda self: setattr(self, "spec", self.spec._replace(ends=others))))
    found = run(engine, requests(6, 8)).values()
    ray.get(engine.__ray_call__.remote(lambda self: setattr(self, "spec", self.spec._replace(ends=(EOS,)))))
    assert {s.tokens[-1] for s in found if s.finish == "stop"} == set(others)
    assert all(not {*others}.intersection(s.tokens[:-1]) for s in found)
    assert any(EOS in s.tokens[:-1] for s in found)


def test_one_engine_or_two_and_any_batching_give_the_same_samples(stack):
    _, (first, second), _ = stack
    asked = list(requests(6, 8))
    alone = run(first, asked)
    split = run(first, asked[1::2][::-1]) | run(second, asked[0::2])
    singly = {}
    for request in asked[:6]:
        singly |= run(second, [request])
    for key, sample in (split | singly).items():
        assert sample.tokens == alone[key].tokens and sample.finish == alone[key].finish
        assert_close(torch.tensor(sample.logp), torch.tensor(alone[key].logp), 40, f"logp of {key}")  # 0


def test_greedy_samples_are_the_models_likeliest_tokens(stack):
    model, (engine, _), _ = stack
    asked = {r.key: r for r in requests(6, 1, temperature=0.0)}
    for key, sample in run(engine, asked.values()).items():
        prompt = asked[key].tokens
        logits = model(torch.tensor([prompt + sample.tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        assert_close(chosen, logits.max(-1).values, 40, f"logits of {key}")  # 0


CHOICES = {"temperature": 0.7, "top_p": 0.8, "top_k": 50, "min_tokens": 6}


def test_stop_strings_and_minimum_length(stack):
    _, _, engine = stack
    found = run(engine, [r._replace(**CHOICES) for r in requests(6, 8)])
    letters = {i: chr(c) for i, c in enumerate(range(32, 127), start=4)} | {99: "\n"}
    by_string = 0
    for sample in found.values():
        text = "".join(letters.get(t, "") for t in sample.tokens)
        assert len(sample.tokens) >= 6
        if sample.finish == "stop" and sample.tokens[-1] != EOS:
            by_string += 1
            assert any(text.endswith(s) for s in STOP), "the stop string's own tokens are kept"
        if sample.finish == "length":
            assert not any(s in text[6:] for s in STOP)
    assert by_string > 0


def everything_said(asked):
    """In the engine's process: `asked` sampled as by an engine that says what it chose from; tokens, log-probabilities
    and that. What was left is known of the log-probabilities of all tokens: -inf where one was ruled out."""

    def sampled(engine):
        from vllm.inputs.engine import tokens_input
        from vllm.outputs import SamplingMask
        from vllm.sampling_params import SamplingParams

        says = Engine(engine.spec._replace(says_kept=True), engine.cfg)
        for i, r in enumerate(asked):
            params = SamplingParams(seed=r.seed, max_tokens=TOKENS, logprobs=-1, **says._choice(r))
            engine._llm.add_request(str(i), tokens_input(r.tokens), params)
        done = {}
        while engine._llm.has_unfinished_requests():
            done |= {int(o.request_id): o.outputs[0] for o in engine._llm.step() if o.finished}
        outputs = [done[i] for i in range(len(asked))]
        for output in outputs:
            each = [[t for t, of in row.items() if of.logprob > float("-inf")] for row in output.logprobs]
            output.sampling_mask = SamplingMask(each)
        logp = [[row[t].logprob for t, row in zip(o.token_ids, o.logprobs, strict=True)] for o in outputs]
        return [(list(o.token_ids), x, kept_of(o)) for o, x in zip(outputs, logp, strict=True)]

    return sampled


@pytest.mark.parametrize("changes", [{}, {"min_tokens": 0}, {"top_p": 1.0, "top_k": 3}, {"temperature": 0.0}])
def test_the_trainers_log_probabilities_over_what_was_left_are_the_engines(stack, changes):
    """The mask that model runner V2 gives on a GPU is made here of all log-probabilities."""
    model, _, engine = stack
    asked = [r._replace(**(CHOICES | changes)) for r in requests(4, 4)]
    found = ray.get(engine.__ray_call__.remote(everything_said(asked)), timeout=300)
    rollouts, sizes = [], []
    for request, (tokens, logp, kept) in zip(asked, found, strict=True):
        n = len(request.tokens)
        sizes += kept.counts.tolist()
        mask = [False] * n + [True] * len(tokens)
        prompt = Prompt("p", request.tokens, "")
        rollouts.append(Rollout(prompt, request.tokens + tokens, [0.0] * n + logp, mask, "stop", 0, reward=0.0,
                                kept=kept.after(n)))  # fmt: skip
    batch = Batch.from_groups([Group(rollouts)])
    module = TokenLogp(pack(copy.deepcopy(model)))
    temperature = changes.get("temperature", CHOICES["temperature"])
    own = batch_logp(module, batch, [[i] for i in range(len(batch))], temperature, 16, torch.device("cpu"))
    assert_close(own[batch.mask], batch.rollout_logp[batch.mask], 40, "log-probabilities", scale=1.0)  # 4
    free = batch_logp(module, dataclasses.replace(batch, allowed=None), [[0]], temperature, 16, torch.device("cpu"))
    first = slice(0, int(batch.offsets[1]))
    assert float((free - batch.rollout_logp)[first].abs().max()) > 0.1, "without the sets they differ"
    assert max(sizes) <= (50 if temperature else 1) and min(sizes) >= 1


def test_an_aborted_engine_starts_afresh(stack):
    _, (engine, _), _ = stack
    asked = list(requests(4, 8))
    whole = run(engine, asked)
    ray.get(engine.submit.remote(asked))
    ray.get(engine.advance.remote(0.0))
    ray.get(engine.abort.remote())
    assert ray.get(engine.advance.remote(5.0)) == []
    again = run(engine, asked)
    assert {k: s.tokens for k, s in again.items()} == {k: s.tokens for k, s in whole.items()}


class Length:
    """A reward pool in this process: the response's length."""

    def __init__(self):
        self.done = []

    def submit(self, key, prompt, response):
        self.done.append(
            (key, type("Result", (), {"reward": float(len(response.text)), "parts": {}, "status": {}, "why": {}}))
        )

    def poll(self, wait_seconds):
        done, self.done = self.done, []
        return done


def test_the_collector_gives_the_same_groups_with_one_engine_and_two(stack):
    _, engines, _ = stack
    prompts = [Prompt(f"p:{r.key[0]}", r.tokens, "") for r in requests(6, 1)]
    watch = Watch()
    found = []
    for n in (1, 2):
        workers = [Worker("rollout", i, e) for i, e in enumerate(engines[:n])]
        cfg = RolloutConfig(max_sequences=8, max_response_tokens=TOKENS)
        text = response_text(lambda tokens: "".join(map(chr, tokens)), [EOS])
        made = Collector(workers, None, Length(), watch, Config(rollout=cfg), text, lambda group: True)
        found.append(made.sample(prompts, Ask(4, 1.0)))
    for one, two in zip(*found, strict=True):
        assert one.prompt is two.prompt
        assert [r.tokens for r in one.rollouts] == [r.tokens for r in two.rollouts]
        assert [r.reward for r in one.rollouts] == [r.reward for r in two.rollouts]
        assert all(r.reward == r.response_tokens - (r.tokens[-1] == EOS) for r in one.rollouts)


def test_heads_that_vllm_computes_on_no_cpu_are_a_config_error_at_start(narrow_heads):
    """vLLM loads such a model, and refuses it when the first token is sampled."""
    with pytest.raises(ConfigError, match=r"heads of .* are 16 wide \(head_dim\), .* takes 32, 64, .*: use a model"):
        ray.get(narrow_heads, timeout=120)


def test_a_name_vllm_does_not_know_is_a_config_error(stack):
    _, (engine, _), _ = stack
    cfg = RolloutConfig(vllm_args={"max_num_seq": 4})

    def check(_):  # in the engine's process, which has vLLM loaded
        from vllm import EngineArgs

        on_gpu = Engine(spec("nowhere")._replace(device="gpu", says_kept=True), RolloutConfig())._args()
        assert on_gpu["return_sampling_mask"] and on_gpu.keys() <= {f.name for f in dataclasses.fields(EngineArgs)}
        Engine(spec("nowhere"), cfg).check_args()

    with pytest.raises(ConfigError, match=r"rollout.vllm_args.max_num_seq.*max_num_seqs"):
        ray.get(engine.__ray_call__.remote(check))
