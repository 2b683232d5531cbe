"""What each protocol promises, tried on every implementation in its smallest form."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch
from miniatures import (
    ACTIONS,
    BINS,
    CHUNK,
    SIZE,
    BanditEnv,
    TablePolicy,
    decisions,
    small_policy,
    small_reward,
    small_world_model,
    some_starts,
)
from torch import Tensor

from wmpo.envs.imagined import ImaginedEnv
from wmpo.execution.local import LocalSampler
from wmpo.nn import Block
from wmpo.noise import row_normal
from wmpo.policy.codec import ActionCodec
from wmpo.policy.small import TextEncoder
from wmpo.protocols import ChunkEnv, Learner, Policy, RewardModel, Sampler, TrainablePolicy, WorldModel
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Observation
from wmpo.world_model.small import SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig

POLICIES = {
    "small": small_policy,
    "table": lambda: TablePolicy(ActionCodec((-1.0,) * ACTIONS, (1.0,) * ACTIONS, CHUNK, BINS), torch.zeros(8, BINS)),
}
WORLD_MODELS = {
    "stride 2": small_world_model,
    "stride 1": lambda: small_world_model(frame_stride=1),
    "stride 4, one context frame, no anchor": lambda: small_world_model(frame_stride=4, num_context=1, anchor=False),
}
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
every_world_model = pytest.mark.parametrize("make", WORLD_MODELS.values(), ids=WORLD_MODELS.keys())


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def imagine(model: WorldModel, frames: Tensor, actions: Tensor, keys: list[int], chunks: int = 2) -> Tensor:
    """``chunks`` chunks in a row, so that errors of the context show too."""
    context, video = model.begin(frames), []
    for chunk in range(chunks):
        noise = row_normal(0, "test", keys, chunk, model.noise_shape(CHUNK))
        imagined, context = model.imagine(context, actions, noise)
        video.append(imagined)
    return torch.cat(video, dim=1)


def some_actions(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, CHUNK, ACTIONS, generator=torch.Generator().manual_seed(seed)) - 1


def assert_like(found: Tensor, expected: Tensor) -> None:
    """Frames that are equal up to the rounding of sums: a grey level, seldom two."""
    assert (found.int() - expected.int()).abs().max() <= 2 and (found == expected).float().mean() > 0.97


@every_policy
def test_a_policy_gives_finite_logits_of_a_whole_chunk(make) -> None:
    policy = make()
    assert isinstance(policy, Policy) and isinstance(policy, TrainablePolicy)
    seen = policy.prepare(Observation(frame=pictures(3), instruction=("a", "open the drawer", "öffne die Lade")))
    logits = policy(**seen)
    assert logits.shape == (3, CHUNK * ACTIONS, BINS) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert policy.codec.decode(logits.argmax(dim=-1)).shape == (3, CHUNK, ACTIONS)


@pytest.mark.usefixtures("float32")
@every_policy
def test_a_policy_judges_every_row_by_itself(make) -> None:
    policy, frames = make(), pictures(4)

    def logits(rows: list[int]) -> Tensor:
        seen = Observation(frame=frames[rows], instruction=("push it",) * len(rows))
        return policy(**policy.prepare(seen))

    whole = logits([0, 1, 2, 3])
    assert torch.allclose(logits([3, 1]), whole[[3, 1]], atol=1e-5)
    assert torch.equal(logits([0, 1, 2, 3]), whole), "evaluation is deterministic"


def test_the_small_policy_looks_at_the_picture_and_reads_the_instruction() -> None:
    policy = small_policy()
    frame = pictures(1).expand(3, -1, -1, -1).clone()
    frame[2] = 255 - frame[2]
    logits = policy(**policy.prepare(Observation(frame=frame, instruction=("open it", "shut it", "open it"))))
    assert (logits[0] - logits[1]).abs().max() > 1e-3 and (logits[0] - logits[2]).abs().max() > 1e-3


def test_an_instruction_means_the_same_beside_a_longer_one() -> None:
    policy, frame = small_policy(), pictures(1)
    alone = policy(**policy.prepare(Observation(frame=frame, instruction=("open it",))))
    both = Observation(frame=frame.expand(2, -1, -1, -1), instruction=("open it", "open the drawer very carefully"))
    assert torch.allclose(policy(**policy.prepare(both))[:1], alone, atol=1e-5)


def test_a_block_that_is_asked_for_its_last_tokens_gives_those_of_all() -> None:
    block, x = Block(16, 2), torch.randn(3, 7, 16)
    assert torch.allclose(block(x, asked=4), block(x)[:, -4:], atol=1e-6)


def test_two_threads_add_up_the_gradients_of_many_rows_in_one_order() -> None:
    encoder, text = TextEncoder(128, 4), TextEncoder.encode(("open it",) * 512)
    weight = torch.rand(512, 4, 128)

    def gradient() -> Tensor:
        return torch.autograd.grad((weight * encoder(text)).sum(), encoder.queries)[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(10))
    finally:
        torch.set_num_threads(threads)


def test_pictures_of_another_size_are_refused_with_both_sizes() -> None:
    frame = torch.zeros(1, 24, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"24x32.*16 px"):
        small_policy().prepare(Observation(frame=frame, instruction=("a",)))


@every_world_model
def test_a_world_model_imagines_uint8_frames_every_stride_actions(make) -> None:
    model = make()
    assert isinstance(model, WorldModel)
    num_frames = CHUNK // model.frame_stride
    assert model.noise_shape(CHUNK)[0] == num_frames
    for context_frames in (1, 2, 3):
        video = imagine(model, pictures(2, context_frames), some_actions(2), [0, 1], chunks=3)
        assert video.shape == (2, 3 * num_frames, SIZE, SIZE, 3) and video.dtype == torch.uint8
    assert model.reconstruct(pictures(5)).shape == (5, SIZE, SIZE, 3)


@every_world_model
def test_imagination_is_a_function_of_start_actions_and_noise(make) -> None:
    model, frames, actions = make(), pictures(2, 2), some_actions(2)
    first = imagine(model, frames, actions, [0, 1])
    assert torch.equal(imagine(model, frames, actions, [0, 1]), first)
    for other in (
        imagine(model, pictures(2, 2, seed=1), actions, [0, 1]),
        imagine(model, frames, some_actions(2, seed=1), [0, 1]),
        imagine(model, frames, actions, [5, 6]),
    ):
        assert (other != first).flatten(1).any(dim=1).all()


@pytest.mark.usefixtures("float32")
@every_world_model
def test_imagined_rows_do_not_know_their_neighbours(make) -> None:
    model, frames, actions = make(), pictures(4, 2), some_actions(4)
    whole = imagine(model, frames, actions, [0, 1, 2, 3])
    assert_like(imagine(model, frames[[2, 0]], actions[[2, 0]], [2, 0]), whole[[2, 0]])


@pytest.mark.usefixtures("float32")
@every_world_model
def test_a_selected_context_goes_on_as_if_the_other_rows_were_still_there(make) -> None:
    model, frames, actions, rows = make(), pictures(4, 2), some_actions(4), torch.tensor([3, 1])
    whole = imagine(model, frames, actions, [0, 1, 2, 3], chunks=2)
    noise = [row_normal(0, "test", [0, 1, 2, 3], chunk, model.noise_shape(CHUNK)) for chunk in range(2)]
    _, context = model.imagine(model.begin(frames), actions, noise[0])
    later, _ = model.imagine(model.select(context, rows), actions[rows], noise[1][rows])
    assert_like(later, whole[rows, -later.shape[1] :])


def test_in_the_small_world_model_a_frame_does_not_know_later_actions() -> None:
    model, frames, actions = small_world_model(frame_stride=1), pictures(2, 1), some_actions(2)
    changed = actions.clone()
    changed[:, 2] *= -1
    before, after = (imagine(model, frames, a, [0, 1], chunks=1) for a in (actions, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).flatten(2).any(dim=2).all()


def test_training_moves_the_world_model_but_not_its_tokenizer() -> None:
    model = small_world_model().train()
    assert not model.tokenizer.training and model.net.training
    assert not any(p.requires_grad for p in model.tokenizer.parameters())


def test_a_new_world_model_never_moves_its_tokenizers_statistics() -> None:
    sizes = SmallWorldModelConfig(channels=(8, 8), blocks=1, condition=16, frame_stride=2)
    tokenizer = TokenizerConfig(channels=8, latent_channels=3).build()
    model = sizes.build(tokenizer, -torch.ones(ACTIONS), torch.ones(ACTIONS), SIZE // 4)
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    for _ in range(2):
        model.tokenizer.encode(torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8))
        model.train()
    assert all(torch.equal(value, before[name]) for name, value in model.tokenizer.state_dict().items())


def test_a_tokenizer_of_an_older_file_has_an_encoder_as_wide_as_its_decoder() -> None:
    old = {"channels": 8, "latent_channels": 3, "latent_noise": 0.1}
    assert TokenizerConfig.of(old) == TokenizerConfig(channels=8, encoder_channels=8, latent_channels=3)
    thin = TokenizerConfig(channels=8, encoder_channels=4, latent_channels=3)
    assert TokenizerConfig.of(asdict(thin)) == thin
    for strange in ({**old, "colour": 1}, {"latent_channels": 3}):
        with pytest.raises(ValueError, match="another version"):
            TokenizerConfig.of(strange)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_reward_model_scores_each_clip_by_itself(window: int) -> None:
    model, clips = small_reward(window=window), pictures(5, window)
    assert isinstance(model, RewardModel) and model.window == window
    logits = model(clips, [""] * len(clips))
    assert logits.shape == (5,) and logits.dtype == torch.float32 and logits.device.type == "cpu"
    assert torch.equal(model(clips, [""] * len(clips)), logits), "no dropout outside training"
    assert torch.allclose(model(clips[[4, 0]], ["", ""]), logits[[4, 0]], atol=1e-5)
    if window > 1:
        assert not torch.allclose(model(clips.flip(1), [""] * len(clips)), logits, atol=1e-4), "order of frames matters"


def test_a_sampler_plays_with_the_weights_it_was_given_last() -> None:
    codec = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)
    sampler = LocalSampler(BanditEnv(2, 3), TablePolicy(codec, torch.zeros(4, BINS)))
    assert isinstance(sampler, Sampler) and isinstance(sampler.env, ChunkEnv)
    for token in (2, 3):
        weights = {"logits": torch.zeros(4, BINS).index_fill(1, torch.tensor([token]), 50.0)}
        sampler.load(weights)
        weights["logits"].zero_()  # a sampler keeps its own copy
        rollouts = sampler.run(some_starts(8), 1.0, 0)
        assert (rollouts.tokens == token).all() and (rollouts.success == (token == 2)).all()


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_sampler_that_plays_in_parts_plays_the_same(most: int) -> None:
    dream = ImaginedEnv(small_world_model(), small_reward(), chunk_size=CHUNK, max_chunks=3, seed=0)
    dream.reward_model.threshold = 0.0
    whole, parts = (
        LocalSampler(dream, small_policy(), each).run(some_starts(8, frames=1), 1.0, 0) for each in (0, most)
    )
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.executed, parts.executed)
    assert torch.equal(whole.success, parts.success) and torch.equal(whole.num_steps, parts.num_steps)
    assert torch.allclose(whole.logprob, parts.logprob, atol=1e-5)


def test_a_learner_publishes_copies_and_goes_on_from_what_it_saved() -> None:
    learner = GRPOLearner(small_policy(), GRPOConfig(), temperature=1.0)
    assert isinstance(learner, Learner)
    batch = decisions(4, learner.policy, num_tokens=CHUNK * ACTIONS)
    published = learner.publish()
    metrics = learner.step(batch)
    assert set(metrics) == {"clip_fraction", "kl", "entropy", "grad_norm"}
    assert all(math.isfinite(value) for value in metrics.values())
    assert torch.equal(published["head.weight"], small_policy().head.weight)
    saved = {name: tensor.clone() for name, tensor in learner.save().items()}
    other = GRPOLearner(small_policy(seed=1), GRPOConfig(), temperature=1.0)
    other.restore(saved)
    for each in (learner, other):
        each.step(replace(batch, advantage=-batch.advantage))
    for name, tensor in learner.publish().items():
        assert torch.equal(other.publish()[name], tensor), name
