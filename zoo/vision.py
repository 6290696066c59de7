"""Networks of timm, segmentation_models_pytorch, diffusers and torch_geometric, as their documentation builds them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import swamp
from entry import Entry, images, integers, random


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=4, **options)

    return make


def _segmenter(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)("resnet18", encoder_weights=None, classes=3)

    return make


def _segmentation() -> swamp.Task:
    data = random(8, 3, 32, 32), integers(3, 8, 32, 32)
    return swamp.Task.of(train=data, test=data)


def _denoiser() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def _diffusion() -> swamp.Task:
    pictures = {"clean": random(8, 1, 16, 16), "noise": random(8, 1, 16, 16, seed=1), "time": integers(1000, 8)}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        noisy = batch["clean"] + batch["noise"] * (batch["time"] / 1000)[:, None, None, None]
        return F.mse_loss(model(noisy, batch["time"]).sample, batch["noise"])

    return swamp.Task.custom(pictures, loss, lambda model: {"loss": loss(model, pictures)})


def _graph_network(layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torch_geometric.nn import global_mean_pool, models

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = getattr(models, layer)(5, 16, 2), nn.Linear(16, 3)

            def forward(self, graphs: Any) -> Tensor:
                return self.head(global_mean_pool(self.body(graphs.x, graphs.edge_index), graphs.batch))

        return Network()

    return make


def _graphs() -> swamp.Task:
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    graphs = [
        Data(x=random(4 + n % 3, 5, seed=n), edge_index=integers(4 + n % 3, 2, 9, seed=n), y=integers(3, 1, seed=n))
        for n in range(16)
    ]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch), batch.y)

    whole = next(iter(DataLoader(graphs, batch_size=16)))
    return swamp.Task.custom(
        DataLoader(graphs, batch_size=8, shuffle=True),
        loss,
        lambda model: {"accuracy": (model(whole).argmax(1) == whole.y).float().mean()},
    )


_TIMM: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet18", 32, {}),
    ("convnext_atto", 32, {}),
    ("efficientnet_lite0", 32, {}),
    ("mobilenetv3_small_050", 32, {}),
    ("vit_tiny_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2}),
    ("swin_tiny_patch4_window7_224", 32, {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2)}),
    ("deit_tiny_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2}),
    ("regnetx_002", 32, {}),
    ("densenet121", 32, {"block_config": (2, 2), "growth_rate": 8}),
    ("ghostnet_050", 64, {}),
    ("lcnet_050", 32, {}),
)
ENTRIES = (
    *(Entry(name, "timm", _timm(name, **options), lambda side=side: images(side)) for name, side, options in _TIMM),
    Entry("GCN", "torch_geometric", _graph_network("GCN"), _graphs, how="Task.custom, PyG's loader"),
    Entry("GAT", "torch_geometric", _graph_network("GAT"), _graphs, how="Task.custom, PyG's loader"),
    Entry("GraphSAGE", "torch_geometric", _graph_network("GraphSAGE"), _graphs, how="Task.custom, PyG's loader"),
    Entry("UNet2DModel", "diffusers", _denoiser, _diffusion, how="Task.custom, dicts of tensors"),
    Entry("U-Net", "segmentation_models_pytorch", _segmenter("Unet"), _segmentation),
    Entry("FPN", "segmentation_models_pytorch", _segmenter("FPN"), _segmentation),
)
