"""How the tiny base model is made: `python -m prorank_jax.demo.pretrain --out FOLDER` (an hour on 2 cores).

A byte-level BPE tokenizer and a Qwen2-architecture decoder of seven hundred thousand parameters, trained as a
language model on text of the generated world and on short dialogues about it. The towns are its own: no query,
document or judgement of any split of any seed is seen. Like a real small model it learns the words and not
the task: asked the relevance prompt, it has seen people answer in many forms, and answers of `0` and `1` that
were no better than a coin.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prorank_jax.config import PromptConfig
from prorank_jax.demo.lessons import COURSES, LESSONS, Course, Segments, texts
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.families import decoder_config
from prorank_jax.model.hf import save_pretrained
from prorank_jax.prompt import build_prompt

VOCABULARY = 2048
HF_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizer cuts a text into words; transformers takes it for every tokenizer of a Qwen2 model."""
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ORDER: Final = "document_first"
LENGTH = 256
"""Tokens of a row of the training batch."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has ids, and every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def pack(stream: Iterator[list[tuple[int, float]]], rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `rows` x LENGTH tokens: whole texts side by side in a row, each seeing itself alone."""
    pending = next(stream)
    while True:
        batch = {
            "tokens": np.zeros((rows, LENGTH), np.int32),
            "weights": np.zeros((rows, LENGTH), np.float32),
            "positions": np.zeros((rows, LENGTH), np.int32),
            "text": np.full((rows, LENGTH), -1, np.int32),
        }
        for row in range(rows):
            start, number = 0, 0
            while start + len(pending) <= LENGTH:
                stop = start + len(pending)
                batch["tokens"][row, start:stop] = [token for token, _ in pending]
                batch["weights"][row, start + 1 : stop] = [weight for _, weight in pending[1:]]
                batch["positions"][row, start:stop] = np.arange(len(pending))
                batch["text"][row, start:stop] = number
                start, number = stop, number + 1
                pending = next(stream)
                while len(pending) > LENGTH:
                    pending = next(stream)
        yield batch


def language_model_loss(decoder: Decoder, params: Params, batch: dict[str, Array]) -> Array:
    """Weighted next-token cross-entropy; logits are made for one row at a time."""
    text_BxL = batch["text"]
    index = jnp.arange(LENGTH)
    mask = (text_BxL[:, :, None] == text_BxL[:, None, :]) & (index[None, :] <= index[:, None])[None]
    hidden_BxLxD, _ = decoder.forward(params, batch["tokens"], batch["positions"], mask)

    @jax.checkpoint
    def row_loss(row: tuple[Array, Array, Array]) -> Array:
        hidden_LxD, tokens_L, weights_L = row
        log_probs = jax.nn.log_softmax(decoder.unembed(params, hidden_LxD[:-1]))
        chosen = jnp.take_along_axis(log_probs, tokens_L[1:, None], axis=-1)[:, 0]
        return -(chosen * weights_L[1:]).sum()

    losses = jax.lax.map(row_loss, (hidden_BxLxD, batch["tokens"], batch["weights"]))
    return losses.sum() / batch["weights"].sum()


def pretrain(out: Path, rows: int, seed: int) -> None:
    """Trains the tokenizer and the model, and writes them as a Hugging Face folder."""
    samples = list(itertools.islice(texts(seed, len(COURSES[0].lessons) - 1), 5_000))
    tokenizer = train_tokenizer([_plain(text, " ".join) for text in samples])
    # Once more, now that the prompt's own words can be told: they turn up in every request.
    wording = build_prompt(tokenizer, PromptConfig(max_length=1024, order=ORDER), place=str(out))
    tokenizer = train_tokenizer(
        [_plain(text, lambda pair: str(wording.tokenizer.decode(wording.encode(*pair)))) for text in samples]
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    prompt = build_prompt(tokenizer, PromptConfig(max_length=LENGTH, order=ORDER), place=str(out))
    backend = tokenizer.backend_tokenizer

    def encode(text: Segments) -> list[tuple[int, float]]:
        tokens = []
        for piece, weight in text:
            ids = backend.encode(piece).ids if isinstance(piece, str) else prompt.encode(*piece)
            tokens += [(token, weight) for token in ids]
        return tokens

    config = decoder_config(HF_CONFIG, "pretrain")
    decoder = Decoder(config)
    params = decoder.init(jax.random.key(seed))
    numbers = itertools.count()
    started = time.monotonic()
    for course in COURSES:
        optimizer = make_optimizer(course)
        step = make_step(decoder, optimizer)
        state = optimizer.init(params)
        for lesson in course.lessons:
            stream = texts(seed, number := next(numbers))
            for done, batch in enumerate(itertools.islice(pack(map(encode, stream), rows), lesson.steps), 1):
                params, state, loss = step(params, state, batch)
                if done % 100 == 0:
                    place = f"lesson {number + 1}/{len(LESSONS)}  step {done}/{lesson.steps}"
                    print(f"{place}  loss {loss:.4f}  {time.monotonic() - started:.0f} s", flush=True)
            save_pretrained(out, params, config, HF_CONFIG)


def make_optimizer(course: Course) -> optax.GradientTransformation:
    last = sum(lesson.steps for lesson in course.lessons)
    peak = course.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, last // 40, last, peak / 50)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))


def make_step(
    decoder: Decoder, optimizer: optax.GradientTransformation
) -> Callable[[Params, optax.OptState, dict[str, np.ndarray]], tuple[Params, optax.OptState, Array]]:
    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: optax.OptState, batch: dict[str, Array]) -> tuple[Params, optax.OptState, Array]:
        loss, gradient = jax.value_and_grad(partial(language_model_loss, decoder))(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def _plain(text: Segments, render: Callable[[tuple[str, str]], str]) -> str:
    return "".join(piece if isinstance(piece, str) else render(piece) for piece, _ in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {LENGTH} tokens in a batch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.rows, arguments.seed)


if __name__ == "__main__":
    main()
