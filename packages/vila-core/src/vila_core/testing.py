"""Tests for plugin authors: call `check_plugin` from a plugin's own test suite.

from vila_core.testing import check_plugin

def test_plugin():
    check_plugin("my_package.plugin")
"""

from vila_core.plugins.contract_checks import HEAVY_MODULES, check_plugin

__all__ = ["HEAVY_MODULES", "check_plugin"]
