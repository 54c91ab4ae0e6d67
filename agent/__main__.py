"""Runs from a folder of any name, with no package installed: `python3 -I FOLDER [REQUEST]` or
`python3 -I FOLDER gguf FILE`.

Given FOLDER/__main__.py instead, Python starts some milliseconds faster."""

# Any Python must be able to parse this file, 2.7 too: an old one shall say the sentence
# below and not a SyntaxError.
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("homelab agent needs Python 3.8 or newer, this node has %d.%d\n" % sys.version_info[:2])
    sys.exit(98)

import gc
import os
import types

gc.disable()  # it ends before there is anything to collect

package = types.ModuleType("agent")
folder = os.path.dirname(os.path.abspath(__file__))
if folder not in sys.path:  # Python puts it there for a folder, not for a file
    sys.path.insert(0, folder)
package.__path__ = [folder]
sys.modules["agent"] = package

if __name__ == "__main__":
    if sys.argv[1:2] == ["gguf"]:
        from agent.gguf import main

        status = main(sys.argv[2:])
    else:
        from agent.facts import main

        status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a driver call that hangs in a thread must not keep the answer
