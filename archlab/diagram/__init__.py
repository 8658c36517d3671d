"""Every picture of a model: observed as it is built (`trace`, `parts`), laid out, and drawn as SVG (`drawing`)."""
