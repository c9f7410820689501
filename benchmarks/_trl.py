"""TRL's side of `grpo_vs_trl.py`: its own training loop, held before each step until it is asked for.

Settings that change what is computed are those of our side. The others are TRL's defaults, but for what would make it
slower or is not its training: recomputed activations, logs and checkpoints are off; it may use all cores.
"""

import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from _processes import Task, Turns
    from transformers import PreTrainedTokenizerFast


def serve_trl(turns: "Turns", task: "Task", completions_head: bool = False) -> None:
    """TRL's steps, one each time it is asked.

    Args:
      completions_head: only the completions' positions go through the unembedding, as where TRL has Triton.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    # TRL's own: names that transformers has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if completions_head:
        patch("trl.trainer.utils._use_triton", return_value=True).start()

    class Trainer(GRPOTrainer):
        """Keeps what the last loss was computed of."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen = inputs
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Gate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.end()
            rows = zip(trainer.seen["prompt_ids"], trainer.seen["prompt_mask"].bool(), strict=True)
            prompts = [tuple(ids[real].tolist()) for ids, real in rows]
            turns.report(prompts, int(trainer.seen["completion_mask"].sum()))

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        # About half of a group: its advantages are not 0.
        return [float(ids[0] % 2) for ids in completion_ids]

    optimizer = task.warmup["optimizer"]
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            max_steps=len(task.batches),
            # One update per batch of rollouts, all completions in one forward pass.
            per_device_train_batch_size=len(task.batches[0]) * task.group_size,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_iterations=1,
            num_generations=task.group_size,
            max_completion_length=task.warmup["max_new_tokens"],
            temperature=task.warmup["temperature"],
            beta=task.warmup["beta"],
            epsilon=task.warmup["clip_low"],
            epsilon_high=task.warmup["clip_high"],
            loss_type="grpo",
            scale_rewards="group",
            # The plain estimate of the divergence, as ours.
            use_bias_correction_kl=False,
            learning_rate=optimizer["learning_rate"],
            lr_scheduler_type="cosine",
            adam_beta1=0.9,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=optimizer["max_grad_norm"],
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            shuffle_dataset=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        texts = [" ".join(f"t{token}" for token in prompt) for prompts in task.batches for prompt in prompts]
        trainer = Trainer(
            model=str(task.folder),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=_tokenizer(task.vocabulary, task.pad),
            callbacks=[Gate()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _tokenizer(vocabulary: int, pad: int) -> "PreTrainedTokenizerFast":
    """Every token is a word, `t17` for 17, so that a text is exactly its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{token}": token for token in range(vocabulary) if token != pad} | {"<pad>": pad, "<end>": vocabulary}
    backend = Tokenizer(models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left")
