"""What peft does not promise to keep. Import it only where the library is known to be there."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from peft.tuners import tuners_utils
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers


def takes_adapter(model: Any, name: str) -> bool:
    """Whether peft would put an adapter into linear layers called ``name``, and nowhere else.

    In some mixtures of experts it takes the name for that of fused experts, which are parameters and no layers; in
    state-space models it refuses a layer whose weight is read without calling it.

    Relies on ``_check_lora_target_modules_mamba``, and on `convert_peft_config_for_transformers`, which is not in the
    documentation.
    """
    config = LoraConfig(target_modules=[name])
    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    try:
        convert_peft_config_for_transformers(config, model, None)
        if check is not None:
            check(config, model, name)
    except ValueError:
        return False
    return not config.target_parameters
