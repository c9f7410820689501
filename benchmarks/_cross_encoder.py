"""sentence-transformers' side of `score_vs_cross_encoder.py`: CrossEncoderTrainer, held before each step until it is
asked for; and what both sides are given and answer.

Settings that change what is computed are those of our side. The others are its defaults, but for what would make it
slower or is not its training: logs and checkpoints are off; it may use all cores. Its rows keep their order, so that
both sides see the same batches.
"""

import os
import resource
import tempfile
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from _processes import Prompts, Turns


class Row(NamedTuple):
    """A query, its documents, and a label of each."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]


class Work(NamedTuple):
    """What both sides do: `folder` holds the exported model, `batches` the rows of each step, `ids` their prompts."""

    folder: Path
    loss: str
    batches: list[list[Row]]
    ids: list[Prompts]
    optimizer: dict[str, Any]


class Step(NamedTuple):
    """One step: wall time, how many cores other processes used, resident memory when it began and the most of it so
    far, the prompts that were scored, and the loss before the update."""

    seconds: float
    other_cores: float
    before_bytes: int
    peak_bytes: int
    prompts: Prompts
    loss: float


def answer(turns: Turns, prompts: Prompts, loss: float) -> None:
    """Reports the step that was just timed."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    turns.pipe.send(Step(turns.seconds, turns.others / turns.seconds, turns.before, peak, prompts, loss))


def serve_theirs(turns: Turns, work: Work) -> None:
    """The trainer's steps, one each time it is asked."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = CrossEncoder(str(work.folder), device="cpu")
    if model.dtype != torch.float32 or [type(module).__name__ for module in model][1:] != ["LogitScore"]:
        raise SystemExit(f"sentence-transformers read the folder as {model}; expected float32 with LogitScore")
    seen: list[dict[str, Any]] = []
    preprocess = model.preprocess

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(preprocess(*args, **kwargs))
        return seen[-1]

    model.preprocess = watched

    class Trainer(CrossEncoderTrainer):
        """Keeps the last loss."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            value: Any = super().compute_loss(*args, **kwargs)
            self.value = value.detach()
            return value

    class Gate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.clear()  # the trainer tries the model when it is made
            turns.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.end()
            prompts = [
                tuple(ids[real].tolist())
                for tokens in seen
                for ids, real in zip(tokens["input_ids"], tokens["attention_mask"].bool(), strict=True)
            ]
            answer(turns, prompts, float(trainer.value))

    def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
        return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    rows = list(chain.from_iterable(work.batches))
    if work.loss == "bce":
        pairs = [(row.query, *pair) for row in rows for pair in zip(row.documents, row.labels, strict=True)]
        columns = dict(zip(("query", "document", "label"), map(list, zip(*pairs, strict=True)), strict=True))
        loss: Any = BinaryCrossEntropyLoss(model)
    else:
        columns = dict(zip(("query", "documents", "labels"), map(list, zip(*rows, strict=True)), strict=True))
        loss = ListNetLoss(model)
    with tempfile.TemporaryDirectory() as output:
        arguments = CrossEncoderTrainingArguments(
            output_dir=output,
            max_steps=len(work.batches),
            per_device_train_batch_size=len(next(iter(columns.values()))) // len(work.batches),
            learning_rate=work.optimizer["learning_rate"],
            lr_scheduler_type="constant",
            adam_beta1=0.9,
            adam_beta2=0.95,
            weight_decay=work.optimizer["weight_decay"],
            max_grad_norm=work.optimizer["max_grad_norm"],
            batch_sampler=in_order,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Gate()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
