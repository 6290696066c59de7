"""Adapters for other libraries. Import each by its own name; nothing is imported here.

`swamp.integrations.huggingface`, `swamp.integrations.lightning`, `swamp.integrations.peft`,
`swamp.integrations.stable_baselines3`, `swamp.integrations.timm`.
Your own training loop needs no adapter: see `swamp.hold` and `swamp.backends.CustomTrainer`.
"""
