"""The imagined environment: a world model and a reward model behind the interface of a real one."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wmpo.envs.clock import Clock
from wmpo.envs.workspace import Workspaces, execute
from wmpo.nn import picture_distance
from wmpo.noise import row_normal
from wmpo.protocols import Context, RewardModel, WorldModel
from wmpo.reward.detector import Detector, frames_seen
from wmpo.types import ChunkStep, Observation, Starts


class Shadow:
    """The same episodes imagined a second time, with the same actions but other noise and, if ``world_model`` is a
    finer one, in smaller steps. Where both dreams agree, neither chance nor a hasty flow decided. A row is imagined
    once it is asked about: then all that it has played until then."""

    def __init__(self, world_model: WorldModel, reward_model: RewardModel, *, seed: int) -> None:
        self.world_model, self.reward_model, self.seed = world_model, reward_model, seed

    def begin(self, starts: Starts, keys: list[int], every: int) -> None:
        assert starts.frames is not None
        self._starts, self._keys = starts, keys
        self._detector = Detector(self.reward_model, starts.frames[:, -1], starts.instruction, every)
        self._chunks: list[Tensor] = []
        self._groups: list[tuple[Tensor, Context]] = []  # rows and their context, by when they were asked about first
        self.first, self.last = torch.zeros(len(keys), dtype=torch.long), starts.frames[:, -1].clone()
        "Which frame of each row's last chunk is the first solved one (0: none) [B], and its last frame [B h w 3]."
        self.solved = torch.zeros(len(keys), dtype=torch.bool)
        "Rows that had shown success before that chunk [B]."

    def follow(self, chunk: Float[Tensor, "B K A"], rows: Int[Tensor, " R"]) -> None:
        """Every row's next actions, and the rows to imagine with them."""
        self._chunks.append(chunk)
        groups, new = [], rows
        for members, context in self._groups:
            kept = torch.isin(members, rows).nonzero().squeeze(1)
            new = new[~torch.isin(new, members)]
            if len(kept):
                chosen = members[kept]
                context = self._advance(chosen, self.world_model.select(context, kept), len(self._chunks) - 1)
                groups.append((chosen, context))
        if len(new):
            begun = self._starts.rows(new)
            assert begun.frames is not None
            context = self.world_model.begin(begun.frames, begun.travelled)
            for number in range(len(self._chunks)):
                context = self._advance(new, context, number)
            groups.append((new, context))
        self._groups = groups

    def _advance(self, rows: Int[Tensor, " R"], context: Context, number: int) -> Context:
        """One chunk further."""
        chunk = self._chunks[number]
        shape = self.world_model.noise_shape(chunk.shape[1])
        noise = row_normal(self.seed, "shadow", [self._keys[r] for r in rows.tolist()], number, shape)
        shown = frames_seen(self.reward_model.window, self._detector.every, shape[0])
        frames, context = self.world_model.imagine(context, chunk[rows], noise, shown)
        self.solved[rows] |= self.first[rows] > 0
        self.first[rows], self.last[rows] = self._detector.update(frames, rows)[0], frames[:, -1]
        return context


class ImaginedEnv:
    """A :class:`wmpo.protocols.ChunkEnv`. Needs ``starts.frames``; no real episode is played here.

    Args:
        share_noise: siblings of a group get the same world-model noise, so that only their actions tell them apart.
        workspaces: what the controller makes of the policy's commands; the world model sees only that.
        shadow: imagines everything a second time.
        max_doubt: rows whose last frames in both dreams differ by more (mean over pixels in [-1, 1]) are not trusted.
        verify: an episode is solved only when both dreams have shown it (RAW-Dream, arXiv 2605.12334).
        score_every: imagined frames between two looks for success; it must divide those of a chunk. With more than 1
            only frames that the reward model sees are decoded and returned, a chunk's last one among them.

    ``doubt`` [B] is that difference after the last chunk that a row's shadow was asked about: every chunk, or with
    ``verify`` alone those from its first success on; zeros before. ``peak`` [B] is the reward model's highest logit in
    each row so far.
    """

    def __init__(
        self,
        world_model: WorldModel,
        reward_model: RewardModel,
        *,
        chunk_size: int,
        max_chunks: int,
        seed: int,
        workspaces: Workspaces | None = None,
        share_noise: bool = False,
        shadow: Shadow | None = None,
        max_doubt: float | None = None,
        verify: bool = False,
        score_every: int = 1,
    ) -> None:
        assert shadow is not None or not (verify or max_doubt), "guards compare with a second dream"
        self.world_model, self.reward_model = world_model, reward_model
        self.chunk_size, self.max_chunks = chunk_size, max_chunks
        self.seed, self.workspaces, self.share_noise = seed, workspaces, share_noise
        self.shadow, self.max_doubt, self.verify = shadow, max_doubt, verify
        num_frames = chunk_size // world_model.frame_stride
        if score_every < 1 or num_frames % score_every:
            raise ValueError(f"score_every {score_every} must divide the {num_frames} imagined frames of a chunk")
        self.score_every = score_every
        self.seconds = {"world_model": 0.0, "reward": 0.0}

    def reset(self, starts: Starts) -> Observation:
        """Begins at the newest of the given frames."""
        if starts.frames is None:
            raise ValueError("imagined episodes begin at recorded frames, but these starts have none")
        self._clock = Clock(len(starts), self.chunk_size, self.max_chunks, starts.begun)
        self._keys = (starts.group if self.share_noise else starts.episode_id).tolist()
        self._last = starts.frames[:, -1]
        self._context = self.world_model.begin(starts.frames, starts.travelled)
        self._rows = torch.arange(len(starts))
        self._detector = Detector(self.reward_model, self._last, starts.instruction, self.score_every)
        self._position = starts.travelled
        self._limits = None if self.workspaces is None else self.workspaces.limits(starts.instruction)
        self._solved = torch.zeros(len(starts), dtype=torch.bool)
        self.doubt, self.peak = torch.zeros(len(starts)), torch.full((len(starts),), -math.inf)
        if self.shadow is not None:
            self.shadow.begin(starts, self._keys, self.score_every)
        return Observation(frame=self._last, instruction=starts.instruction)

    @torch.no_grad()
    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep:
        """Imagines one chunk in the rows that still play; the context of finished rows is dropped."""
        rows = self._clock.active
        kept = torch.isin(self._rows, rows).nonzero().squeeze(1)
        if len(rows) < len(self._rows):
            self._context, self._rows = self.world_model.select(self._context, kept), rows
        begun, chunk = time.perf_counter(), self._executed(chunk)
        shape = self.world_model.noise_shape(self.chunk_size)
        noise = row_normal(self.seed, "imagine", [self._keys[r] for r in rows.tolist()], self._clock.chunk, shape)
        shown = frames_seen(self.reward_model.window, self.score_every, shape[0])
        imagined, self._context = self.world_model.imagine(self._context, chunk[rows], noise, shown)
        decoded = time.perf_counter()
        first, logits = self._detector.update(imagined, rows)
        self.peak[rows] = torch.maximum(self.peak[rows], logits.amax(dim=1))
        self.seconds["world_model"] += decoded - begun
        self.seconds["reward"] += time.perf_counter() - decoded
        frames = self._last.unsqueeze(1).repeat(1, imagined.shape[1], 1, 1, 1)
        frames[rows] = imagined
        self._last = frames[:, -1]
        solved_after, doubted = (torch.zeros(len(self._last), dtype=kind) for kind in (torch.long, torch.bool))
        if self.shadow is not None:
            claimed = self._solved[rows] | (first > 0)
            asked = rows[claimed] if self.verify and self.max_doubt is None else rows
            self.shadow.follow(chunk, asked)
            self.doubt[asked] = picture_distance(self.shadow.last[asked], self._last[asked])
            doubted[rows] = self.doubt[rows] > (math.inf if self.max_doubt is None else self.max_doubt)
            first = self._both(first, self.shadow.first[rows], rows) if self.verify else first
        solved_after[rows] = first * self.world_model.frame_stride
        return replace(self._clock.tick(frames, solved_after), trusted=~doubted)

    def _executed(self, chunk: Float[Tensor, "B K A"]) -> Float[Tensor, "B K A"]:
        if self._limits is None:
            return chunk
        start = chunk.new_zeros(len(chunk), chunk.shape[2]) if self._position is None else self._position
        executed, position = execute(*self._limits, start.numpy(), chunk.numpy())
        self._position = torch.from_numpy(position)
        return torch.from_numpy(executed)

    def _both(self, first: Int[Tensor, " R"], second: Int[Tensor, " R"], rows: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """The frame of this chunk at which the later of both dreams shows success, 0 while one has not."""
        assert self.shadow is not None
        before = torch.stack([self._solved[rows], self.shadow.solved[rows]])
        now = torch.stack([first, second])
        self._solved[rows] |= first > 0
        return torch.where((before | (now > 0)).all(dim=0), (now * ~before).amax(dim=0), 0)
