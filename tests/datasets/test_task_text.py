"""Text: what becomes of it, what is refused, and that small transformers learn from it without any extra."""

import math
from dataclasses import replace

import pytest
import torch

from swamp.algorithms import Plan
from swamp.algorithms.loop import cycles
from swamp.datasets import build_network, build_problem, network_for
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.datasets.text.corpus import Texts, classification, language, regression
from swamp.datasets.text.reviews import sentences
from swamp.datasets.text.tokenizer import Words
from swamp.errors import SwampError
from swamp.masks import Mask, Scope
from swamp.training import Seed, TokenData, Training, evaluate, predict
from swamp.training.loop import fit
from swamp.training.metrics import bits_per_byte
from swamp.training.rng import isolated

WORDS = DataOptions(examples=600, text=TextOptions(tokenizer="words", length=32))


def reviews(task: str = "movie-reviews", model: str = "encoder-1-32", options: DataOptions = WORDS) -> Problem:
    return build_problem(task, model, options, Seed(0))


def test_the_reviews_are_those_that_were_published() -> None:
    texts = sentences()
    assert len(texts) == 10_605
    assert texts.first[2] == "Effective but too tepid biopic"
    assert float(texts.targets[2]) == pytest.approx(-0.6)
    assert int((texts.targets > 0).sum()) == 5242


def test_near_neutral_reviews_are_left_out_and_the_rest_is_about_even() -> None:
    problem = reviews(options=DataOptions(text=TextOptions(tokenizer="words")))
    task = problem.task
    assert task.validation is not None
    assert [len(data) for data in (task.train, task.validation, task.test)] == [5111, 568, 1400]
    assert isinstance(task.train, TokenData)
    assert 0.4 < float(task.train.targets.double().mean()) < 0.6
    everything = reviews(options=DataOptions(text=TextOptions(neutral=0.0))).task
    assert len(everything.test) == 2121 - int((reviews("movie-reviews-rating").task.test.targets == 0).sum())


def test_tokens_of_bytes_and_words() -> None:
    assert Words().encode(["aé"], None, 9) == {"input_ids": [[1, 4 + 97, 4 + 0xC3, 4 + 0xA9]]}
    words = Words.of(["A good, good film", "a bad film!"])
    assert sorted(words.known) == ["a", "film", "good"]
    assert words.stream(["A bad FILM"]) == [[words.known["a"], 3, words.known["film"]]]
    pairs = Words().encode(["abcdef", "a"], ["xy", "uvwxyz"], 6)["input_ids"]
    assert [bytes(i - 4 for i in one if i > 3) for one in pairs] == [b"abxy", b"auvw"]
    assert all(one[0] == 1 and 2 in one and len(one) == 6 for one in pairs)


def test_bits_per_byte_of_two_tokens_by_hand() -> None:
    # Two tokens of two bytes each, one of probability 1/4 and one of 1/16: 6 bits on 4 bytes.
    assert bits_per_byte(torch.tensor([[0.25, 0.0625]]).log(), torch.full((1, 2), 2.0)) == pytest.approx(1.5)


def test_blocks_of_a_language_model_predict_each_token_once() -> None:
    texts = Texts(["abc", "de"], torch.zeros(2))
    problem = language(texts, texts, DataOptions(validation=0, text=TextOptions(length=2)), Seed(0))
    (inputs, weights) = next(problem.task.test.in_order(9))
    assert inputs["input_ids"].tolist() == [[101, 102, 103], [103, 2, 104], [104, 105, 2]]
    assert weights.unique().tolist() == [1.0]


def test_padding_changes_nothing() -> None:
    problem = reviews()
    with isolated(Seed(0)):
        model = network_for(problem, "encoder-2-64").eval()
    inputs, _ = next(problem.task.test.in_order(8))
    alone = [
        model(ids[alive.bool()][None], alive[alive.bool()][None]) for ids, alive in zip(*inputs.values(), strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), model(**inputs))


def test_a_decoder_never_looks_ahead_and_its_tied_weight_stays_dense() -> None:
    with isolated(Seed(0)):
        model = network_for(reviews("movie-reviews-text", "decoder-2-32"), "decoder-2-32").eval()
    ids = torch.randint(4, 200, (2, 10), generator=Seed(1).generator())
    changed = ids.clone()
    changed[:, 6:] = 5
    torch.testing.assert_close(model(ids)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(ids)[:, 6:], model(changed)[:, 6:])
    mask = Mask.ones(model, Scope())
    assert len(mask) == 2 * 6
    assert all(name.startswith("decoder.blocks.") for name in mask)


def test_the_head_stays_dense_unless_asked_for() -> None:
    model = network_for(reviews(), "encoder-1-32")
    assert "head.weight" not in Mask.ones(model, Plan().scope)
    assert "head.weight" in Mask.ones(model, Plan(prune_output_layer="yes").scope)
    plain = build_network("mlp-8", (4,), 2)
    assert "output.weight" in Mask.ones(plain, Plan().scope)
    assert "output.weight" not in Mask.ones(plain, Plan(prune_output_layer="no").scope)


@pytest.mark.filterwarnings("ignore:.* of the .* parameters are prunable")  # embeddings
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "metric"),
    [
        ("movie-reviews", "encoder-1-32", "nll"),
        ("movie-reviews-rating", "encoder-1-32", "rmse"),
        ("movie-reviews-text", "decoder-1-32", "bits_per_byte"),
    ],
)
def test_swamp_runs_on_every_kind_of_text_task(task: str, model: str, metric: str) -> None:
    tokenizer = "bytes" if task.endswith("text") else "words"
    examples = 160 if tokenizer == "bytes" else 600
    problem = reviews(task, model, DataOptions(examples=examples, text=TextOptions(tokenizer=tokenizer, length=32)))
    problem = replace(problem, task=replace(problem.task, test=problem.task.test.subset(torch.arange(128))))
    with isolated(Seed(0)):
        network = network_for(problem, model)
    training = Training(epochs=2, batch_size=32, optimizer="adamw", lr=3e-3, schedule="linear", swa_fraction=0.5)
    plan = Plan(densities=(1, 0.3), particles=(2,), ticket_epochs=0.5, barrier_points=1, barrier_threshold=1)
    untrained = evaluate(network, problem.task, problem.task.test)
    records = list(cycles(network, problem.task, plan, training))
    assert records[-1].mask.density == pytest.approx(0.3, abs=1e-3)
    assert records[0].metrics.test[metric] < untrained[metric]
    assert records[-1].barrier is not None


def test_a_training_resumed_in_mid_epoch_sees_the_batches_it_would_have_seen() -> None:
    problem = reviews()
    training = Training(epochs=1, batch_size=32, lr=0.1, swa_fraction=0)
    with isolated(Seed(0)):
        model = network_for(problem, "encoder-1-32")
    whole = fit(network_for(problem, "encoder-1-32"), problem.task, training, Seed(0), last=1)
    assert whole.steps == 1
    kept: list = []

    def watch(step: int, total: int, snapshot) -> None:
        if step == 7:
            kept.append(snapshot())

    uninterrupted = fit(model, problem.task, training, Seed(3), on_step=watch)
    resumed = fit(model, problem.task, training, Seed(3), resume=kept[0])
    assert all(torch.equal(value, resumed.weights[name]) for name, value in uninterrupted.weights.items())


def test_an_ensemble_of_regressions_is_their_mean() -> None:
    task = reviews("movie-reviews-rating").task
    torch.testing.assert_close(task.combine([torch.tensor([1.0]), torch.tensor([2.0])]).float(), torch.tensor([1.5]))
    halves = reviews("movie-reviews-text", "decoder-1-32").task.combine(
        [torch.tensor([0.25]).log(), torch.tensor([0.75]).log()]
    )
    assert float(halves.exp()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("first", "targets", "message"),
    [
        ([], [], "no text"),
        (["a", " "], [0, 1], "1 of 2 texts are empty, the first in example 1"),
        (["a", "b"], [0, 2], "labels range from 0 to 2, expected 0 to 1"),
        (["a", "b"], [-1, 0], "labels range from -1"),
    ],
)
def test_texts_and_labels_that_cannot_be_are_refused(first: list[str], targets: list[int], message: str) -> None:
    options = DataOptions(validation=0)

    def build() -> None:
        texts = Texts(first, torch.tensor(targets))
        classification(texts, texts, 2, options, Seed(0))

    with pytest.raises(SwampError, match=message):
        build()


def test_numbers_that_are_not_finite_are_refused() -> None:
    texts = Texts(["a", "b"], torch.tensor([1.0, math.nan]))
    with pytest.raises(SwampError, match="not finite"):
        regression(texts, texts, DataOptions(validation=0), Seed(0))


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("movie-reviews", "mlp-10", "takes numbers"),
        ("movie-reviews", "decoder-1-32", "use encoder-1-32"),
        ("movie-reviews-text", "encoder-1-32", "use decoder-1-32"),
        ("movie-reviews", "encoder-1-33", "multiple of 32"),
        ("digits", "encoder-1-32", "takes text"),
    ],
)
def test_networks_that_do_not_fit_the_task_are_refused(task: str, model: str, message: str) -> None:
    problem = reviews(task, model, DataOptions())
    with pytest.raises(SwampError, match=message):
        network_for(problem, model)


@pytest.mark.parametrize("options", [{"length": 1}, {"neutral": 1.0}, {"columns": ("a", "b", "c")}])
def test_options_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(SwampError, match=next(iter(options))):
        TextOptions(**options)


def test_evaluation_is_independent_of_how_many_at_once() -> None:
    problem = reviews()
    with isolated(Seed(0)):
        model = network_for(problem, "encoder-1-32")
    one, two = (predict(model, problem.task, problem.task.test, examples=100, batch_size=size) for size in (16, 1024))
    torch.testing.assert_close(one, two)
    assert evaluate(model, problem.task, problem.task.test, examples=100)["nll"] > 0
