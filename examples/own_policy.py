"""A policy of your own: any torch module that turns pictures into action tokens.

A ``wmpo.protocols.Policy`` has a ``codec`` between tokens and actions, ``prepare``, which makes tensors of an
observation (pictures uint8 [B,h,w,3] and sentences), and ``forward``, which makes of those the logits [B,N,V] of a
chunk: N = K * A tokens of V bins. Rollouts, cloning and GRPO need nothing else. Run: python examples/own_policy.py
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.policy.codec import ActionCodec
from wmpo.types import Observation


class OwnPolicy(nn.Module):
    def __init__(self, network: nn.Module, codec: ActionCodec) -> None:
        super().__init__()
        self.network, self.codec = network, codec

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        return {"image": observation.frame.permute(0, 3, 1, 2).float() / 255}  # sentences: observation.instruction

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).unflatten(1, (self.codec.num_tokens, self.codec.num_bins))


if __name__ == "__main__":
    torch.manual_seed(0)
    actions = torch.rand(64, 4, 2) * 2 - 1  # demonstrations: 64 chunks of K = 4 actions of A = 2 dimensions
    codec = ActionCodec.fit(actions.flatten(0, 1), chunk_size=4, num_bins=11)
    yours = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, codec.num_tokens * 11))
    policy = OwnPolicy(yours, codec)
    seen = Observation(frame=torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8), instruction=("push",) * 64)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for _ in range(2):
        logits = policy(**policy.prepare(seen))
        loss = -likelihood.log_probs(logits, codec.encode(actions)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {loss.item():.3f}")
    print(codec.decode(likelihood.sample(policy(**policy.prepare(seen)), 0.0, None))[0])
