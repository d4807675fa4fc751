"""Hyena: long convolutions with implicit filters between gates, in place of attention.

The operator is that of Poli et al. 2023, Hyena Hierarchy (arXiv:2302.10866), of order 2: a sequence is projected to a
value and two gates, each through a short causal convolution; the value times the first gate goes through one
convolution as long as the context, and then meets the second gate. The long filter is no table of weights but a small
network of the place, under a window that falls exponentially, faster in some channels than in others. Convolutions are
products of Fourier transforms: their cost grows with length times its logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

SHORT = 3
"""Width of the short convolution."""
BANDS = 2
"""Frequencies in the embedding of a place, each as sine and cosine."""
FILTER_WIDTH = 64
FREQUENCY = 10.0
"""Of the filter network's sine activations at the beginning; it is learnt."""
SLOWEST, FASTEST, LEFT = 1.5, 0.3, 1e-2
"""The window falls to LEFT after SLOWEST contexts in the first channel, after FASTEST in the last."""


class Hyena(nn.Module):
    """A causal body: token ids [n, length] to states [n, length, hidden]; length is at most the context."""

    def __init__(self, vocabulary: int, context: int, hidden: int, layers: int, feed_forward: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.dropout = nn.Dropout(dropout)
        stack = [HyenaLayer(context, hidden, feed_forward, dropout) for _ in range(layers)]
        self.layers = nn.ModuleList(stack)
        self.norm = nn.LayerNorm(hidden)
        self.checkpointing = False
        self.apply(_begin)
        for layer in stack:  # so that the sum of all layers begins as large as one
            for last in (layer.mixer.output, layer.feed_forward[-1]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.dropout(self.embedding(ids))
        for layer in self.layers:
            if self.checkpointing and self.training:
                states = checkpoint(layer, states, use_reentrant=False)
            else:
                states = layer(states)
        return self.norm(states)


class HyenaLayer(nn.Module):
    """The operator and a feed-forward network, each behind a norm and beside a skip connection."""

    def __init__(self, context: int, hidden: int, feed_forward: int, dropout: float):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(hidden)
        self.mixer = HyenaOperator(context, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(nn.Linear(hidden, feed_forward), nn.GELU(), nn.Linear(feed_forward, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.dropout(self.mixer(self.mixer_norm(states)))
        return states + self.dropout(self.feed_forward(self.norm(states)))


class HyenaOperator(nn.Module):
    """Two gates around one long convolution; states [n, length, hidden] to the same shape."""

    def __init__(self, context: int, hidden: int):
        super().__init__()
        self.input = nn.Linear(hidden, 3 * hidden)
        self.short = nn.Conv1d(3 * hidden, 3 * hidden, SHORT, groups=3 * hidden, padding=SHORT - 1)
        self.filter = ImplicitFilter(context, hidden)
        self.skip = nn.Parameter(torch.randn(hidden))
        self.output = nn.Linear(hidden, hidden)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        length = states.shape[1]
        projected = self.short(self.input(states).transpose(1, 2))[..., :length]
        after, before, value = projected.chunk(3, dim=1)
        gated = value * before
        mixed = causal_convolution(gated, self.filter(length)) + gated * self.skip[:, None]
        return self.output((after * mixed).to(states.dtype).transpose(1, 2))


class ImplicitFilter(nn.Module):
    """The long filter as a function of the place.

    Places are measured in contexts, whatever the length of a batch, so that a batch's width changes no state.
    """

    places: torch.Tensor
    window: torch.Tensor

    def __init__(self, context: int, hidden: int):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(1 + 2 * BANDS, FILTER_WIDTH),
            Sine(FILTER_WIDTH),
            nn.Linear(FILTER_WIDTH, FILTER_WIDTH),
            Sine(FILTER_WIDTH),
            nn.Linear(FILTER_WIDTH, FILTER_WIDTH),
            Sine(FILTER_WIDTH),
            nn.Linear(FILTER_WIDTH, hidden, bias=False),
        )
        part = torch.linspace(0, 1, context)[:, None]
        angles = 2 * math.pi * part * (context - 1) / context * torch.linspace(1e-4, BANDS - 1, BANDS)
        fall = -math.log(LEFT) * torch.linspace(1 / SLOWEST, 1 / FASTEST, hidden)
        self.register_buffer("places", torch.cat([part, angles.cos(), -angles.sin()], dim=1), persistent=False)
        self.register_buffer("window", torch.exp(-part * fall), persistent=False)

    def forward(self, length: int) -> torch.Tensor:
        """The first `length` values of each channel's filter, float32 [hidden, length]."""
        if length > len(self.places):
            raise ValueError(f"{length} tokens are more than the context of {len(self.places)}")
        with torch.autocast(self.places.device.type, enabled=False):
            return (self.network(self.places[:length]) * self.window[:length]).T


class Sine(nn.Module):
    """A sine whose frequency is learnt for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.frequency = nn.Parameter(torch.full((width,), FREQUENCY))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.frequency * inputs)


def causal_convolution(values: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Each channel convolved with its filter, no value meeting a later one's; float32.

    values: [n, hidden, length]; filters: [hidden, length]. Transforms of twice the length keep the end from
    running into the beginning.
    """
    length = values.shape[-1]
    with torch.autocast(values.device.type, enabled=False):
        size = 2 * length
        product = torch.fft.rfft(values.float(), n=size) * torch.fft.rfft(filters.float(), n=size)
        return torch.fft.irfft(product, n=size)[..., :length]


def _begin(module: nn.Module) -> None:
    """Small normal weights as GPT-2's; the filter network keeps torch's own, which its sines need."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, HyenaOperator):
        for linear in (module.input, module.output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
    elif isinstance(module, HyenaLayer):
        for part in module.feed_forward:
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
