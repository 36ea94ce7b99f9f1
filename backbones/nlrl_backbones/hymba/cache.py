"""What Hymba keeps between calls, and where the tokens of a call stand.

The cache of every layer: keys after rotation and values (not where the layer reads another's), the last K - 1 raw
inputs of the convolution, and the scan's state. Slots are never dropped, out of the window or not; the mask decides.
vLLM's view frees what a window has left behind.
"""

from dataclasses import dataclass

import torch

from nlrl_backbones.hymba.config import HymbaConfig

_PADDING = -1


@dataclass
class LayerCache:
    """State of one layer; each part is None until the first call has filled it."""

    keys_BGSD: torch.Tensor | None = None
    values_BGSV: torch.Tensor | None = None
    conv_BKC: torch.Tensor | None = None
    scan_BCN: torch.Tensor | None = None

    def append(self, k_BGTD: torch.Tensor, v_BGTV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the new keys and values; returns all."""
        if self.keys_BGSD is not None and self.values_BGSV is not None:
            k_BGTD = torch.cat([self.keys_BGSD, k_BGTD], dim=2)
            v_BGTV = torch.cat([self.values_BGSV, v_BGTV], dim=2)
        self.keys_BGSD, self.values_BGSV = k_BGTD, v_BGTV
        return k_BGTD, v_BGTV


class HymbaCache:
    """Cache of all layers, as ``generate`` expects one: it can be reordered, repeated and asked for its length."""

    is_compileable = False

    def __init__(self, config: HymbaConfig) -> None:
        self.num_meta = config.num_meta
        self.layers = [LayerCache() for _ in range(config.num_hidden_layers)]
        self.positions_BS: torch.Tensor | None = None
        self.counts_B: torch.Tensor | None = None
        self.packed = True  # no padding between or before tokens

    @property
    def is_filled(self) -> bool:
        """Whether a call has been cached; the first one puts the meta tokens in front."""
        return self.positions_BS is not None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of ``input_ids`` cached so far, padding included and meta tokens not; the same in every layer."""
        return 0 if self.positions_BS is None else self.positions_BS.shape[1] - self.num_meta

    def advance(self, rows: "Rows") -> None:
        """Take over the positions of a finished call."""
        self.positions_BS, self.counts_B = rows.key_positions_BS, rows.counts_B
        self.packed = rows.packed and not rows.padded

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self.positions_BS is None or self.counts_B is None:
            return
        self.positions_BS, self.counts_B = self.positions_BS[indices], self.counts_B[indices]
        for layer in self.layers:
            for name, value in vars(layer).items():
                if value is not None:
                    setattr(layer, name, value[indices.to(value.device)])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow the beams of beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self.positions_BS is not None:
            rows = torch.arange(len(self.positions_BS), device=self.positions_BS.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))


class Rows:
    """Where the tokens of one call stand: positions of queries and keys, and the masks that follow from them.

    Attributes:
        positions_BT: position of each token; 0 at padding, so that a padding query sees something and stays finite.
        key_positions_BS: position of each cached and new slot; -1 at padding, which no query sees.
        real_BT: which tokens are real.
        counts_B: real tokens of each row so far, this call included, meta tokens not.
        padded: whether there may be padding.
        spared: leading tokens that no adapter acts on: the meta tokens in the call that they stand in front of.
        narrowed: by how much windows are narrower: 1 where one token is decoded as the official code does.
        packed: whether slots stand at positions 0, 1, 2, ..., with padding at most behind them.
    """

    packed = True

    def __init__(
        self,
        positions_BT: torch.Tensor,
        past_BS: torch.Tensor | None,
        counts_B: torch.Tensor,
        config: HymbaConfig,
        padded: bool,
    ) -> None:
        self.padded = padded
        self.spared = config.num_meta if past_BS is None and not config.adapt_meta_tokens else 0
        decoding = past_BS is not None and positions_BT.shape[1] == 1
        self.narrowed = int(decoding and config.decode_window == "official")
        self.real_BT = positions_BT != _PADDING
        self.positions_BT = positions_BT.clamp(min=0)
        self.key_positions_BS = positions_BT if past_BS is None else torch.cat([past_BS, positions_BT], dim=1)
        self.counts_B = counts_B
        self._num_meta = config.num_meta
        self._masks: dict[int | None, torch.Tensor] = {}
        self._starts: dict[tuple[int, int], torch.Tensor] = {}

    @classmethod
    def next(
        cls, x_BTE: torch.Tensor, config: HymbaConfig, counts_B: torch.Tensor | None, cache: HymbaCache | None
    ) -> "Rows":
        """Rows of a call whose tokens (meta tokens in front in the first call) follow what is cached.

        ``counts_B`` are the real tokens of each row, which stand first; None when all are.
        """
        batch, length = x_BTE.shape[:2]
        padded = counts_B is not None
        if counts_B is None and cache is None:
            batch = 1  # one row of positions and masks serves all
        steps_T = torch.arange(length, device=x_BTE.device)
        if cache is not None and cache.positions_BS is not None and cache.counts_B is not None:
            past, before, meta = cache.positions_BS, cache.counts_B, 0
        else:
            past, before, meta = None, torch.zeros(batch, dtype=torch.long, device=x_BTE.device), config.num_meta
        offset = before + (0 if past is None else config.num_meta)
        positions = offset[:, None] + steps_T
        new = torch.full_like(before, length - meta) if counts_B is None else counts_B
        if padded:
            positions = torch.where(steps_T < meta + new[:, None], positions, _PADDING)
        rows = cls(positions, past, before + new, config, padded)
        rows.packed = cache is None or cache.packed
        return rows

    def starts(self, batch: int, length: int) -> torch.Tensor:
        """Where each of so many rows of this length begins, and the last one ends, [B + 1]."""
        if (batch, length) not in self._starts:
            steps = torch.arange(batch + 1, dtype=torch.int32, device=self.positions_BT.device)
            self._starts[batch, length] = steps * length
        return self._starts[batch, length]

    def visible(self, window: int | None) -> torch.Tensor:
        """Mask [B, 1, T, S]: causal, and within the window or a meta token."""
        if window not in self._masks:
            query, key = self.positions_BT[:, :, None], self.key_positions_BS[:, None, :]
            mask = (key >= 0) & (key <= query)
            if window is not None:
                mask &= (query - key <= window - self.narrowed) | (key < self._num_meta)
            self._masks[window] = mask[:, None]
        return self._masks[window]

    def last_real(self, raw_BTC: torch.Tensor, past: int) -> torch.Tensor:
        """The ``past`` inputs that end at each row's last real token, of ``past`` earlier inputs and the new ones."""
        if not self.padded:
            return raw_BTC[:, raw_BTC.shape[1] - past :]
        index = self.real_BT.sum(dim=-1)[:, None] + torch.arange(past, device=raw_BTC.device)
        return raw_BTC.gather(1, index[..., None].expand(-1, -1, raw_BTC.shape[-1]))
