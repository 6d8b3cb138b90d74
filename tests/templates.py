"""Chat templates of the kinds that models ship, over tokenizers of single characters and the markers they name."""

from __future__ import annotations

from typing import Any

# Thoughts of the turns before the last question go, as in Qwen3's; a turn that is learned keeps its own.
CHATML = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if thought and loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + call.function.arguments|tojson }}"
    "{{ '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# It opens the thought for the assistant; of an answer it is given it shows what follows the thought, as R1's does.
OPENS_THINK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% else %}{{ '<|User|>' + m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
# The same, but an answer is shown whole, with an empty thought where it has none, as Qwen3.5's does.
OPENS_THINK_SHOWS_IT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content|trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content|trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
# One marker closes every turn, another the whole conversation, as in Phi-3.
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Nothing closes a turn, as in GLM-4.
GLM_4 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|User|>", "<|Assistant|>", "<|user|>", "<|assistant|>", "<|end|>",
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>",
)  # fmt: skip


def make_tokenizer(template: str | None, eos: str | None = "<|endoftext|>", markers: tuple[str, ...] = MARKERS) -> Any:
    """Its special tokens are <pad>, <s> and the markers, numbered from 0; then come the characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", *markers]
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + letters)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    made.decoder = decoders.Fuse()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<pad>", bos_token="<s>", eos_token=eos
    )
    fast.add_special_tokens({"additional_special_tokens": [m for m in markers if m != eos]})
    fast.chat_template = template
    return fast
