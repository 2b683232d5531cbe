"""The interfaces that everything else is written against. Dimension letters: :mod:`wmpo.types`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.types import ChunkStep, Minibatch, Observation, Rollouts, Starts

Context = Any  # what a world model remembers between chunks: opaque, so latents and pixels look the same


class ChunkEnv(Protocol):
    """Real or imagined. Finished rows freeze (their frames repeat, ``steps`` = 0); there is no autoreset."""

    chunk_size: int
    max_chunks: int

    def reset(self, starts: Starts) -> Observation: ...

    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep: ...


class Codec(Protocol):
    """From a policy's tokens, [B, N] or [B, N, ...], to actions in the environment's units."""

    @property
    def chunk_size(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    def decode(self, tokens: Tensor) -> Float[Tensor, "B K A"]: ...


class BoundedCodec(Codec, Protocol):
    """All that it decodes lies between ``low`` and ``high``."""

    @property
    def low(self) -> tuple[float, ...]: ...

    @property
    def high(self) -> tuple[float, ...]: ...

    @property
    def num_tokens(self) -> int: ...


class TokenCodec(Codec, Protocol):
    """Of discrete tokens, which any action has: recorded actions can be cloned and judged as tokens."""

    def encode(self, chunk: Float[Tensor, "B K A"]) -> Int[Tensor, "B N"]: ...


class Policy(Protocol):
    """A network that decides a whole chunk at once. ``__call__`` is the only gradient path: it gives the logits
    [B, N, V] of discrete tokens, or what the policy's own ``likelihood`` reads (:mod:`wmpo.likelihood`)."""

    @property
    def codec(self) -> Codec: ...

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]: ...

    def __call__(self, **tensors: Tensor) -> Any: ...


class TrainablePolicy(Policy, Protocol):
    """A policy with weights: what learners and samplers need of :class:`torch.nn.Module` besides."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...

    def eval(self) -> TrainablePolicy: ...


class PolicyNet(TrainablePolicy, Protocol):
    """A policy that a run clones and keeps. ``about()`` is JSON from which the configuration's ``restore`` builds it
    again, before the weights are filled in."""

    image_size: int
    views: tuple[str, ...]
    "Names of the cameras, whose square pictures of ``image_size`` pixels stand side by side in a frame."

    @property
    def codec(self) -> BoundedCodec: ...

    def about(self) -> dict[str, Any]: ...

    def train(self, mode: bool = True) -> object: ...

    def eval(self) -> PolicyNet: ...


class WorldModel(Protocol):
    """Imagines the frames that follow from a chunk of actions: all of them, or those at the places ``shown``. It begins
    with recorded frames and, where these lie in the middle of an episode, the sum of the actions before them."""

    frame_stride: int

    def begin(self, frames: UInt8[Tensor, "B H h w 3"], travelled: Float[Tensor, "B A"] | None = None) -> Context: ...

    def imagine(
        self,
        context: Context,
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B ..."],
        shown: Sequence[int] | None = None,
    ) -> tuple[UInt8[Tensor, "B n h w 3"], Context]: ...

    def noise_shape(self, chunk_size: int) -> tuple[int, ...]: ...

    def encode(self, frames: UInt8[Tensor, "M h w 3"]) -> Float[Tensor, "M C y x"]: ...

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"]) -> UInt8[Tensor, "M h w 3"]: ...

    def refined(self) -> WorldModel: ...

    def select(self, context: Context, rows: Int[Tensor, " R"]) -> Context: ...


class RewardModel(Protocol):
    """Scores clips of ``window`` consecutive frames, each of the task that a sentence names; a clip whose logit exceeds
    ``threshold`` shows success."""

    window: int
    threshold: float

    def __call__(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]: ...


class Sampler(Protocol):
    """Plays episodes with the newest weights it was given."""

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts: ...

    def load(self, weights: Mapping[str, Tensor]) -> None: ...


class Learner(Protocol):
    """Owns the trained parameters. ``policy`` has the weights of the last ``publish`` at least."""

    @property
    def policy(self) -> TrainablePolicy: ...

    def step(self, minibatch: Minibatch) -> dict[str, float]: ...

    def publish(self) -> Mapping[str, Tensor]: ...

    def save(self) -> Mapping[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


class Trainer(Protocol):
    """Owns what a supervised training changes. Whoever asked for it has the network itself, whole, and sees averaged
    weights there: inside ``averaged``, for a look at them, and after ``finish``, for good."""

    def step(self, number: int) -> float: ...

    def averaged(self) -> AbstractContextManager[None]: ...

    def finish(self) -> None: ...

    def save(self) -> Mapping[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...
