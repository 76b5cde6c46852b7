"""Fails as a plugin does whose own dependency is not there."""

import a_package_that_nobody_has  # noqa: F401  # pyright: ignore[reportMissingImports]
