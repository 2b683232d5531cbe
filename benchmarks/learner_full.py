"""The learner at the size of OpenVLA-7B with random weights on a GPU: memory against ``wmpo plan``'s, and speed.

    python benchmarks/learner_full.py            # 7.6 billion parameters; needs 150 GB (else GRPO says it does not
                                                 # fit), and the extra hf
    python benchmarks/learner_full.py --tiny     # tiny sizes, to try the path

Four jobs of the recipe paper-square: a cloning step with low-rank updates (16 samples a pass), an optimiser step of
GRPO on those and on all weights (8 decisions a pass), and decisions of 64 episodes. What is trained has float32 weights
and moments; the stored results are older than that, and trained in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from imagination import hardware
from imagination_full import matrix_ceiling
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.likelihood import NoiseKeys
from wmpo.nn import best_device
from wmpo.policy.codec import VocabularyCodec
from wmpo.policy.openvla_oft import OpenVLAOFTConfig
from wmpo.recipes_paper import paper_square
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.stages import footprint
from wmpo.stages.footprint import OPENVLA_DINO, OPENVLA_SIGLIP, OPENVLA_TEXT, PROMPT_TOKENS, Footprint
from wmpo.stages.job import commit
from wmpo.stages.plan import training_memory
from wmpo.train.fit import FitConfig, Training
from wmpo.types import Minibatch, Observation

RESULTS = Path(__file__).parent / "results" / "learner_full.json"
ACTIONS, BINS = 7, 256
TINY = (
    OPENVLA_TEXT | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    OPENVLA_DINO | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    OPENVLA_SIGLIP | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
)
FULL = (OPENVLA_TEXT, OPENVLA_DINO, OPENVLA_SIGLIP)


class Policy(nn.Module):
    """The network behind the protocol, without a checkpoint's tokenizer and pictures."""

    def __init__(self, config: OpenVLAOFTConfig, tiny: bool) -> None:
        super().__init__()
        with torch.device(best_device()):
            self.net = footprint.openvla_net(config, *(TINY if tiny else FULL))
        if config.gradient_checkpointing:
            self.net.llama.activation_checkpointing_enable({"use_reentrant": False})
        self.codec = VocabularyCodec.fit(2 * torch.rand(100, ACTIONS) - 1, config.chunk_size, BINS)
        self._recompute = config.gradient_checkpointing

    def train(self, mode: bool = True) -> Policy:
        super().train(mode)
        if self._recompute:
            self.net.llama.train()  # transformers recomputes in this mode only
        return self

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        count, device = len(observation.frame), best_device()
        pixels = torch.rand(count, 6, 224, 224, device=device)
        ids = torch.randint(3, 31000, (count, PROMPT_TOKENS), device=device)
        return {"pixels": pixels, "ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.net(pixels, ids, mask, self.codec.num_tokens, slice(31744, 31744 + self.codec.num_bins)).float()


def observation(count: int) -> Observation:
    return Observation(frame=torch.zeros(count, 8, 8, 3, dtype=torch.uint8), instruction=("do it",) * count)


def cloning(policy: Policy, rows: int) -> Callable[[], Any]:
    config = FitConfig(num_steps=100, batch_size=rows, learning_rate=5e-4, ema=0)

    def batches(number: int) -> Callable[[slice], Tensor]:
        seen, actions = policy.prepare(observation(rows)), 2 * torch.rand(rows, policy.codec.chunk_size, ACTIONS) - 1
        return lambda part: likelihood.of(policy).cloning_loss(seen, actions)

    training = Training(policy, batches, config)
    return lambda: training.step(1)


def learning(policy: Policy, rows: int, config: GRPOConfig) -> Callable[[], Any]:
    seen = observation(rows)
    tokens = torch.randint(0, policy.codec.num_bins, (rows, policy.codec.num_tokens))
    minibatch = Minibatch(
        frame=seen.frame, instruction=seen.instruction, tokens=tokens, old_logprob=torch.full(tokens.shape, -5.5),
        mask=torch.ones_like(tokens, dtype=torch.bool), advantage=torch.randn(rows),
        weight=torch.full((rows,), 1 / policy.codec.num_tokens), num_episodes=rows,
    )  # fmt: skip
    learner = GRPOLearner(policy, config, temperature=1.6)
    return lambda: learner.step(minibatch)


def deciding(policy: Policy, rows: int) -> Callable[[], Any]:
    keys = NoiseKeys(seed=0, episodes=tuple(range(rows)), chunk=0)

    def decide() -> None:
        with torch.no_grad():
            likelihood.of(policy).draw(policy.prepare(observation(rows)), 1.6, keys)

    return decide


def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[float, float | None]:
    """Seconds of one (the least of several, after a first that is not counted), and GB at the peak."""
    cuda, least = torch.cuda.is_available(), float("inf")
    run()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - begun)
    return least, torch.cuda.max_memory_allocated() / 1e9 if cuda else None


@dataclass(frozen=True)
class Case:
    """A job on ``rows`` samples, with what was planned for it."""

    name: str
    job: Callable[[Policy], Callable[[], Any]]
    config: OpenVLAOFTConfig
    rows: int
    planned_bytes: int
    operations: int
    "Of one sample."

    def measure(self, tiny: bool, ceiling: float) -> dict[str, Any]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        found: dict[str, Any] = {"name": self.name, "rows": self.rows, "planned_gb": self.planned_bytes / 1e9}
        try:
            seconds, peak = timed(self.job(Policy(self.config, tiny)))
        except torch.cuda.OutOfMemoryError as error:
            return found | {"out_of_memory": str(error).split(". ")[0]}
        tflops = self.rows * self.operations / seconds / 1e12
        found |= {"peak_gb": peak, "seconds": seconds, "rows_per_second": self.rows / seconds, "tflops": tflops}
        found["share_of_ceiling"] = tflops / ceiling
        print(json.dumps(found), flush=True)
        return found


def measured(tiny: bool) -> list[dict[str, Any]]:
    recipe = paper_square()
    lora: Any = recipe.policy
    whole = lora.settled()
    few, many = (2, 4) if tiny else (16, 64)
    low, full = (_planned(replace(recipe, policy=config)) for config in (lora, whole))
    grpo = replace(recipe.improve.grpo, micro_batch=min(few, recipe.improve.grpo.micro_batch))
    cloned = training_memory(low, replace(recipe.sft.fit, batch_size=few, micro_batch=0)).total
    step = FitConfig(batch_size=grpo.micro_batch, ema=0)
    few_learned, learned = (training_memory(net, step).total for net in (low, full))
    again = low.forward, full.forward  # activations are recomputed
    cases = [
        Case("clone, low-rank", lambda p: cloning(p, few), lora, few, cloned, low.training + again[0]),
        Case("GRPO, low-rank", lambda p: learning(p, 2 * few, grpo), lora, 2 * few, few_learned,
             low.training + again[0]),
        Case("GRPO, all weights", lambda p: learning(p, 2 * few, grpo), whole, 2 * few, learned,
             full.training + again[1]),
        Case("decide", lambda p: deciding(p.eval(), many), whole, many, full.weight_bytes, full.forward),
    ]  # fmt: skip
    torch.manual_seed(0)
    ceiling = matrix_ceiling(best_device(), 256 if tiny else 8192)
    return [case.measure(tiny, ceiling) for case in cases]


def _planned(experiment: Any) -> Footprint:
    return footprint.policy_footprint(experiment, ACTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    about = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "hardware": hardware()}
    found = about | {"jobs": measured(args.tiny)}
    print(json.dumps(found, indent=1))
    if not args.tiny:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
