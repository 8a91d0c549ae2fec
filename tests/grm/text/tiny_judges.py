"""Tiny models with the tokenizer layout of each released family."""

import torch

from grm.text.conventions import Convention
from grm.text.discriminative import DiscriminativeJudge
from grm.text.tiny import make_model, make_tokenizer

QUESTION = "mod 7 : 3 + 4 * 2 - 1"
STEPS = ["3 + 4 = 0", "0 * 2 = 0", "0 - 1 = 6", "so far so good", "answer 6"]
WORDS = [QUESTION, "\n".join(STEPS), "1 2 5 - +", "ки", "Please reason step by step, and put final answer"]
SPECIAL = ["<extra_0>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    return make_tokenizer(WORDS, special=SPECIAL, chat_template=TEMPLATE)


def language_model(tokenizer, **settings):
    model = make_model(tokenizer, **({"width": 32, "heads": 2, "context": 256} | settings))
    with torch.no_grad():  # as random as a trained one, so that every token counts
        for parameter in model.parameters():
            parameter *= 3
    return model


def judge(convention: Convention, *, seed: int = 0, **settings) -> DiscriminativeJudge:
    made = tokenizer()
    return DiscriminativeJudge.on_top_of(language_model(made, **settings), made, convention, seed=seed)
