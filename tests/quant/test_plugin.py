"""What vila-quant registers keeps the contract of plugins."""

from vila_core.testing import check_plugin


def test_the_plugin_keeps_its_contract() -> None:
    registered = check_plugin("vila_quant.plugin")
    assert registered["vila_checkpoint_formats"] == ("awq", "tinychat")
    assert set(registered["vila_quantizers"]) == {"reference", "best", "nearest"}
    assert "reference" in registered["vila_kernels"]
    assert registered["vila_commands"] == ("quant",)
