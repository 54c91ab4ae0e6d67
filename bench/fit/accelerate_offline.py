"""Runs in the virtual environment of `accelerate`: the code of `accelerate estimate-memory`, with a
folder in the hub's place.

python accelerate_offline.py FOLDER DTYPE    prints the bytes of the whole model in that type"""

import os
import sys
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

from accelerate.commands import estimate

folder, dtype = sys.argv[1:]
estimate.verify_on_hub = lambda *_: SimpleNamespace(library_name="transformers", config={})
asked = SimpleNamespace(
    model_name=folder, library_name="transformers", trust_remote_code=False, dtypes=[dtype]
)
((_, _, total, _),) = estimate.gather_data(asked)
print(int(total))
