"""One dream that is driven from the browser, and reality beside it: the same actions from the same start."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.envs.simulator import SimulatorConfig
from wmpo.protocols import BoundedCodec, ChunkEnv, PolicyNet, RewardModel
from wmpo.reward.detector import Detector
from wmpo.rollout.run import decide
from wmpo.serve.film import Film, film
from wmpo.types import Observation, Starts

PLAYING, SOLVED, OVER = "playing", "solved", "time is up"
WORLDS = ("imagined", "both", "real")
"""The dream alone; reality beside it; the same, and a policy sees the real picture."""
View = Callable[[UInt8[Tensor, "M h w 3"]], UInt8[Tensor, "M h w 3"]]


class Side:
    """One world of a session; real and imagined are the same interface.

    Args:
        env: where the actions are played, one row.
        starts: its start.
        judge: the success classifier.
        view: how it sees the frames; real ones as the tokenizer shows them, as in its calibration.
    """

    def __init__(self, env: ChunkEnv, starts: Starts, judge: RewardModel, view: View | None = None) -> None:
        self._env, self._view = env, view or (lambda frames: frames)
        self.frame = env.reset(starts).frame
        "The newest one, [1, h, w, 3]."
        self._detector = Detector(judge, self._view(self.frame), starts.instruction)
        self._unseen = [self.frame]
        self.state, self.num_steps, self.num_chunks = PLAYING, 0, 0

    @torch.no_grad()
    def follow(self, chunks: Sequence[Float[Tensor, "1 K A"]]) -> Film | None:
        """Plays those of a session's chunks that it has not played yet, until its episode ends. The first time its
        start is shown too. None: nothing new."""
        logits: list[float] = []
        while self.state == PLAYING and self.num_chunks < len(chunks):
            step = self._env.step(chunks[self.num_chunks])
            self.num_chunks += 1
            self.num_steps += int(step.steps)
            self.state = SOLVED if step.terminated else OVER if step.truncated else PLAYING
            self.frame = step.frames[:, -1]
            self._unseen.append(step.frames[0])
            seen = self._view(step.frames[0]).unsqueeze(0)
            logits += self._detector.update(seen, torch.zeros(1, dtype=torch.long))[1][0].tolist()
        frames, self._unseen = self._unseen, []
        return film(torch.cat(frames), logits) if frames else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acting:
    """Who decides the next chunk: ``keys`` or a policy's name, sampled at ``temperature`` (0: greedy)."""

    driver: str
    temperature: float
    move: list[float]
    "Of the keys: to the right, away from the camera and up, in -1..1."
    gripper: float
    "Of the keys: 1 closes, -1 opens."


class Session:
    """Chunks of actions from one start, and the worlds that play them."""

    def __init__(self, env: ImaginedEnv, starts: Starts, policies: dict[str, PolicyNet], seed: int) -> None:
        self.env, self.starts, self.policies, self.seed = env, starts, policies, seed
        self.dream = Side(env, starts, env.reward_model)
        self.real: Side | None = None
        self.chunks: list[Float[Tensor, "1 K A"]] = []
        self._drivers: set[str] = set()
        self._temperature = 0.0

    def playing(self, world: str) -> bool:
        """Whether a further chunk would be played in what is shown."""
        sides = [self.dream] if world == "imagined" or self.real is None else [self.dream, self.real]
        return any(side.state == PLAYING for side in sides)

    @property
    def purpose(self) -> Purpose:
        """What the ledger says of reality beside this dream."""
        return Purpose("served", ", ".join(sorted(self._drivers)) or "nobody", self._temperature, self.seed)

    def enter(self, env: SimulatedEnv) -> None:
        """Begins reality at the same start. Each time it is another episode, which the ledger counts by itself."""
        env.purpose = self.purpose
        starts = self.starts.with_ids(torch.tensor([secrets.randbits(62)]), self.starts.group)
        self.real = Side(env, starts, self.env.reward_model, self.env.world_model.reconstruct)

    def act(self, acting: Acting, world: str, config: SimulatorConfig | None) -> None:
        """Adds a chunk. A policy's is what it would play in an episode with the same start, identity and seed; keys
        need a simulator's ``config``."""
        self._drivers.add(acting.driver)
        if acting.driver == "keys":
            assert config is not None
            self.chunks.append(steer(acting.move, acting.gripper, config, self.policies["base"].codec))
            return
        policy, self._temperature = self.policies[acting.driver], acting.temperature
        side = self.real if world == "real" and self.real is not None else self.dream
        seen, row = Observation(frame=side.frame, instruction=self.starts.instruction), torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            tokens, _ = decide(policy, seen, self.starts, row, acting.temperature, self.seed, len(self.chunks))
        self.chunks.append(policy.codec.decode(tokens))


def steer(
    move: Sequence[float], gripper: float, config: SimulatorConfig, codec: BoundedCodec
) -> Float[Tensor, "1 K A"]:
    """A chunk that holds one action. ``move`` is as the camera sees it: right, away and up.

    Actions stay between the quantiles of the demonstrations, as those of policies do: the world model knows no others.
    """
    right, away, up = move
    turned = math.radians(config.camera.azimuth)  # the camera looks along (cos, sin) of it over the table
    x = away * math.cos(turned) + right * math.sin(turned)
    y = away * math.sin(turned) - right * math.cos(turned)
    low, high = torch.tensor(codec.low), torch.tensor(codec.high)
    return torch.tensor(config.command(x, y, up, gripper)).clamp(low, high).repeat(1, codec.chunk_size, 1)
