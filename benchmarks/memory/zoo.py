"""The zoo of tasks on which memory predictions are checked; ``zoo.py:NAME`` loads one.

Each comes with the micro-batch sizes at which real steps are run. Predictions rest on 2, 3, 16 and
rarely 64 or 256 examples, so the largest sizes are up to a thousand times what was run before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import zoo_data as data
import zoo_images as images
import zoo_other as other
from torch import nn
from zoo_text import BERT, GPT, gpt2

import rightbatch as rb


def foreach_adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, foreach=True)


ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-4}
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9}
BF16: dict[str, Any] = ADAMW | {"precision": "bf16"}


class Entry(NamedTuple):
    model: Callable[[], nn.Module]
    examples: Callable[[], data.Examples]
    loss: Any
    recipe: dict[str, Any]
    sizes: tuple[int, ...]
    data_dependent: bool = False
    """Whether shapes inside the step depend on values, so that no law can be exact."""


small_mlp = partial(other.mlp, 784, 2048, 2048, 10)
digits = partial(data.vectors, 784)
text = partial(data.tokens, 128, 4096)

ZOO: dict[str, Entry] = {
    "mlp": Entry(small_mlp, digits, data.classify, ADAMW, (5, 256, 16384)),
    "mlp_clip_ema": Entry(
        small_mlp, digits, data.classify, ADAMW | {"clip_norm": 1.0, "ema_decay": 0.99}, (5, 256, 4096)
    ),
    "mlp_foreach_dropout": Entry(
        partial(other.mlp, 784, 2048, 2048, 10, dropout=0.3),
        digits,
        data.classify,
        {"optimizer": foreach_adamw, "lr": 1e-4},
        (5, 256, 4096),
    ),
    "resnet18": Entry(images.resnet18, partial(data.images, 224), data.classify, SGD, (5, 24, 48)),
    "resnet18_small_images": Entry(
        partial(images.resnet18, 10), partial(data.images, 32, 10), data.classify, ADAMW, (5, 128, 2048)
    ),
    "resnet18_bf16": Entry(
        partial(images.resnet18, 10), partial(data.images, 32, 10), data.classify, BF16, (5, 32, 80)
    ),
    "resnet50": Entry(images.resnet50, partial(data.images, 224), data.classify, SGD, (4, 10, 20)),
    "mobilenet": Entry(images.mobilenet, partial(data.images, 224), data.classify, SGD, (5, 12, 24)),
    "unet": Entry(images.UNet, partial(data.masks, 128), data.classify, ADAMW, (5, 20, 32)),
    "vit": Entry(images.ViT, partial(data.images, 224), data.classify, ADAMW, (5, 10, 20)),
    "genomic": Entry(images.Dilated, partial(data.sequences, 5001), data.classify, ADAMW, (5, 32, 64)),
    "gpt": Entry(GPT, text, data.language, ADAMW, (5, 32, 96)),
    "gpt_untied_eager": Entry(
        partial(GPT, tied=False, eager=True), text, data.language, ADAMW, (5, 32, 80)
    ),
    "gpt_dropout": Entry(partial(GPT, dropout=0.1), text, data.language, ADAMW, (5, 32, 80)),
    "gpt_checkpointed": Entry(partial(GPT, checkpointed=True), text, data.language, ADAMW, (5, 32, 96)),
    "gpt_bf16": Entry(GPT, text, data.language, BF16, (5, 32, 64)),
    "gpt2_124m": Entry(gpt2, partial(data.tokens, 128, 50257), data.language, ADAMW, (4, 6, 10)),
    "bert_base": Entry(BERT, partial(data.tokens, 128, 30522), data.masked_language, ADAMW, (4, 6, 10)),
    "bert_base_eager": Entry(
        partial(BERT, eager=True),
        partial(data.tokens, 128, 30522),
        data.masked_language,
        ADAMW,
        (4, 6, 10),
    ),
    "encoder": Entry(other.Encoder, partial(data.tokens, 64, 1000), data.language, ADAMW, (5, 64, 512)),
    "lstm": Entry(
        partial(other.Recurrent, nn.LSTM),
        partial(data.tokens, 64, 2000),
        data.language,
        ADAMW,
        (5, 64, 512),
    ),
    "gru": Entry(
        partial(other.Recurrent, nn.GRU),
        partial(data.tokens, 64, 2000),
        data.language,
        ADAMW,
        (5, 64, 512),
    ),
    "ctc": Entry(
        other.Transcriber,
        partial(data.spectrograms, 40, 200, 20),
        data.transcribe,
        ADAMW,
        (5, 64, 1024),
    ),
    "contrastive": Entry(
        partial(other.mlp, 784, 1024, 256), digits, data.contrast, ADAMW, (5, 256, 4096)
    ),
    "gather": Entry(
        partial(nn.Linear, 64, 10000),
        partial(data.vectors, 64, 10000),
        data.gathered,
        ADAMW,
        (5, 256, 4096),
    ),
    "custom_function": Entry(other.CustomFunction, digits, data.classify, ADAMW, (5, 256, 16384)),
    "item": Entry(small_mlp, digits, data.guarded, ADAMW, (5, 256, 16384)),
    "numpy": Entry(small_mlp, digits, data.through_numpy, ADAMW, (5, 256, 16384)),
    "sparse_embedding": Entry(
        other.bag,
        partial(data.tokens, 20, 10, 4096),
        data.bag_of_words,
        {"optimizer": "sgd", "lr": 0.1},
        (5, 256, 16384),
    ),
    "experts": Entry(other.Experts, digits, data.classify, ADAMW, (5, 256, 8192), data_dependent=True),
    "packed_sequences": Entry(
        other.Packed,
        partial(data.lengths, 50, 64),
        data.packed,
        ADAMW,
        (5, 64, 2048),
        data_dependent=True,
    ),
}


def __getattr__(name: str) -> Callable[[], rb.Task]:
    """Give ``load_task`` a function for each entry."""
    if name not in ZOO:
        raise AttributeError(name)
    return partial(_task, name)


def _task(name: str) -> rb.Task:
    entry = ZOO[name]
    return rb.Task(
        name=name,
        model=entry.model,
        train_data=entry.examples(),
        valid_data=None,
        loss=entry.loss,
        recipe=rb.Recipe(batch_size=8, epochs=1, **entry.recipe),
    )
