"""Random numbers that are looked up rather than drawn: a function of what they are for, on any device.

SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195) read at any place of its sequence, as
counter-based generators are (Salmon et al. 2011, doi:10.1145/2063384.2063405).
"""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_TWO_64 = 1 << 64


def stream_keys(seed: int, keys: np.ndarray, samples: np.ndarray, device: torch.device) -> torch.Tensor:
    """The stream of each (seed, key, sample): int64 [n]. keys: uint64 [n]; samples: int [n], 0 or more."""
    start = _mix(torch.tensor([_signed(seed % _TWO_64)], device=device))
    key = torch.from_numpy(np.ascontiguousarray(keys, dtype=np.uint64).view(np.int64)).to(device)
    number = torch.from_numpy(np.asarray(samples, dtype=np.int64)).to(device)
    return _mix(_mix(start ^ key) + _signed(_GOLDEN) * (number + 1))


def uniform(streams: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """`size` numbers between 0 and 1, never either, for each stream at one step: float64 [n, size]."""
    begin = _mix(streams + _signed(_GOLDEN * (step + 1) % _TWO_64))
    places = torch.arange(1, size + 1, device=streams.device) * _signed(_GOLDEN)
    bits = _mix(begin[:, None] + places)
    # 52 bits, of which the half between two of them is kept away from 0 and from 1.
    return (_shifted(bits, 12).double() + 0.5) * 2.0**-52


def gumbel(streams: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 [n, size]: added to log-probabilities, the largest sum is a draw from them."""
    return uniform(streams, step, size).log_().neg_().log_().neg_().float()


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_SECOND)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right with zeros, which torch has for unsigned numbers only."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - _TWO_64 if number >= _TWO_64 >> 1 else number
