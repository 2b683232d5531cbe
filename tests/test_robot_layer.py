"""The robot as drawn from its commands alone: what the layer learns, and what it is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from miniatures import ACTIONS, SIZE, small_world_model
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.train.frame_clips import FrameClips
from wmpo.world_model.robot import RobotLayer


def squares(where: Tensor) -> Tensor:
    """A white square of 6 px on black, its middle at ``where`` [B, 2] (x, y from -1 to 1)."""
    at = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    x, y = torch.meshgrid(at, at, indexing="xy")
    inside = ((x - where[:, 0, None, None]).abs() < 0.4) & ((y - where[:, 1, None, None]).abs() < 0.4)
    return 2 * inside.float().unsqueeze(1).expand(-1, 3, -1, -1) - 1


def test_a_layer_learns_to_draw_what_the_commands_move() -> None:
    torch.manual_seed(0)
    layer = RobotLayer((16, 16, 16), 2, 2, SIZE // 4, num_views=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)

    def apart(sums: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the drawn pictures, and of empty ones; what is not empty counts more, as in training."""
        picture, drawn = squares(sums), layer(sums, torch.zeros(len(sums), 2, 2))
        opacity, weight = drawn[:, 3:].sigmoid(), 1 + 4 * (picture > 0)
        shown = opacity * drawn[:, :3] + (1 - opacity) * -1
        return ((shown - picture).abs() * weight).mean(), ((-1 - picture).abs() * weight).mean()

    for _ in range(120):
        distance, _ = apart(1.6 * torch.rand(32, 2) - 0.8)
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    with torch.no_grad():
        distance, empty = apart(1.6 * torch.rand(256, 2) - 0.8)
    assert distance < 0.4 * empty


def test_each_view_has_a_place_of_its_own() -> None:
    torch.manual_seed(0)
    layer = RobotLayer((8, 8, 8), 2, 2, SIZE // 4, num_views=2)
    torch.nn.init.normal_(layer.last.weight)
    drawn = layer(torch.zeros(3, 2), torch.zeros(3, 2, 2))
    assert drawn.shape == (3, 4, SIZE, 2 * SIZE) and torch.equal(drawn[0], drawn[2])
    with torch.no_grad():
        layer.place[2][1] += 1
    changed = (layer(torch.zeros(3, 2), torch.zeros(3, 2, 2)) - drawn).abs()
    assert changed[..., SIZE:].max() > 0 and changed[..., :SIZE].max() == 0


def test_a_dream_that_begins_in_mid_episode_draws_the_robot_where_it_is() -> None:
    model, actions = small_world_model(), torch.rand(2, 2, ACTIONS) - 0.5
    frames = torch.zeros(2, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    before = torch.rand(2, ACTIONS)
    home, here = model.begin(frames), model.begin(frames, before)
    assert torch.equal(here.pose, before) and not here.travelled.any(), "the anchor is the frame that it begins with"
    assert not torch.allclose(model._robot(home, actions), model._robot(here, actions))
    moved = replace(home, pose=before)
    assert torch.equal(model._robot(moved, actions), model._robot(here, actions))
    after = model.imagine_frame(here, actions, torch.zeros(2, *model.latent_shape))
    assert torch.allclose(after.pose, before + actions.sum(dim=1)) and torch.equal(after.latest, actions)


def test_sums_say_nothing_where_actions_name_places() -> None:
    model, actions = small_world_model(anchor=False), torch.rand(2, 2, ACTIONS)
    frames = torch.zeros(2, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    home, here = model.begin(frames), model.begin(frames, torch.ones(2, ACTIONS))
    assert torch.equal(model._robot(home, actions), model._robot(here, actions))
    assert not torch.equal(model._robot(home, actions), model._robot(home, actions + 0.5))


def test_the_pose_is_learned_from_rows_that_are_anchored_where_their_episode_began() -> None:
    model, picture = small_world_model(), torch.rand(2, 3, SIZE, SIZE)
    context = model.begin(torch.zeros(2, 1, SIZE, SIZE, 3, dtype=torch.uint8))
    elsewhere = context.pose + torch.tensor([[0.0], [1.0]])
    loss = model._pose_loss(replace(context, pose=elsewhere), torch.zeros(2, 4, SIZE, SIZE), picture)
    assert loss[0] > 0 and loss[1] == 0


def test_clips_know_the_pose_and_the_actions_that_led_to_it() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, size=(9, ACTIONS)).astype(np.float32)
    frames = rng.integers(0, 255, size=(10, SIZE, SIZE, 3), dtype=np.uint8)
    episode = Episode(
        frames=frames, actions=actions, solved_at=-1, instruction="push", start=0, episode_id=0, policy="p"
    )  # fmt: skip
    clips = FrameClips(small_world_model(), [episode], 4)
    context, following, _, picture = clips.sample(np.random.default_rng(1), 64, 1)
    shown = (picture.permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy()
    padded = np.concatenate([np.zeros((2, ACTIONS), np.float32), actions])
    seen = set()
    for row in range(64):
        time = next(t for t in range(10) if np.array_equal(frames[t], shown[row])) - 2
        seen.add(time)
        assert np.allclose(context.pose[row], actions[:time].sum(axis=0), atol=1e-5)
        assert np.allclose(context.latest[row], padded[time : time + 2])
        assert np.allclose(following[row, 0], actions[time : time + 2])
    assert {0, 1, 7} <= seen
