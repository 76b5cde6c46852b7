"""The plugin system: hook specifications, loader, registries, contract checks and the built-in plugins."""
