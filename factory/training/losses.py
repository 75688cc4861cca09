"""Preference losses by name: those of TRL, and their checks in a recipe. Pure; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.errors import nearest

# loss_type of TRL's DPOConfig, alone or as a weighted sum
DPO = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# What has a trainer of its own and stands alone: its trainer, and what TRL's config is told.
# SimPO is CPO's trainer without the NLL term (arXiv 2405.14734).
ALONE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "kto": ("kto", {"loss_type": "kto"}),
    "apo_zero_unpaired": ("kto", {"loss_type": "apo_zero_unpaired"}),
    "orpo": ("orpo", {}),
    "cpo": ("cpo", {"loss_type": "sigmoid"}),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0}),
    "tpo": ("tpo", {"loss_type": "sigmoid"}),
    "tpo_l": ("tpo", {"loss_type": "tpo-l"}),
}
NAMES = (*DPO, *ALONE)

WITHOUT_REFERENCE = frozenset({"orpo", "cpo", "simpo", "tpo", "tpo_l"})
UNPAIRED = frozenset({"kto", "apo_zero_unpaired"})  # each answer by itself, with a label
TRIPLE = frozenset({"tpo", "tpo_l"})  # a third answer, which is learned as in SFT
# Knobs of dpo that go with some losses: most are of TRL's DPOTrainer. It weighs no pair where it
# sorts the rows of a batch, and another divergence is for a difference of two log-ratios alone.
FITTING: Mapping[str, frozenset[str]] = {
    "group_by_length": frozenset(DPO),
    "use_weighting": frozenset(DPO) - {"aot", "aot_unpaired"},
    "ld_alpha": frozenset(DPO),
    "f_divergence_type": frozenset(
        {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
    ),
    "margin_smoothing": frozenset(NAMES) - TRIPLE,
    "unpaired": UNPAIRED,
}
# These compare or average the rows of a micro batch, so its size gives them their meaning.
BY_MICRO_BATCH = frozenset({"aot", "aot_unpaired", "kto", "sft"})
ACROSS_ROWS = frozenset({"aot", "aot_unpaired", "kto"})  # of one row alone they say nothing
SMOOTHED = frozenset({"exo_pair", "robust", "aot", "aot_unpaired", "cpo"})


def parse(value: Any) -> str | dict[str, float]:
    """Return one loss name, or the weights of several in the table's order; a sum of one is that
    name.

    Raises ValueError that lists the names."""
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError("is a name, or weights like {sigmoid: 1.0, sft: 0.2}")
    for name, weight in weights.items():
        if name not in NAMES:
            raise ValueError(
                f"no training here has the loss {name!r}{nearest(str(name), NAMES)}; there are "
                f"{', '.join(NAMES)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise ValueError(f"the weight of {name} must be a number over 0, not {weight!r}")
        if name in ALONE and len(weights) > 1:
            raise ValueError(f"{name} has a trainer of its own and cannot be part of a sum")
    if len(weights) == 1:
        [(name, weight)] = weights.items()
        if weight != 1 and name in ALONE:
            raise ValueError(f"{name} has no weight; change lr instead")
        if weight == 1:
            return str(name)
    return {name: float(weights[name]) for name in NAMES if name in weights}


def weights(loss: str | Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each loss in a parsed loss."""
    return {loss: 1.0} if isinstance(loss, str) else dict(loss)


def describe(loss: str | Mapping[str, float]) -> str:
    """Return the loss as text: `sigmoid`, or `1 sigmoid + 0.2 sft`."""
    if isinstance(loss, str):
        return loss
    return " + ".join(f"{weight:g} {name}" for name, weight in loss.items())
