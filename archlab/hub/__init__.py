"""Weights in and out: released models as archlab's decoders, and back into folders that transformers loads.

`from_hf` takes a model in memory, `load` a folder with config.json and safetensors or a GGUF file, `export` writes a
folder. Nothing is fetched, unpickled or run. A family is a row of tables in `archlab.hub.families`.
"""

from archlab.hub.families import FAMILIES
from archlab.hub.files import export, from_hf, load

__all__ = ["FAMILIES", "export", "from_hf", "load"]
