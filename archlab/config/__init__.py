"""From words to a configuration that can be run: overrides, presets, rules, checks. Nothing is trained here."""
