"""Runs from a folder of any name, with no package installed: `python3 -I FOLDER [--watch SECONDS] [REQUEST]`,
or `python3 -I FOLDER gguf FILE`."""

# Any Python must be able to parse this file, 2.7 too: an old one shall say the sentence below and not a
# SyntaxError.
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("homelab agent needs Python 3.8 or newer, this node has %d.%d\n" % sys.version_info[:2])
    sys.exit(98)

import os
import types


def whole(folder):
    """Whether every file is as the bundle's sums say. A checkout has no sums, and nothing is checked."""
    sums = os.path.join(folder, "SHA256SUMS")
    if not os.path.exists(sums):
        return True
    # hashlib loads OpenSSL, which takes longer than all the rest; _sha256 is called _sha2 since Python 3.12.
    for module in ("_sha256", "_sha2", "hashlib"):
        try:
            sha256 = __import__(module).sha256
            break
        except ImportError:
            pass
    try:
        with open(sums, "rb") as lines:
            for line in lines:
                digest, _, name = line.decode().rstrip("\n").partition("  ")
                with open(os.path.join(folder, name), "rb") as file:
                    if sha256(file.read()).hexdigest() != digest:
                        return False
    except (OSError, ValueError):
        return False
    return True


package = types.ModuleType("agent")
folder = os.path.dirname(os.path.abspath(__file__))
if folder not in sys.path:  # Python puts it there for a folder, not for a file
    sys.path.insert(0, folder)
package.__path__ = [folder]
sys.modules["agent"] = package

if __name__ == "__main__":
    if not whole(folder):  # the controller sends it anew: homelab/nodes/bundle.py
        print("homelab-agent-missing", os.uname().sysname, os.uname().machine)
        sys.exit(96)
    if sys.argv[1:2] == ["gguf"]:
        from agent.gguf import main

        status = main(sys.argv[2:])
    else:
        from agent.facts import main

        status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a driver call that hangs in a thread must not keep the answer
