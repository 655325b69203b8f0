"""Queries, keys and values of a flat pass in, attended values out: every sequence sees itself alone.

Registered with transformers as an attention implementation; outside of a pass it is transformers' own sdpa.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from punnett.errors import RunError
from punnett.shared_base.passes import AttentionSettings, current_pass

NAME = "punnett_flat"


def register() -> None:
    """Make the implementation known to transformers under `NAME`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*arguments: Any, **settings: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    # within a pass the attention itself knows which token sees which
    return None if current_pass() else sdpa_mask(*arguments, **settings)


def _attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any) -> Any:
    flat_pass = current_pass()
    if flat_pass is None:
        return _ordinary(module, query, key, value, attention_mask, settings)
    if settings.get("s_aux") is not None or settings.get("position_bias") is not None:
        raise RunError("this model's attention has sinks or a position bias, which punnett cannot share between students")
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    about = AttentionSettings(scale, settings.get("softcap"), settings.get("sliding_window"))
    return flat_pass.attention.attend(module, query, key, value, about), None


def _ordinary(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, settings: dict[str, Any]) -> Any:
    if settings.get("softcap") is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    if mask is None and query.shape[2] > 1:
        mask = causal(query.shape[2], key.shape[2], None, query.device)
    return capped_attention(query, key, value, mask, scale, settings["softcap"]).transpose(1, 2).contiguous(), None


class SequenceAttention:
    """Whole sequences end to end, each seeing itself from its own start: training, and the reading of prompts."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        """Each sequence's attention by itself, so that its rounding cannot depend on its neighbours."""
        rest = query.shape[2] - sum(self.lengths)
        sizes = [*self.lengths, rest] if rest else self.lengths
        # split and not slices: the gradient of a slice is a whole tensor of zeros
        pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        return torch.cat([sequence_attention(q, k, v, settings).transpose(1, 2) for q, k, v in pieces], dim=1)


def sequence_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
    """Causal attention of one sequence: (1, heads, n, width) with keys of as many heads or fewer, to (1, heads, n, width)."""
    n = query.shape[2]
    window = settings.window if settings.window is not None and n > settings.window else None
    if settings.cap is None and window is None:
        grouped = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=settings.scale, enable_gqa=grouped)
    return masked_attention(query, key, value, causal(n, n, window, query.device), settings)


def masked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
    """Attention under a mask (..., n_queries, n_keys) that is true where a query sees a key."""
    if settings.cap is not None:
        return capped_attention(query, key, value, mask, settings.scale, settings.cap)
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=settings.scale, enable_gqa=grouped)


def capped_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scale: float, cap: float) -> torch.Tensor:
    """Attention whose scores are squashed by tanh (Gemma 2), written out because no fused kernel of torch's knows it."""
    groups = query.shape[1] // key.shape[1]
    scores = torch.tanh(query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * (scale / cap)) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value.repeat_interleave(groups, 1)


def causal(n_queries: int, n_keys: int, window: int | None, device: Any) -> torch.Tensor:
    """(n_queries, n_keys), true where a token sees another: itself and what came before, within its window."""
    query_at = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    key_at = torch.arange(n_keys, device=device)[None, :]
    seen = key_at <= query_at
    return seen if window is None else seen & (query_at - key_at < window)


def borders(lengths: list[int]) -> list[tuple[int, int]]:
    """Start and end of each of the sequences laid end to end."""
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return list(pairwise(ends))
