"""Say in a config.json that matrices are int8 with a scale per row, and find it said there.

The words are those of the compressed-tensors format; row i of such a matrix stands for
weight_scale[i] * weight[i].
"""

from __future__ import annotations

from collections.abc import Mapping

from ark_dist.core.errors import ModelConfigError

KEY = "quantization_config"
_WEIGHTS: Mapping[str, object] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
_TARGETS = ("Linear", "Embedding")
INT8: Mapping[str, object] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {"group_0": {"targets": list(_TARGETS), "weights": dict(_WEIGHTS)}},
    "ignore": [],
}


def is_int8(found: object, source: str) -> bool:
    """Whether a quantization_config says that all matrices are int8; it is None where none is.

    Raises:
        ModelConfigError: if it says anything else; `source` is what that calls the file.
    """
    if found is None:
        return False
    if not isinstance(found, Mapping) or any(
        found.get(key) != INT8[key] for key in ("quant_method", "format")
    ):
        raise _error(source, "of another format")
    if found.get("ignore"):
        raise _error(source, f"which leaves out {found['ignore']!r}")
    groups = found.get("config_groups")
    (group,) = groups.values() if isinstance(groups, Mapping) and len(groups) == 1 else (None,)
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise _error(source, "of several groups")
    if any(group["weights"].get(key) != value for key, value in _WEIGHTS.items()):
        raise _error(source, "with other weights")
    targets = group.get("targets")
    if not isinstance(targets, list) or not set(_TARGETS) <= {str(name) for name in targets}:
        raise _error(source, f"for {targets!r}")
    return True


def _error(source: str, what: str) -> ModelConfigError:
    return ModelConfigError(
        f"{source}: found a {KEY} {what}; wanted int8 weights with a scale per row of all "
        "matrices, as `ark-dist convert --dtype int8` makes them"
    )
