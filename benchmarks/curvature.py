"""Hessian products, traces and eigenvalues compared with curvlinops: `python benchmarks/curvature.py`.

Run it in a separate environment: curvlinops requires torchvision (through backpack), although not for this:

    pip install -e . && pip install --no-deps curvlinops-for-pytorch backpack-for-pytorch einconv unfoldNd
    pip install einops linear_operator opt-einsum tqdm

Float64, a pruned perceptron with and without BatchNorm. Products, eigenvalues and the block of active weights must
agree up to rounding; the trace, up to its standard error.
"""

import warnings
from time import process_time

import torch
from torch import nn

from swamp.analysis import Hessian, hutchinson
from swamp.analysis.hessian import restricted
from swamp.analysis.spectrum import lanczos, top_eigenvalues
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData
from swamp.training.rng import isolated


def problem(normed: bool) -> tuple[nn.Module, Task, Mask]:
    with isolated(Seed(0)):
        layers = [nn.Linear(20, 30), nn.BatchNorm1d(30) if normed else nn.Identity(), nn.ReLU(), nn.Linear(30, 5)]
        model = nn.Sequential(*layers).double()
        data = TensorData(torch.randn(512, 20).double(), torch.randint(0, 5, (512,)))
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    mask = Mask({name: value.abs() > value.abs().median() for name, value in weights.items()})
    mask.apply_(model)
    return model, Task(data, data), mask


def compare(normed: bool) -> None:
    from curvlinops import HessianLinearOperator

    model, task, mask = problem(normed)
    ours = Hessian(model, task, model.state_dict(), mask, examples=512)
    # The Hessian re-estimates BatchNorm statistics in its copy of the model: curvlinops gets that copy.
    batches = list(task.train.in_order(128))
    theirs = HessianLinearOperator(ours.model, nn.CrossEntropyLoss(), list(ours.model.parameters()), batches)
    vectors = torch.randn(8, ours.size, generator=torch.Generator().manual_seed(1)).double()
    start = process_time()
    mine = ours(vectors)
    middle = process_time()
    expected = (theirs @ vectors.T).T.detach()
    end = process_time()
    written = (theirs @ torch.eye(ours.size).double()).detach()
    values = torch.linalg.eigvalsh(written)
    found = top_eigenvalues(lanczos(ours, vectors[:1], 200))
    kept = ours.active
    block = restricted(ours, kept)(torch.eye(ours.size).double())
    trace = hutchinson(ours, tolerance=0.0, max_probes=256)
    diagonal = written.diag()
    print(f"BatchNorm {normed}, {ours.size} parameters, {int(kept.sum())} active")
    print(f"  products, largest difference     {float((mine - expected).abs().max()):.1e}")
    print(f"  block of active weights          {float((block - written * kept * kept[:, None]).abs().max()):.1e}")
    apart = max(abs(one.value - float(value)) for one, value in zip(found, values[-5:].flip(0), strict=True))
    print(f"  five largest eigenvalues         {apart:.1e}")
    for name, part, exact in ("whole", trace.whole, diagonal.sum()), ("active", trace.active, diagonal[kept].sum()):
        print(f"  trace, {name}: exact {float(exact):.5f}, {part.probes} probes {part.mean:.5f} +- {part.error:.5f}")
    print(f"  seconds for 8 products: ours {middle - start:.3f}, curvlinops {end - middle:.3f}")


if __name__ == "__main__":
    # Forward mode of torch 2.13 uses a deprecated function itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    for normed in (False, True):
        compare(normed)
