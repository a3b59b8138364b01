"""Lightning Fabric as a run's configuration asks for it: devices, nodes, precision."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..encoder import Encoder
from ..errors import StarError
from .config import TrainingConfig

if TYPE_CHECKING:  # eval, too, compares precisions, and needs no Fabric
    from lightning_fabric import Fabric


def launched(config: TrainingConfig) -> Fabric:
    """Fabric with all its processes running."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    strategy: Any = "auto"
    if config.processes > 1:
        # a loss may leave parts of the student out: layers above its highest one, all but the attention of the last
        strategy = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
        precision="32-true" if config.precision == 32 or config.precision == "auto" else config.precision,
    )
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # what torchrun or Slurm started is not what the recipe asks for
        raise StarError(f"training.devices, training.nodes: {' '.join(str(error).split())}") from None
    if fabric.world_size != config.processes:
        raise StarError(
            f"training.devices x training.nodes is {config.processes}, but {fabric.world_size} processes were started"
        )
    return fabric


def one_device(config: TrainingConfig) -> torch.device:
    """Where a single process computes, in the loop's absence."""
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def shard(model: nn.Module, fabric: Fabric) -> None:
    """Divide the weights of a frozen encoder's layers among all processes; the rest of it is whole in each. Every
    process has to run it equally often from here on: a layer's weights are gathered from all each time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    # from the CPU's memory a layer at a time: no device has to hold all of them
    for layer in cast(nn.ModuleList, model.layers):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def compiled(model: nn.Module, backend: str | None) -> None:
    """Have torch.compile make the forward pass of every encoder in ``model``, for batches of any size. What it cannot
    make runs as it is, with torch's warning: its arithmetic on unknown sizes fails now and then (torch 2.11)."""
    torch._dynamo.config.suppress_errors = True
    for module in model.modules():
        if isinstance(module, Encoder):
            module.compile(backend=backend, dynamic=True)


def everyones(fabric: Fabric, value: Any) -> list[Any]:
    """The value of each process."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
