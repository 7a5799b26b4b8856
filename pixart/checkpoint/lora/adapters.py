"""From the tensors of one module in a LoRA file to the change they stand for."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .changes import BOFT, OFT, Change, Difference, GLoRA, LoHa, LoKr, Replacement
from .keys import (
    ALPHA,
    DIFF,
    DIFF_BIAS,
    DORA,
    DOWN,
    GLORA,
    LOHA,
    LOKR,
    MAGNITUDE,
    MID,
    NORM,
    NORM_BIAS,
    OFT_BLOCKS,
    RESCALE,
    RESHAPE,
    SET,
    UP,
    WeightSlice,
)
from .lora import LoraPart

# Tensors that have no meaning without each other.
COMPLETE = ((DOWN, UP), LOHA[:4], LOHA[4:], GLORA, ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"))


@dataclass(frozen=True)
class ModuleTensors:
    """The tensors of one module by kind, and what is known about their scale."""

    place: WeightSlice
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    alpha: float | None                             # from the tensors
    scale_of_rank: Callable[[int], float]           # where the tensors do not say it

    def scale(self, rank: int) -> float:
        if rank < 1:
            raise ValueError("rank 0")
        return self.scale_of_rank(rank) if self.alpha is None else self.alpha / rank

    def names(self, *kinds: str) -> tuple[str, ...]:
        """Keys in the file of these kinds, as far as they are present."""
        return tuple(self.keys[kind] for kind in kinds if kind in self.keys)

    @property
    def magnitude(self) -> Tensor | None:
        """(rows,), or (1, columns, ...). peft stores norms of rows only, LyCORIS of either, as the shape shows."""
        if MAGNITUDE in self.tensors:
            return self.tensors[MAGNITUDE].flatten()
        given = self.tensors.get(DORA)
        if given is None or given.ndim < 2 or given.shape[0] != 1:
            return None if given is None else given.flatten()
        return given


def build_changes(found: ModuleTensors) -> list[Change]:
    """The changes that one module's tensors stand for. Raises ValueError for tensors that do not go together."""
    makers = [make for kind, make in MAKERS.items() if kind in found.tensors]
    if len({make for make in makers if make is not bias_difference}) > 1:
        raise ValueError("tensors of two methods for one layer")
    return [make(found) for make in dict.fromkeys(makers)]


def lora_change(found: ModuleTensors) -> Change:
    down, up = found.tensors[DOWN], found.tensors[UP].flatten(1)
    mid = found.tensors.get(MID)
    if down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        raise ValueError(f"shapes {tuple(down.shape)} and {tuple(up.shape)} instead of (rank, in) and (out, rank)")
    if mid is not None and (mid.ndim != 4 or tuple(mid.shape[:2]) != (up.shape[1], len(down))):
        raise ValueError(f"shapes {tuple(mid.shape)} between {tuple(down.shape)} and {tuple(up.shape)} instead of "
                         "(rank, rank, side, side) between (rank, in) and (out, rank)")
    magnitude = found.magnitude
    if magnitude is not None and magnitude.ndim == 1 and len(magnitude) != len(up):
        raise ValueError(f"{len(magnitude)} lengths for {len(up)} rows")
    return LoraPart(found.place.module, found.place.part, found.place.parts, down, up, found.scale(down.shape[0]),
                    magnitude, found.names(DOWN, UP, MID, ALPHA, MAGNITUDE, DORA, RESHAPE), mid)


def hadamard(found: ModuleTensors) -> Change:
    values: dict[str, Any] = {kind.removeprefix("hada_"): found.tensors[kind] for kind in LOHA if kind in found.tensors}
    return LoHa(**_placed(found, *LOHA, ALPHA, DORA, MAGNITUDE), **values, magnitude=found.magnitude,
                scale=found.scale(values["w1_b"].shape[0]))


def kronecker(found: ModuleTensors) -> Change:
    """If both factors are whole there is no rank, and alpha has no effect."""
    values: dict[str, Any] = {kind.removeprefix("lokr_"): found.tensors[kind] for kind in LOKR if kind in found.tensors}
    ranked = values.get("w2_b", values.get("w1_b"))
    if "w2" in values and "w1" not in values:
        ranked = values.get("w1_b")
    scale = 1.0 if ranked is None else found.scale(ranked.shape[0])
    return LoKr(**_placed(found, *LOKR, ALPHA, DORA, MAGNITUDE), **values, magnitude=found.magnitude, scale=scale)


def generalized(found: ModuleTensors) -> Change:
    values: dict[str, Any] = {kind: found.tensors[kind] for kind in GLORA}
    rank = GLoRA.rank_of(values["a1"], values["a2"])
    return GLoRA(**_placed(found, *GLORA, ALPHA, DORA, MAGNITUDE), **values, magnitude=found.magnitude,
                 scale=found.scale(rank))


def rotated(found: ModuleTensors) -> Change:
    """Alpha bounds the rotation; blocks of three dimensions are OFT, of four the butterfly steps of BOFT."""
    blocks = found.tensors[OFT_BLOCKS]
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"blocks of shape {tuple(blocks.shape)}")
    if found.magnitude is not None:
        raise ValueError("DoRA on top of a rotation is not supported")
    kind = OFT if blocks.ndim == 3 else BOFT
    return kind(**_placed(found, OFT_BLOCKS, RESCALE, ALPHA), blocks=blocks, constraint=found.alpha or 0.0,
                rescale=found.tensors.get(RESCALE))


def weight_difference(found: ModuleTensors) -> Change:
    kind = DIFF if DIFF in found.tensors else NORM
    return Difference(**_placed(found, kind, ALPHA), difference=found.tensors[kind])


def bias_difference(found: ModuleTensors) -> Change:
    kind = DIFF_BIAS if DIFF_BIAS in found.tensors else NORM_BIAS
    return Difference(**_placed(found, kind), bias=True, difference=found.tensors[kind])


def replacement(found: ModuleTensors) -> Change:
    return Replacement(**_placed(found, SET), value=found.tensors[SET])


def _placed(found: ModuleTensors, *kinds: str) -> dict[str, Any]:
    return {"module": found.place.module, "part": found.place.part, "parts": found.place.parts,
            "keys": found.names(*kinds)}


MAKERS: dict[str, Callable[[ModuleTensors], Change]] = {
    DOWN: lora_change, **dict.fromkeys(LOHA[:1], hadamard), **dict.fromkeys(LOKR, kronecker), GLORA[0]: generalized,
    OFT_BLOCKS: rotated, DIFF: weight_difference, NORM: weight_difference, DIFF_BIAS: bias_difference,
    NORM_BIAS: bias_difference, SET: replacement,
}
