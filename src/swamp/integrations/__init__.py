"""Adapters for other libraries, each imported only when asked for by its own name.

`swamp.integrations.huggingface`, `swamp.integrations.pretrained`, `swamp.integrations.lightning`,
`swamp.integrations.timm`. A loop of one's own needs none of them: see `swamp.hold` and `swamp.backends.CustomTrainer`.
"""
