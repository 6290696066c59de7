"""Cost of HoldMask per step of Hugging Face's Trainer: python benchmarks/huggingface.py [ROUNDS]

Two Trainers, with and without the callback, fine-tune the same BERT with half of its weights pruned (4 layers of width
256, 64 tokens, 16 examples per step), a few steps in turn. Printed are the medians over complete steps (data, forward,
backward, clipping, optimizer) and their ratio.
"""

import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from swamp import Mask, Seed
from swamp.integrations.huggingface import HoldMask
from swamp.training.rng import isolated

STEPS = 6
LENGTH = 64


class Clock(TrainerCallback):
    """Seconds between the ends of consecutive steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if state.global_step > 1:
            self.seconds.append(now - self.last)
        self.last = now


def build() -> Any:
    config = BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=LENGTH,
    )
    with isolated(Seed(0)):
        model = BertForSequenceClassification(config)
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in Mask.ones(model).items()})
    mask.apply_(model)
    return model


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    words = torch.randint(0, 1000, (16 * STEPS, LENGTH), generator=Seed(0).generator())
    data = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(words)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=16,
            max_steps=STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        ways: dict[str, tuple[Any, Clock, list[Any]]] = {}
        for name, holding in (("without", False), ("with", True)):
            clock = Clock()
            ways[name] = build(), clock, [clock, *([HoldMask()] if holding else [])]
        for _ in range(rounds):
            for model, _, callbacks in ways.values():
                Trainer(model, settings, train_dataset=data, callbacks=callbacks).train()
    middle = {name: statistics.median(clock.seconds) for name, (_, clock, _) in ways.items()}
    for name, seconds in middle.items():
        print(f"{name:>8}: {1000 * seconds:.1f} ms per step")
    print(f"   ratio: {middle['with'] / middle['without']:.3f}")


if __name__ == "__main__":
    main()
