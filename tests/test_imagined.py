"""The imagined environment keeps the contract of a real one, and the one loop plays it whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from miniatures import (
    ACTIONS,
    CHUNK,
    SIZE,
    BanditEnv,
    Brightness,
    small_policy,
    small_reward,
    small_world_model,
    some_starts,
)
from torch import Tensor

from wmpo import likelihood
from wmpo.envs.imagined import ImaginedEnv, Shadow
from wmpo.policy.small import SmallPolicy
from wmpo.protocols import ChunkEnv
from wmpo.rollout.run import run_episodes
from wmpo.types import Observation, Rollouts, Starts

COUNT, MAX_CHUNKS = 12, 4


def environment(threshold: float = 127.0, *, share_noise: bool = False, seed: int = 0) -> ImaginedEnv:
    """Frames brighter than the threshold are solved: with it, rows end at different times."""
    return ImaginedEnv(
        small_world_model(start_noise=2.0), Brightness(1, threshold),
        chunk_size=CHUNK, max_chunks=MAX_CHUNKS, seed=seed, share_noise=share_noise,
    )  # fmt: skip


def middling_threshold() -> float:
    """The brightness that half of the episodes reach."""
    rollouts = play(environment(threshold=1e9), record_video=True)
    assert rollouts.video is not None
    return float(rollouts.video[:, 1:].float().mean(dim=(2, 3, 4)).amax(dim=1).median())


def play(
    env: ImaginedEnv, starts: Starts | None = None, *, temperature: float = 1.0, record_video: bool = False
) -> Rollouts:
    starts = some_starts(COUNT, frames=2) if starts is None else starts
    return run_episodes(env, small_policy(), starts, temperature=temperature, seed=3, record_video=record_video)


def test_it_is_a_chunk_env_that_begins_at_the_newest_recorded_frame() -> None:
    env, starts = environment(), some_starts(3, frames=2)
    assert isinstance(env, ChunkEnv) and starts.frames is not None
    seen = env.reset(starts)
    assert torch.equal(seen.frame, starts.frames[:, -1]) and seen.instruction == starts.instruction
    with pytest.raises(ValueError, match="recorded frames"):
        env.reset(some_starts(3))


@pytest.mark.usefixtures("float32")
def test_finished_rows_freeze_and_the_others_go_on() -> None:
    env, starts = environment(middling_threshold()), some_starts(COUNT, frames=2)
    last, finished = env.reset(starts).frame, torch.zeros(COUNT, dtype=torch.bool)
    frozen_rows = 0
    for chunk in range(MAX_CHUNKS):
        step = env.step(2 * torch.rand(COUNT, CHUNK, ACTIONS) - 1)
        assert step.frames.shape == (COUNT, CHUNK // 2, SIZE, SIZE, 3) and step.frames.dtype == torch.uint8
        assert (step.steps[finished] == 0).all() and not (step.terminated | step.truncated)[finished].any()
        assert torch.equal(step.frames[finished], last[finished].unsqueeze(1).expand_as(step.frames[finished]))
        bright = step.frames.float().mean(dim=(2, 3, 4)) > env.reward_model.threshold
        first = torch.where(bright.any(dim=1), bright.int().argmax(dim=1) + 1, 0)
        assert torch.equal(step.terminated, (first > 0) & ~finished)
        expected = torch.where(first > 0, 2 * first, CHUNK)  # a frame every two actions
        assert torch.equal(step.steps[~finished], expected[~finished])
        assert torch.equal(step.truncated, ~finished & (first == 0) & (chunk == MAX_CHUNKS - 1))
        frozen_rows += int(finished.sum())
        finished, last = finished | step.terminated, step.frames[:, -1]
    assert 0 < frozen_rows < COUNT * (MAX_CHUNKS - 1)


@pytest.mark.usefixtures("float32")
def test_an_episode_is_the_same_in_any_batch() -> None:
    threshold, starts = middling_threshold(), some_starts(COUNT, frames=2)
    whole = play(environment(threshold), starts)
    assert 0 < int(whole.success.sum()) < COUNT and len(whole.num_steps.unique()) > 2
    for rows in (torch.tensor([7, 2, 9]), torch.randperm(COUNT), torch.tensor([4])):
        part = play(environment(threshold), starts.rows(rows))
        chunks = part.tokens.shape[1]
        assert torch.equal(part.tokens, whole.tokens[rows, :chunks])
        assert torch.equal(part.executed, whole.executed[rows, :chunks]) and torch.equal(
            part.success, whole.success[rows]
        )
        assert torch.allclose(part.logprob, whole.logprob[rows, :chunks], atol=1e-4)


def test_the_seed_of_the_noise_and_of_the_tokens_both_matter() -> None:
    starts = some_starts(20 * COUNT, frames=2)  # many: an untrained policy hardly reacts to what it sees
    first = play(environment(1e9), starts)
    assert torch.equal(play(environment(1e9), starts).tokens, first.tokens)
    dreamt_otherwise = play(environment(1e9, seed=1), starts)
    assert torch.equal(dreamt_otherwise.tokens[:, 0], first.tokens[:, 0]), "the first chunk sees the recorded frame"
    assert not torch.equal(dreamt_otherwise.tokens, first.tokens)
    other = run_episodes(environment(1e9), small_policy(), starts, temperature=1.0, seed=4)
    assert not torch.equal(other.tokens[:, 0], first.tokens[:, 0])
    relabelled = play(environment(1e9), starts.with_ids(starts.episode_id + 50, starts.group))
    assert not torch.equal(relabelled.tokens[:, 0], first.tokens[:, 0])


@pytest.mark.parametrize("share", [True, False])
def test_siblings_share_the_worlds_noise_if_asked(share: bool) -> None:
    starts = some_starts(2, frames=1)
    assert starts.frames is not None
    starts = replace(starts, frames=starts.frames[:1].expand(2, -1, -1, -1, -1), group=torch.tensor([5, 5]))
    env = environment(1e9, share_noise=share)
    env.reset(starts)
    frames = env.step(torch.zeros(2, CHUNK, ACTIONS)).frames
    assert torch.equal(frames[0], frames[1]) == share


class CountingPolicy(SmallPolicy):
    """Remembers how many rows it was asked about."""

    asked: list[int]

    def prepare(self, observation: Observation) -> dict[str, Tensor]:
        self.asked.append(len(observation.instruction))
        return dict(super().prepare(observation))


@pytest.mark.usefixtures("float32")
def test_the_loop_asks_only_for_rows_that_play_and_records_what_learning_needs() -> None:
    policy = small_policy()
    policy.__class__, policy.asked = CountingPolicy, []
    env, starts = environment(middling_threshold()), some_starts(COUNT, frames=2)
    rollouts = run_episodes(env, policy, starts, temperature=0.7, seed=3, record_video=True)
    played = rollouts.executed.any(dim=2)
    assert policy.asked == played.sum(dim=0).tolist() and min(policy.asked) < COUNT
    assert torch.equal(rollouts.executed.flatten(1).sum(dim=1), rollouts.num_steps * ACTIONS)
    seen = Observation(frame=rollouts.frame[played], instruction=("push the block",) * int(played.sum()))
    again = likelihood.log_probs(policy(**policy.prepare(seen)), rollouts.tokens[played], 0.7)
    assert torch.allclose(again, rollouts.logprob[played], atol=1e-4)
    assert rollouts.video is not None and starts.frames is not None
    assert rollouts.video.shape[1] == 1 + played.shape[1] * CHUNK // 2
    assert torch.equal(rollouts.video[:, 0], starts.frames[:, -1])
    assert torch.equal(rollouts.video[:, : -1 : CHUNK // 2], rollouts.frame), "a policy sees the last frame of a chunk"


def test_greedy_play_takes_the_likeliest_token_whatever_the_seed() -> None:
    env, starts = BanditEnv(0.5, 9), some_starts(4)
    policy = small_policy(chunk_size=2)
    rollouts = [run_episodes(env, policy, starts, temperature=0.0, seed=seed) for seed in (0, 1)]
    assert torch.equal(rollouts[0].tokens, rollouts[1].tokens)
    black = Observation(frame=env.frame, instruction=starts.instruction)
    assert torch.equal(rollouts[0].tokens[:, 0], policy(**policy.prepare(black)).argmax(dim=-1))
    assert (rollouts[0].logprob <= 0).all() and (rollouts[0].logprob.isfinite()).all()


def test_a_real_network_as_reward_model_ends_episodes_too() -> None:
    env = environment()
    env.reward_model = small_reward()
    for threshold, success in ((-1e9, True), (1e9, False)):
        env.reward_model.threshold = threshold
        rollouts = play(env)
        assert (rollouts.success == success).all()
        assert (rollouts.num_steps == (2 if success else CHUNK * MAX_CHUNKS)).all()
    assert min(env.seconds.values()) > 0


def shadowed(threshold: float, *, noise: float, **guards: object) -> ImaginedEnv:
    model, reward = small_world_model(start_noise=noise), Brightness(1, threshold)
    return ImaginedEnv(
        model, reward, chunk_size=CHUNK, max_chunks=MAX_CHUNKS, seed=0,
        shadow=Shadow(model, reward, seed=1), **guards,
    )  # fmt: skip


def noisy_threshold() -> float:
    rollouts = play(shadowed(1e9, noise=2.0), record_video=True)
    assert rollouts.video is not None
    return float(rollouts.video[:, 1:].float().mean(dim=(2, 3, 4)).amax(dim=1).median())


@pytest.mark.usefixtures("float32")
def test_a_shadow_under_no_noise_is_the_dream_itself_whatever_rows_have_ended() -> None:
    calm = small_world_model(start_noise=0.0)
    plain = ImaginedEnv(calm, Brightness(1, middling_threshold()), chunk_size=CHUNK, max_chunks=MAX_CHUNKS, seed=0)
    alone, guarded = play(plain), play(shadowed(middling_threshold(), noise=0.0, verify=True, max_doubt=1e-3))
    assert 0 < alone.success.sum() < COUNT, "rows must end at different times"
    assert torch.equal(alone.success, guarded.success) and torch.equal(alone.num_steps, guarded.num_steps)
    assert guarded.trusted.all()


def test_verified_successes_are_those_of_both_dreams_at_the_later_frame() -> None:
    threshold = noisy_threshold()
    free = play(shadowed(1e9, noise=2.0), record_video=True)
    found = play(shadowed(threshold, noise=2.0, verify=True))
    single = play(shadowed(threshold, noise=2.0))
    assert (single.success | ~found.success).all() and (found.num_steps >= single.num_steps).all()
    assert found.success.sum() > 0 and free.trusted.all()
    assert not torch.equal(found.num_steps, single.num_steps), "noise must make a difference somewhere"
    followed = play(shadowed(threshold, noise=2.0, verify=True, max_doubt=2.0))
    assert torch.equal(found.num_steps, followed.num_steps), "a shadow that is late sees what one from the start sees"
    assert torch.equal(found.success, followed.success)


def test_what_two_dreams_show_differently_is_not_trusted() -> None:
    assert not play(shadowed(1e9, noise=2.0, max_doubt=1e-6)).trusted.any()
    assert play(shadowed(1e9, noise=2.0, max_doubt=2.0)).trusted.all(), "no two pictures are further apart"


def test_episodes_that_begin_in_the_middle_have_less_time() -> None:
    begun = torch.arange(COUNT) % MAX_CHUNKS
    rollouts = play(environment(threshold=1e9), replace(some_starts(COUNT, frames=2), begun=begun))
    assert torch.equal(rollouts.num_steps, (MAX_CHUNKS - begun) * CHUNK)


@pytest.mark.usefixtures("float32")
def test_the_highest_score_so_far_is_that_of_the_whole_video() -> None:
    env = environment(threshold=1e9)
    rollouts = play(env, record_video=True)
    assert rollouts.video is not None
    highest = rollouts.video[:, 1:].float().mean(dim=(2, 3, 4)).amax(dim=1)
    assert torch.allclose(env.peak, highest)
    env.reset(some_starts(COUNT, frames=2))
    assert (env.peak < -1e9).all(), "a new batch begins without any"
