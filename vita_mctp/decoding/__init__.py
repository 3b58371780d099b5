"""Turning a prompt into tokens: plan (modes as data), sampling, cache, state, engine, and naive, its slow twin.

Import from the submodules: `plan` and `types` need no torch, so that naming the modes stays cheap.
"""
