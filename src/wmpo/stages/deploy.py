"""An improved policy outside of this package's loops: one call loads it, one call acts from a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from wmpo import likelihood
from wmpo.checkpoint import read_json, write_atomic
from wmpo.data.importing import check_new
from wmpo.data.pictures import resize
from wmpo.protocols import PolicyNet
from wmpo.stages import models
from wmpo.stages.job import existing_job
from wmpo.stages.rounds import handed_in, last_round
from wmpo.types import Observation

EXPORTED = "policy.safetensors"
"""The file in an exported folder."""


class LoadedPolicy:
    """A policy that acts greedily from pictures of its cameras, whose names are ``views``.

    ``chunk_size`` is K, ``action_dim`` A; ``low`` and ``high`` are the 1 % and 99 % quantiles of the demonstrations'
    actions in the environment's units: no action lies outside. ``instructions`` are the sentences it was trained with.
    """

    def __init__(self, policy: PolicyNet, instructions: Sequence[str]) -> None:
        self._policy, self.instructions, self.image_size = policy.eval(), tuple(instructions), policy.image_size
        self.views = policy.views
        self.chunk_size, self.action_dim = policy.codec.chunk_size, policy.codec.action_dim
        self.low, self.high = (np.array(bound, dtype=np.float32) for bound in (policy.codec.low, policy.codec.high))

    @torch.no_grad()
    def act(
        self,
        image: np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray],
        instruction: str | None = None,
    ) -> Float[np.ndarray, "K A"]:
        """The next K actions in the environment's units, from one picture uint8 [h,w,3] of each camera: a picture where
        there is one camera, else a dictionary by the names in ``views`` or a list in their order.

        A picture of another size is resized as imported ones are. Without an instruction the policy's own is used, if
        it has one. Raises ValueError if it has several, and for anything but such pictures.
        """
        pictures = self._by_camera(image)
        frame = np.concatenate([self._fit(picture) for picture in pictures], axis=2)
        sentence = only(self.instructions, "act(image, instruction)") if instruction is None else instruction
        tensors = self._policy.prepare(Observation(frame=torch.from_numpy(frame.copy()), instruction=(sentence,)))
        tokens, _ = likelihood.of(self._policy).draw(tensors, 0.0, None)
        return self._policy.codec.decode(tokens)[0].float().numpy()

    def _by_camera(self, given: np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> list[np.ndarray]:
        wanted = f"the policy sees {len(self.views)} cameras: give {', '.join(self.views)}"
        if isinstance(given, Mapping):
            if set(given) != set(self.views):
                raise ValueError(f"{wanted}, not {', '.join(map(str, given)) or 'nothing'}")
            return [given[name] for name in self.views]
        pictures: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if len(pictures) != len(self.views):
            raise ValueError(
                f"{wanted} as a dictionary, or as a list in this order; there are {len(pictures)} pictures"
            )
        return pictures

    def _fit(self, image: np.ndarray) -> UInt8[np.ndarray, "1 s s 3"]:
        if not isinstance(image, np.ndarray):
            raise ValueError(f"a picture is a numpy array uint8 [h, w, 3], not {type(image).__name__}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"a picture is uint8 [h, w, 3], not {image.dtype} {list(image.shape)}; convert it first")
        return resize(image[None], self.image_size)


def only(instructions: Sequence[str], fix: str) -> str:
    """The sentence of a policy that knows one task. Raises ValueError where there are several."""
    if len(instructions) > 1:
        raise ValueError(f"the policy knows several tasks; say which one, as in {fix}: {', '.join(instructions)}")
    return instructions[0]


def load_policy(path: str | Path) -> LoadedPolicy:
    """From a run's folder (the policy that ``evaluate`` handed in, before that the improved one of the last complete
    round), a file of its ``models`` or a folder that :func:`export_policy` wrote.

    Raises ValueError when there is no such policy yet, or the file is damaged.
    """
    return LoadedPolicy(*models.open_policy(policy_file(path)))


def policy_file(path: str | Path) -> Path:
    """The file that :func:`load_policy` opens."""
    place = Path(path)
    if (place / EXPORTED).exists():
        return place / EXPORTED
    if place.is_dir():
        job = existing_job(place)
        if not last_round(job):
            raise ValueError(
                f"{place} has no improved policy yet; finish improve, or name models/base.safetensors in it"
            )
        folder, name = handed_in(job)
        place = folder.model(name)
    return place


def export_policy(run: Path, target: Path) -> None:
    """Writes a folder with the policy alone, for :func:`load_policy`, and a ``README.md`` that says what it is. Raises
    ValueError when the run has none yet, or the target is no new or empty folder."""
    file = policy_file(run)
    check_new(target)
    policy = LoadedPolicy(*models.open_policy(file))
    write_atomic(target / "README.md", _card(run, target.name, policy).encode())
    write_atomic(target / EXPORTED, file.read_bytes())


def _card(run: Path, name: str, policy: LoadedPolicy) -> str:
    """What somebody must know who has the folder only."""
    cameras, size = ", ".join(policy.views), policy.image_size
    low, high = (", ".join(f"{end:.3g}" for end in ends) for ends in (policy.low, policy.high))
    called = "image" if len(policy.instructions) == 1 else f"image, {policy.instructions[0]!r}"
    lines = [
        f"# {name}", "", "A robot policy from a run of wmpo.", "", "```python", "import wmpo", "",
        f'policy = wmpo.load_policy("{name}")', f"actions = policy.act({called})  # uint8 [h, w, 3] -> float32 "
        f"[{policy.chunk_size}, {policy.action_dim}], in the environment's units", "```", "",
        f"- {'sentence' if len(policy.instructions) == 1 else 'sentences'}: "
        f"{', '.join(map(repr, policy.instructions))}", f"- cameras: {cameras}; pictures are resized to {size} pixels",
        f"- no action is below {low} or above {high}",
    ]  # fmt: skip
    if (results := run / "results.json").exists():
        best = {who: read_json(results)[who]["best"] for who in ("base", "improved")}
        rates = {who: f"{100 * found['success']:.1f} % ({found['decoding']})" for who, found in best.items()}
        lines.append(f"- real success on {best['base']['n']} test starts: {rates['improved']}; base {rates['base']}")
    return "\n".join([*lines, f"- from the run {run.resolve().name}", ""])
