"""The names under which nnU-Net's network registers the same tensors twice.

nnU-Net's `ResidualEncoderUNet` keeps each convolution and norm also in a sequence `all_modules`, and its decoder holds
the encoder once more, so its state dict has up to four names for one tensor. When such a state dict is loaded, the last
name wins; so a file for nnU-Net must carry every name, each with the same tensor.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from prevox.errors import ConfigError

_OURS = re.compile(r"(.*\.)(conv|norm)\.(weight|bias)")
_PLACE = {"conv": 0, "norm": 1}  # in all_modules


def to_nnunet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with every alias of nnU-Net's, each the very same tensor.

    Args:
        weights: State dict of `ResEncUNet`.
    """
    both: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        both[name] = tensor
        if match := _OURS.fullmatch(name):
            both[f"{match[1]}all_modules.{_PLACE[match[2]]}.{match[3]}"] = tensor
    return both | {f"decoder.{name}": tensor for name, tensor in both.items() if name.startswith("encoder.")}


def from_nnunet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """nnU-Net's state dict under our names.

    Raises:
        ConfigError: If an alias holds other values than the name it stands for: nobody could tell which are meant.
    """
    ours = {name: t for name, t in weights.items() if ".all_modules." not in name and "decoder.encoder." not in name}
    for name, tensor in to_nnunet(ours).items():
        if name in weights and not weights[name].equal(tensor):
            raise ConfigError(
                f"state dict of nnU-Net: '{name}' differs from the name that it repeats; expected the same tensor "
                "under both. Save the network again after loading it into nnU-Net, which makes them equal."
            )
    return ours
