"""Private names of other libraries that this package uses, each with the reason.

A version without one of them, or with another signature, fails a test that says what was wanted and why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """One name.

    Attributes:
        holder: ``module`` or ``module:Class``.
        name: what it has.
        reason: what we need it for.
        used_in: our file.
        parameters: the first parameters of a function that we call or override.
        on_instances: set by the class in itself, so that only its source shows it.
    """

    holder: str
    name: str
    reason: str
    used_in: str
    parameters: tuple[str, ...] = ()
    on_instances: bool = False


_LAYER = "transformers.modeling_layers:GradientCheckpointingLayer"
_LORA = "peft.tuners.lora.model:LoraModel"
_TUNER_LAYER = "peft.tuners.tuners_utils:BaseTunerLayer"
_TRAINER = "transformers.trainer:Trainer"
_MODEL = "transformers.modeling_utils:PreTrainedModel"
_ZERO = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"

PRIVATE_NAMES = (
    PrivateName(
        "transformers.configuration_utils:PreTrainedConfig", "_attn_implementation",
        "the attention kernel in use decides whether rows are packed", "fusion/passes.py",
    ),
    PrivateName(
        _LAYER, "_gradient_checkpointing_func", "activation checkpointing must not be reentrant", "model/tuner.py",
        on_instances=True,
    ),
    PrivateName(
        _LAYER, "gradient_checkpointing", "whether an MM Block's activations are checkpointed with its layer's",
        "fusion/hooks.py",
    ),
    PrivateName(
        "torch.nn:Module", "_forward_hooks", "checkpointing's hooks are removed when the base is unloaded",
        "backbones/state.py", on_instances=True,
    ),
    PrivateName(
        "torch.nn:Module", "_modules", "a segment puts other layers into a body that shares everything else",
        "backbones/segment.py", on_instances=True,
    ),
    PrivateName(
        "torch.nn:Module", "_parameters", "an average holds what a file would, by its names, without making one",
        "adapters/compatibility.py", on_instances=True,
    ),
    PrivateName("torch.nn:Module", "_buffers", "the same", "adapters/compatibility.py", on_instances=True),
    PrivateName(
        "torch.nn:Module", "_non_persistent_buffers_set", "an average holds what a file would, without making one",
        "adapters/compatibility.py", on_instances=True,
    ),
    PrivateName("torch.nn:Module", "_compiled_call_impl", "segments compile as their body", "backbones/segment.py"),
    PrivateName("torch.nn:Module", "_call_impl", "what of a segment is compiled", "backbones/segment.py"),
    PrivateName(
        "torch._ops:OpOverload", "_schema", "which operators of a planned step move nothing: they give views",
        "planning/operators.py", on_instances=True,
    ),
    PrivateName(
        "torch._subclasses.fake_tensor", "FakeTensorMode", "a planned step runs on tensors without memory",
        "planning/dry_step.py",
    ),
    PrivateName(
        "torch.utils._python_dispatch", "TorchDispatchMode", "every new storage of a planned step is counted",
        "planning/live_bytes.py",
    ),
    PrivateName("torch:UntypedStorage", "_cdata", "a storage is told from others", "planning/live_bytes.py"),
    PrivateName(
        "torch._dynamo.eval_frame", "OptimizeContext", "how a body was compiled is found by its type",
        "backbones/segment.py",
    ),
    PrivateName("torch._dynamo", "allow_in_graph", "marks that wait for the compiler to be loaded", "deferred.py"),
    PrivateName("torch._dynamo", "assume_constant_result", "the same", "deferred.py"),
    PrivateName("torch._dynamo", "disable", "the same", "deferred.py", ("fn", "recursive")),
    PrivateName(
        _MODEL, "_require_grads_hook", "checkpointing's mark on a base is removed when it is unloaded",
        "backbones/state.py", on_instances=True,
    ),
    PrivateName(_MODEL, "_require_grads_hooks", "the same", "backbones/state.py", on_instances=True),
    PrivateName(
        _TUNER_LAYER, "_active_adapter", "PEFT reads from it which fusion modules are at work", "model/tuner.py",
    ),
    PrivateName(_TUNER_LAYER, "_disable_adapters", "PEFT reads from it whether any is", "model/tuner.py"),
    PrivateName(
        _TUNER_LAYER, "_move_adapter_to_device_of_base_layer", "fusion modules follow the embeddings' device",
        "model/tuner.py", ("self", "adapter_name", "device"),
    ),
    PrivateName(
        _LORA, "_unload_and_optionally_merge", "hooks are removed and the base is restored whenever PEFT unloads",
        "model/tuner.py", ("self",),
    ),
    PrivateName(
        _LORA, "_remove_adapter_name_from_key", "keys of fusion modules hold the adapter's name in the middle",
        "model/tuner.py", ("key", "adapter_name"),
    ),
    PrivateName(
        _TRAINER, "_prepare_input", "batches go to the device in the dtypes that fusion needs",
        "training/evaluating_trainer.py", ("self", "data"),
    ),
    PrivateName(
        _TRAINER, "_determine_best_metric", "the best checkpoint is known before it is written",
        "training/checkpoint_trainer.py", ("self", "metrics", "trial"),
    ),
    PrivateName(
        _TRAINER, "_save_checkpoint", "a checkpoint is written aside, then renamed", "training/checkpoint_trainer.py",
        ("self", "model", "trial"),
    ),
    PrivateName(
        _TRAINER, "_prepare_inputs", "what a batch holds goes to the device as fusion reads it",
        "training/evaluating_trainer.py", ("self", "inputs"),
    ),
    PrivateName(
        _TRAINER, "_load_best_model", "we load the selected adapter", "training/checkpoint_trainer.py", ("self",),
    ),
    PrivateName(
        _TRAINER, "_save_optimizer_and_scheduler", "a checkpoint has the optimizer's state whole, whoever split it",
        "training/checkpoint_trainer.py", ("self", "output_dir"),
    ),
    PrivateName(
        _TRAINER, "_prepare_for_training", "an engine gets its share of that state, not files of its own",
        "training/checkpoint_trainer.py", ("self", "max_steps", "train_dataloader", "resume_from_checkpoint"),
    ),
    PrivateName(
        _TRAINER, "_load_optimizer_and_scheduler", "the same", "training/checkpoint_trainer.py", ("self", "checkpoint"),
    ),
    PrivateName(
        _TRAINER, "_set_signature_columns_if_needed", "the collator picks what the model reads",
        "training/evaluating_trainer.py", ("self",),
    ),
    PrivateName(
        _TRAINER, "_signature_columns", "the same", "training/evaluating_trainer.py", on_instances=True,
    ),
    PrivateName(
        _TRAINER, "_get_eval_sampler", "an evaluation begins with the longest texts",
        "training/evaluating_trainer.py", ("self", "eval_dataset"),
    ),
    PrivateName(
        _TRAINER, "_get_num_items_in_batch", "a step's batches are seen together, before the first of them",
        "training/trainer.py", ("self", "batch_samples", "device"),
    ),
    PrivateName(
        _TRAINER, "_save", "a checkpoint holds the adapter only", "training/checkpoint_trainer.py",
        ("self", "output_dir", "state_dict"),
    ),
    PrivateName(
        _TRAINER, "_tr_loss", "a resumed run logs the mean over the same steps", "training/checkpoint_trainer.py",
        on_instances=True,
    ),
    PrivateName(
        _TRAINER, "_globalstep_last_logged", "as above", "training/checkpoint_trainer.py", on_instances=True,
    ),
    PrivateName(
        _ZERO, "_global_grad_norm",
        "whether the gradient of a step is finite, before the update", "training/guarded_trainer.py", on_instances=True,
    ),
    PrivateName(
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3", "_global_grad_norm", "the same",
        "training/guarded_trainer.py", on_instances=True,
    ),
    PrivateName(
        _ZERO, "_lazy_init_hp_params_optimizer_state", "the optimizer's state is put into DeepSpeed's flat pieces",
        "training/optimizer_state.py", ("self",),
    ),
    PrivateName(
        _ZERO, "_hp_optimizer_states_linked", "as above", "training/optimizer_state.py", on_instances=True,
    ),
    PrivateName(
        "transformers.models.auto.auto_factory:_BaseAutoModelClass", "_model_mapping",
        "which architectures need no code of their own", "backbones/foreign_code.py",
    ),
    PrivateName(
        "torch.testing._internal.distributed.fake_pg", "FakeStore", "a dry run for processes that are not there",
        "training/launch.py",
    ),
    PrivateName(
        "transformers.configuration_utils:PreTrainedConfig", "_name_or_path", "adapters name their base by it",
        "backbones/loading.py", on_instances=True,
    ),
)  # fmt: skip
