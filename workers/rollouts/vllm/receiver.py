"""What runs inside vLLM's worker: taking weights and adapters from memory, and saying what did not arrive.

vLLM mixes ``WeightReceiver`` into its worker class, so ``self`` has the worker's ``model_runner`` and configurations.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class WeightReceiver:
    """Methods that ``collective_rpc`` calls by name."""

    model_runner: Any
    model_config: Any

    def receive_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Load whole weights, named as in the model's checkpoints. Returns the parameters that got none.

        The weights are taken one at a time and to the last, so that they can be put together on the way.
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in _persistent_buffers(model)}
        initialize_layerwise_reload(model)
        try:
            loaded = model.load_weights((name, tensor.detach()) for name, tensor in weights)
        finally:
            finalize_layerwise_reload(model, self.model_config)
        # Reloading leaves buffers that were not pushed uninitialised where their module's parameters were.
        for name, buffer in _persistent_buffers(model):
            if loaded is None or name not in loaded:
                buffer.copy_(buffers[name])
        # A loader that does not report what it loaded is checked by the probe alone.
        return [] if loaded is None else sorted(wanted - loaded)

    def receive_adapter(self, number: int, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
        """Make adapter ``number`` the only one. Returns the modules of ``tensors`` that this model cannot adapt."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        workers = self.model_runner.lora_manager
        adapters = workers._adapter_manager
        workers.remove_all_adapters()
        helper = PEFTHelper.from_dict(dict(config))
        helper.validate_legal(workers.lora_config)
        mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
        adapter = LoRAModel.from_lora_tensors(
            number,
            # vLLM keeps what it is given where device and dtype allow it, and multiplies it by the scaling in place:
            # without a copy it would change the very weights that are being trained.
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            helper,
            device="cpu",
            dtype=workers.lora_config.lora_dtype,
            model_vocab_size=workers.vocab_size,
            weights_mapper=mapper and mapper.get_rename_mapper(),
        )
        known = set(adapters.modules).union(*adapters.packed_modules.values())
        incomplete = {name for name, part in adapter.loras.items() if part.lora_a is None or part.lora_b is None}
        refused = sorted((set(adapter.loras) - known) | incomplete)
        if not refused:
            adapters.add_adapter(adapter)
            adapters.activate_adapter(number)
        return refused


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer
