"""Vision towers: pixels `[N, 3, S, S]` to features `[N, P, D]`. One file per family; `vit` holds what they share.

Each module imports torch, so this package imports none of them: `vila_core.plugins.builtins` does so inside its factories.
"""
