"""What a multimodal model has to beat, measured in the same harness: same splits, metrics, selection, result files.

Constant (:mod:`.constant`), ridge regression on the frozen LM's states (:mod:`.ridge`), LoRA on the LM without audio
and vision, and pooled features added to the frozen text state (both :mod:`.regressors`, trained by :mod:`.fitting`).
:mod:`.run` goes from settings to files.
"""
