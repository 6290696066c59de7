import copy
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from swamp import Mask, MaskError, Plan, Scope, Seed, SwampError, Task, TensorData, Training, cycles
from swamp.backends import Sequential, Ticket, TrainJob, TrainRequest
from swamp.integrations.huggingface import HoldMask, backend
from swamp.training.rng import isolated

from .ddp import on_two_ranks

WORDS, LENGTH, CLASSES = 16, 6, 3
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1)]
TRAINING = Training(epochs=4, batch_size=8, lr=0.01, swa_fraction=0.5)


def small_bert() -> Any:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with isolated(Seed(3)):
        return BertForSequenceClassification(config)


@pytest.fixture
def bert() -> Any:
    return small_bert()


def examples(count: int = 48) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(count)
    words = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": int(row.sum()) % CLASSES} for row in words]


def arguments(folder: Any, **others: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "num_train_epochs": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        **others,
    }
    return TrainingArguments(str(folder), **settings)


def half(model: Any) -> Mask:
    return Mask({name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in Mask.ones(model).items()})


@pytest.fixture
def sparse(bert) -> Any:
    half(bert).apply_(bert)
    return bert


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_fine_tuning_a_sparse_model_keeps_its_zeros_and_trains_the_rest(optim, sparse, tmp_path):
    before = copy.deepcopy(sparse.state_dict())
    options = {"optim": optim, "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    Trainer(sparse, arguments(tmp_path, **options), train_dataset=examples(), callbacks=[HoldMask()]).train()
    mask = half(sparse)
    assert Mask.from_zeros(sparse, Scope()) == mask
    for name, alive in mask.items():
        assert (sparse.state_dict()[name] != before[name])[alive].any(), name
    assert not any(p._post_accumulate_grad_hooks for p in sparse.parameters())


@pytest.mark.slow
def test_without_the_callback_the_zeros_are_lost(sparse, tmp_path):
    Trainer(sparse, arguments(tmp_path), train_dataset=examples()).train()
    assert Mask.from_zeros(sparse).density > 0.9


@pytest.mark.slow
def test_the_clipped_norm_is_the_norm_of_the_active_weights(sparse, tmp_path):
    norms: list[float] = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            alive = [p.grad[half(model)[n]] if n in half(model) else p.grad for n, p in model.named_parameters()]
            norms.append(float(torch.cat([gradient.flatten() for gradient in alive]).norm()))

    settings = arguments(tmp_path, max_grad_norm=1e-3, max_steps=3)
    Trainer(sparse, settings, train_dataset=examples(), callbacks=[HoldMask(), Norms()]).train()
    # Clipping with the dense norm would leave the sparse one below.
    assert norms == pytest.approx([1e-3] * 3, rel=2e-3)


@pytest.mark.slow
def test_a_checkpoint_is_sparse_and_training_resumes_with_its_zeros(sparse, tmp_path):
    start = copy.deepcopy(sparse)
    settings = {"save_strategy": "steps", "save_steps": 6, "eval_strategy": "epoch"}
    data = {"train_dataset": examples(), "eval_dataset": examples(16), "callbacks": [HoldMask()]}
    Trainer(sparse, arguments(tmp_path, **settings), **data).train()
    again = copy.deepcopy(start)
    data["callbacks"] = [HoldMask()]
    Trainer(again, arguments(tmp_path, **settings), **data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert Mask.from_zeros(again, Scope()) == half(again)
    for name, value in sparse.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=1e-6), name


@pytest.mark.slow
def test_a_dense_model_without_a_mask_is_refused(bert, tmp_path):
    with pytest.raises(SwampError, match="has no zeros to keep"):
        Trainer(bert, arguments(tmp_path), train_dataset=examples(), callbacks=[HoldMask()]).train()


@pytest.mark.slow
def test_single_zeros_in_a_bias_do_not_make_a_model_sparse(bert, tmp_path):
    with torch.no_grad():
        bert.classifier.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(SwampError, match="has no zeros to keep"):
        Trainer(bert, arguments(tmp_path), train_dataset=examples(), callbacks=[HoldMask()]).train()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_an_optimizer_replaced_after_training_began_is_found_at_its_first_step(sparse, tmp_path):
    class Replaces(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            trainer.optimizer = trainer.accelerator.prepare(torch.optim.SGD(sparse.parameters(), lr=0.1))

    trainer = Trainer(sparse, arguments(tmp_path), train_dataset=examples(), callbacks=[HoldMask(), Replaces()])
    with pytest.raises(MaskError, match=r"replaced trainer\.optimizer"):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_a_weight_written_to_is_found_at_the_next_evaluation(sparse, tmp_path):
    class Writes(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.bert.encoder.layer[0].output.dense.weight.add_(1)

    settings = arguments(tmp_path, eval_strategy="epoch")
    callbacks = [HoldMask(), Writes()]
    trainer = Trainer(sparse, settings, train_dataset=examples(), eval_dataset=examples(16), callbacks=callbacks)
    with pytest.raises(MaskError, match=r"pruned weights of 'bert\.encoder.*' are not zero"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_parameters_are_refused_by_name(kind, sparse, tmp_path, monkeypatch):
    trainer = Trainer(sparse, arguments(tmp_path), train_dataset=examples())
    trainer.train()
    from accelerate.utils import DistributedType

    monkeypatch.setitem(trainer.optimizer.accelerator_state._shared_state, "distributed_type", DistributedType[kind])
    callback = HoldMask()
    with pytest.raises(SwampError, match=f"does not support parameters sharded by {kind}"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=sparse, optimizer=trainer.optimizer)


class TrainersOrder(TensorData):
    """The batches in the order in which a Trainer of the particle's seed takes them."""

    def shuffled(self, batch_size, seed, epoch, first=0):
        from accelerate.data_loader import SeedableRandomSampler

        sampler = SeedableRandomSampler(range(len(self)), data_seed=seed.number() % 2**31)
        sampler.set_epoch(epoch)
        order = torch.tensor([*sampler])
        for step in range(first, self.steps(batch_size)):
            yield self.gather(order[step * batch_size : (step + 1) * batch_size])


@pytest.fixture
def ours() -> Task:
    rows = examples()
    words, labels = torch.stack([row["input_ids"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    data = TrainersOrder({"input_ids": words}, labels)
    return Task(data, data)


def make_in(folder: Any, **others: Any) -> Any:
    def make(job: TrainJob) -> Trainer:
        # swamp's decay counts for all parameters, the Trainer's not for biases and normalisation.
        settings = arguments(folder / job.name, optim="sgd", max_grad_norm=0.0, **others)
        return Trainer(job.model, settings, train_dataset=examples())

    return make


@pytest.mark.slow_cases("span0")
@pytest.mark.parametrize("span", [{}, {"last": 10}, {"first": 3}])
def test_particles_are_those_of_the_librarys_own_loop(span, bert, ours, tmp_path):
    model, ticket = bert.double(), Ticket(bert.double().state_dict(), 0)
    theirs = backend(model, ours, make_in(tmp_path)).train(
        TrainRequest(ticket, half(model), TRAINING, SEEDS[: 1 if span else 2], **span)
    )
    first = span.get("first", 0)
    shifted = replace(ours, train=Shifted(ours.train.inputs, ours.train.targets, first)) if first else ours
    plain = Sequential(model, shifted, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    own = plain.train(TrainRequest(ticket, half(model), TRAINING, SEEDS[: 1 if span else 2], **span))
    for mine, library in zip(theirs, own, strict=True):
        assert (mine.index, mine.steps, mine.averaged) == (library.index, library.steps, library.averaged)
        for name, value in library.weights.items():
            assert torch.allclose(mine.weights[name], value, rtol=0, atol=1e-10), name


class Shifted(TrainersOrder):
    """A Trainer begins with its first batch, wherever its schedule begins."""

    def __init__(self, inputs, targets, by):
        super().__init__(inputs, targets)
        object.__setattr__(self, "by", by)

    def shuffled(self, batch_size, seed, epoch, first=0):
        for step in range(first, self.steps(batch_size)):
            at = epoch * self.steps(batch_size) + step - self.by
            yield next(super().shuffled(batch_size, seed, *divmod(at, self.steps(batch_size))))


@pytest.mark.slow
def test_a_whole_run_prunes_and_its_particles_differ(bert, ours, tmp_path):
    plan = Plan(sparsity=0.75, cycles=2, particles=(2,), ticket_epochs=1, barrier_points=1)
    trained = backend(bert, ours, make_in(tmp_path))
    records = [*cycles(bert, ours, plan, replace(TRAINING, epochs=2), backend=trained)]
    assert [record.mask.nnz for record in records] == [record.mask.nnz for record in records][:1] + [
        math.floor(records[0].mask.prunable * share) for share in (0.5, 0.25)
    ]
    for record in records:
        record.mask.require_zeros(record.weights)
        one, two = record.particles
        assert (one.steps, two.steps) == (12, 12)
        assert one.loss != two.loss


@pytest.mark.slow
def test_the_trainers_own_schedule_is_left_alone_where_asked(bert, ours, tmp_path):
    seen: list[float] = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append(optimizer.param_groups[0]["lr"])

    def make(job: TrainJob) -> Trainer:
        trainer = make_in(tmp_path, lr_scheduler_type="linear")(job)
        trainer.add_callback(Rates())
        return trainer

    trained = backend(bert, ours, make, rates=False)
    trained.train(
        TrainRequest(Ticket(bert.state_dict(), 0), Mask.ones(bert), replace(TRAINING, lr=0.1), SEEDS[:1], last=6)
    )
    assert seen == pytest.approx([0.01 * (1 - step / 24) for step in range(6)])
    with pytest.raises(SwampError, match="cannot start in the middle"):
        trained.train(TrainRequest(Ticket(bert.state_dict(), 0), Mask.ones(bert), TRAINING, SEEDS[:1], first=2))


@pytest.mark.parametrize(
    ("training", "others", "message"),
    [
        ({"batch_size": 16}, {}, "uses 8 examples per step"),
        ({"lr": 0.1}, {}, r"lr=0\.1\) and TrainingArguments\(learning_rate=0\.01\) differ"),
        ({"clip": 1.0}, {}, "Set max_grad_norm there"),
        ({"sam": 0.05}, {}, "no sharpness-aware steps"),
        ({}, {"data_seed": 1}, "omit data_seed"),
        ({}, {"per_device_train_batch_size": 4}, "uses 4 examples per step"),
    ],
)
def test_what_the_trainer_would_not_do_is_refused(training, others, message, bert, ours, tmp_path):
    with pytest.raises(SwampError, match=message):
        backend(bert, ours, make_in(tmp_path, **others)).train(
            TrainRequest(Ticket(bert.state_dict(), 0), half(bert), replace(TRAINING, **training), SEEDS)
        )


def test_data_that_is_not_the_tasks_is_refused(bert, ours, tmp_path):
    def make(job: TrainJob) -> Trainer:
        return Trainer(job.model, arguments(tmp_path), train_dataset=examples(40))

    with pytest.raises(SwampError, match="takes 5 steps per epoch, the task 6"):
        backend(bert, ours, make).train(TrainRequest(Ticket(bert.state_dict(), 0), half(bert), TRAINING, SEEDS))


SHARED = {
    "max_grad_norm": 0.1,
    "weight_decay": 0.1,
    "gradient_accumulation_steps": 2,
    # Else the Trainer's own gradients on two ranks, of a dense model too, are twice as large (transformers 5).
    "average_tokens_across_devices": False,
}


@pytest.mark.slow
def test_two_ranks_under_ddp_keep_the_zeros_and_train_what_one_would(tmp_path):
    def work() -> None:
        # What earlier tests found: one process.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        model = small_bert().double()
        half(model).apply_(model)
        settings = arguments(tmp_path, per_device_train_batch_size=4, ddp_backend="gloo", **SHARED)
        Trainer(model, settings, train_dataset=examples(), callbacks=[HoldMask()]).train()
        save_file(dict(model.state_dict()), tmp_path / f"{settings.local_process_index}.safetensors")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_two_ranks(work)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    model = small_bert().double()
    half(model).apply_(model)
    alone = arguments(tmp_path, per_device_train_batch_size=8, **SHARED)
    Trainer(model, alone, train_dataset=examples(), callbacks=[HoldMask()]).train()
    for name, value in model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, rtol=0, atol=1e-12)
    half(model).require_zeros(ranks[0])


@pytest.mark.slow_cases("adamw_torch")
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_zeros_are_kept_in_bfloat16(optim, sparse, tmp_path):
    before = copy.deepcopy(sparse.state_dict())
    Trainer(
        sparse, arguments(tmp_path, bf16=True, optim=optim), train_dataset=examples(), callbacks=[HoldMask()]
    ).train()
    assert Mask.from_zeros(sparse, Scope()) == half(sparse)
    assert all(value.dtype == torch.float32 for value in sparse.state_dict().values())
    assert not torch.equal(sparse.state_dict()["classifier.weight"], before["classifier.weight"])


def test_a_training_after_an_interrupted_one_is_held_once(sparse, tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    held = HoldMask()
    trainer = Trainer(sparse, arguments(tmp_path), train_dataset=examples(), callbacks=[held, Stops()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Stops)
    trainer.train()
    assert held.steps == trainer.state.global_step
    assert not any(p._post_accumulate_grad_hooks for p in sparse.parameters())
