"""Plans: presets and YAML files, read, checked, and previewed."""
