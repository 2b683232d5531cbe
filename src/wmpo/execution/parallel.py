"""Sampling and learning over several processes (ranks), on one machine or many.

Rank 0 runs the algorithm and never learns that it is not alone: it holds a :class:`TeamSampler` and a learner
(:mod:`wmpo.execution.sharded`), or a trainer (:mod:`wmpo.execution.supervised`). The other ranks wait in
:meth:`Team.serve` for what it asks of all. Ranks come from ``torchrun`` (:func:`enlisted`), are started here
(:func:`spawned`), or are actors of Ray (:mod:`wmpo.execution.ray_backend`).

The policy is sharded from outside by FSDP2 over a mesh of copies x shards: one shard is plain data parallelism (DDP),
one copy is FSDP, and shards inside a machine with copies between machines is both. A minibatch carries its global
divisor, so gradients are summed and n ranks learn what one would.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from wmpo.division import check_gpus, check_sizes
from wmpo.execution.local import LocalSampler, TrainerPart, WorkerSpec
from wmpo.nn import best_device, train_in_float32
from wmpo.types import Rollouts, Starts, concatenate

if TYPE_CHECKING:
    from wmpo.execution.sharded import ShardedLearner

_IDLE = timedelta(days=30)
"""How long a rank waits for an order: rank 0 may be busy for hours with what needs only one process."""
Layout = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Of tensors by name."""


class Team:
    """The ranks of one training, as each of them sees it. ``sampler``, ``learner`` and ``trainer`` are its own."""

    sampler: LocalSampler
    learner: ShardedLearner
    trainer: TrainerPart

    def __init__(
        self, rank: int, size: int, *, local_rank: int, local_size: int, meeting: str, own_gpu: bool = False
    ) -> None:
        """``meeting``: where ranks find each other, a URL of ``torch.distributed``. ``own_gpu``: this process sees no
        GPU but its own, the first one. Raises ValueError, on all ranks, when one of their machines has too few GPUs."""
        gpus = torch.cuda.device_count()
        if local_rank < gpus:
            torch.cuda.set_device(local_rank)
        self.rank, self.size = rank, size
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
        self.device = best_device()
        self._orders = dist.new_group(backend="gloo", timeout=_IDLE)
        machines: list[Any] = [None] * size
        # All know of all: a rank that refused alone would leave the others waiting for it.
        dist.all_gather_object(machines, (local_size, gpus * (local_size if own_gpu else 1)), group=self._orders)
        self._local_sizes = [on_machine for on_machine, _ in machines]
        for on_machine, have in machines:
            check_gpus(on_machine, have)
        self._waiting = True

    def mesh(self, shards: int) -> DeviceMesh:
        """Copies x shards, see :func:`check_sizes`."""
        shape = self.check_sizes(shards)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("copies", "shards"))

    def check_sizes(self, shards: int) -> tuple[int, int]:
        """The same on every rank."""
        return check_sizes(self.size, self._local_sizes, shards)

    def each(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls ``function(team, *arguments)`` on every rank, with its own arguments; the results in order of ranks.

        Raises ValueError or FloatingPointError when one of them does, and RuntimeError when a rank has ended.
        """
        found: list[Any] = [None] * self.size
        self._waiting = False
        try:
            self._scatter([(function, own) for own in arguments])
            own = self._answer(function, arguments[0])
            dist.gather_object(None, found, group=self._orders)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"another process of this training has ended, see its message above ({error}); the same command goes "
                "on from the last iteration"
            ) from error
        self._waiting = True
        results = [own, *found[1:]]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same on every rank."""
        return self.each(function, [arguments] * self.size)

    def send(self, function: Callable[..., Any], tensors: Mapping[str, Tensor]) -> None:
        """Calls ``function(team, layout, tensors)`` on every rank, the last None for all but rank 0; see
        :func:`spread`."""
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        self.each(function, [(layout, tensors), *[(layout, None)] * (self.size - 1)])

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, which all call this at once."""
        dist.all_reduce(value)
        return value

    def forget(self) -> None:
        """Frees on all ranks what they hold for this stage; called by rank 0 alone."""
        self.call(_forget)

    def serve(self) -> None:
        """Does what rank 0 asks for, until it has no more to ask or has ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches rank 0 too, which then ends this one
        while (order := self._unless_alone(self._scatter, None)) is not None:
            self._unless_alone(dist.gather_object, self._answer(*order), None, group=self._orders)

    def _answer(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What a user can mend is an answer too; anything else ends this rank, and with it the others."""
        try:
            return function(self, *arguments)
        except (ValueError, FloatingPointError) as error:
            return error

    @staticmethod
    def _unless_alone(exchange: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """None when rank 0 has ended, for whatever reason it gave."""
        try:
            return exchange(*arguments, **named)
        except RuntimeError:
            return None

    def dismiss(self) -> None:
        """Ends the other ranks' ``serve``; called by rank 0 alone. Ranks that are not waiting end with it."""
        if self._waiting:
            self._scatter([None] * self.size)
        dist.destroy_process_group()

    def _scatter(self, orders: list[Any] | None) -> Any:
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, orders, group=self._orders)
        return mine[0]


def _forget(team: Team) -> None:
    for name in ("sampler", "learner", "trainer"):
        vars(team).pop(name, None)


@contextmanager
def spawned(size: int) -> Iterator[Team]:
    """A team of this process and ``size - 1`` new ones on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/ranks"
        threads = max(1, torch.get_num_threads() // size)
        check_gpus(size, torch.cuda.device_count())
        workers = torch.multiprocessing.start_processes(
            _work, (size, meeting, threads), nprocs=size - 1, join=False, daemon=True, start_method="spawn"
        )
        try:
            team = Team(0, size, local_rank=0, local_size=size, meeting=meeting)
            yield team
            team.dismiss()
            workers.join()
        finally:
            for process in workers.processes:
                process.terminate()
            if dist.is_initialized():
                dist.destroy_process_group()


def _work(index: int, size: int, meeting: str, threads: int) -> None:
    torch.set_num_threads(threads)
    Team(index + 1, size, local_rank=index + 1, local_size=size, meeting=meeting).serve()


@functools.cache
def enlisted() -> Team:
    """This process's place in the team that torchrun has started."""
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    team = Team(rank, size, local_rank=local_rank, local_size=local_size, meeting="env://")
    atexit.register(team.dismiss if rank == 0 else dist.destroy_process_group)
    return team


class TeamSampler:
    """A :class:`wmpo.protocols.Sampler`: starts are split by rows, results joined in order."""

    def __init__(self, team: Team, spec: WorkerSpec, sampler: LocalSampler) -> None:
        """``sampler``: that of rank 0."""
        self.team = team
        team.each(_take_sampler, [(sampler,), *[(spec,)] * (team.size - 1)])

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        rows = torch.arange(len(starts)).tensor_split(self.team.size)
        parts = self.team.each(_play, [(starts.rows(part), temperature, seed) for part in rows])
        return concatenate([part for part in parts if part is not None])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.team.each(_take_weights, [(weights,), *[(None,)] * (self.team.size - 1)])


def _take_sampler(team: Team, source: LocalSampler | WorkerSpec) -> None:
    team.sampler = source if isinstance(source, LocalSampler) else source.sampler()


def _play(team: Team, starts: Starts, temperature: float, seed: int) -> Rollouts | None:
    return team.sampler.run(starts, temperature, seed) if len(starts) else None


def _take_weights(team: Team, weights: Mapping[str, Tensor] | None) -> None:
    """One tensor after the other, from device to device."""
    policy = team.sampler.policy
    policy.load_state_dict({
        name: _from_first(team, None if weights is None else weights[name], own.shape, own.dtype)
        for name, own in policy.state_dict().items()
    })  # fmt: skip


def _from_first(team: Team, tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Rank 0's tensor on every rank's device."""
    if tensor is None:
        there = torch.empty(shape, dtype=dtype, device=team.device)
    else:
        there = tensor.to(team.device, dtype).contiguous()
    dist.broadcast(there, 0)
    return there


def gathered(
    team: Team, tensors: Mapping[str, Tensor], device: torch.device, types: Mapping[str, torch.dtype] | None = None
) -> dict[str, Tensor]:
    """Whole tensors on ``device`` of rank 0, of these types where some are given; elsewhere {}."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if team.rank == 0:
            whole[name] = full.detach().to(device, types[name] if types else None, copy=True)
    return whole


def spread(team: Team, layout: Layout, tensors: Mapping[str, Tensor] | None, like: Mapping[str, Tensor]) -> Any:
    """Rank 0's whole tensors, each cut as what it belongs to in ``like``: by its name, or without the last part."""
    return {
        name: sharded(
            _from_first(team, None if tensors is None else tensors[name], shape, dtype),
            like[name if name in like else name.rsplit(".", 1)[0]],
        )
        for name, (shape, dtype) in layout.items()
    }


def sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut as the weight is that it belongs to; counters of the optimiser stay as they are."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor.cpu()
    part = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    own = part.to_local().clone()  # a view would keep the whole tensor in memory
    return DTensor.from_local(own, part.device_mesh, part.placements, shape=part.shape, stride=part.stride())


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2 in place, block by block; gradients are summed over all ranks, in float32. Methods that networks compute
    with outside of their forward pass gather weights too. Each rank's part of what is trained is float32; a network
    that was made in bfloat16 is gathered, and computes, in that."""
    half = torch.bfloat16 if train_in_float32(module.parameters()) else None
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 cuts no others, such as those laid out channels last
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing works on it in place
    precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for stack in reversed(list(module.modules())):
        for block in stack if isinstance(stack, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh, mp_policy=precision)
    fully_shard(module, mesh=mesh, mp_policy=precision)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # Gloo has no other reduction with a factor
    for name in ("velocity", "imagine_frame"):
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
