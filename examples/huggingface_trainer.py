"""Prune a transformer with your own Hugging Face Trainer, save it with a model card, and fine-tune the sparse model.

python examples/huggingface_trainer.py [FOLDER]  (takes seconds; model, tokenizer and text are generated, nothing is
downloaded; needs pip install 'swamp[huggingface]')
"""

import random
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import swamp
from swamp.backends import TrainJob
from swamp.integrations.huggingface import HoldMask, backend
from swamp.pretrained import from_pretrained, save_pretrained

GOOD, BAD = ["fine", "lovely", "bright", "clever", "warm"], ["dull", "broken", "grim", "silly", "cold"]
OTHER = ["the", "a", "film", "book", "day", "it", "was", "and", "very", "quite"]


def reviews(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Random sentences; the label is 1 if a sentence has more good words than bad words."""
    draw = random.Random(seed)
    sentences = [[draw.choice(GOOD + BAD + OTHER) for _ in range(9)] for _ in range(count)]
    return [" ".join(s) for s in sentences], [int(sum((w in GOOD) - (w in BAD) for w in s) > 0) for s in sentences]


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *GOOD, *BAD, *OTHER])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def build_model(words: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
        )
    )


def arguments(folder: Path, **others) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **others,
    )


def main(folder: Path) -> None:
    tokenizer = build_tokenizer()

    def encoded(count: int, seed: int) -> swamp.TensorData:
        text, labels = reviews(count, seed)
        fields = tokenizer(text, padding="max_length", max_length=12, return_tensors="pt")
        inputs = {name: fields[name] for name in ("input_ids", "attention_mask")}
        return swamp.TensorData(inputs, torch.tensor(labels))

    task = swamp.Task(encoded(512, 1), encoded(256, 2), encoded(128, 3))
    fields, labels = task.train.inputs, task.train.targets
    rows = [
        {**{name: values[i] for name, values in fields.items()}, "labels": labels[i]} for i in range(len(task.train))
    ]

    def make(job: TrainJob) -> Trainer:
        return Trainer(job.model, arguments(folder / job.name), train_dataset=rows)

    # A Trainer from `make` trains each particle of each cycle.
    model = build_model(len(tokenizer))
    training = swamp.Training(epochs=4, batch_size=32, lr=3e-3)
    trained = backend(model, task, make)
    sparse = swamp.prune(model, task, sparsity=0.75, particles=2, cycles=2, training=training, backend=trained)
    for cycle in sparse.cycles:
        print(f"sparsity {cycle.sparsity:.3f}: accuracy {cycle.metrics.test['accuracy']:.3f}")

    save_pretrained(sparse, folder / "published", method="swamp", tokenizer=tokenizer)
    print((folder / "published" / "README.md").read_text().split("```")[0])

    # Fine-tune the published model and keep its zeros.
    published = from_pretrained(folder / "published")
    settings = arguments(folder / "fine-tuned", max_steps=20)
    Trainer(published.model, settings, train_dataset=rows, callbacks=[HoldMask()]).train()
    print(f"zeros kept: {swamp.Mask.from_zeros(published.model, swamp.Scope()) == published.mask}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
