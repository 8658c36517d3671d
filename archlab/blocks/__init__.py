"""What a Transformer is made of. Start with `archlab.blocks.contracts`."""
