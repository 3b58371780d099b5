"""Turning a prompt into tokens. Import from the submodules: all but runners.eager, cache and naive need no torch."""
