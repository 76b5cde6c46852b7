"""Vision towers: pixels `[N, 3, S, S]` to features `[N, P, D]`. One file per family; `vit` has the shared parts.

Each module imports torch, so the package itself imports none of them: `vila_core.plugins.builtins` does, in its
factories.
"""
