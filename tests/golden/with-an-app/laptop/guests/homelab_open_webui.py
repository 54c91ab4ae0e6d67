"""Before Open WebUI starts: the gateway's address and key into its settings. It takes both from its
environment when it starts for the first time and never again (seen on 0.12.4: all of it is in its database
then). What its administrator added beside them stays."""

import json
import os
import sqlite3
import sys
import time


def merged(urls, keys, url, key):
    """Their lists with ours in the place of what it was before, known by its address or its key, else behind
    theirs."""
    urls, keys = list(urls), list(keys)
    keys += [""] * (len(urls) - len(keys))
    place = next((i for i in range(len(urls)) if urls[i] == url or keys[i] == key), len(urls))
    urls[place : place + 1], keys[place : place + 1] = [url], [key]
    return urls, keys


def main():
    path = os.path.join(os.environ["DATA_DIR"], "webui.db")
    if not os.path.exists(path):
        return
    names = ("openai.api_base_urls", "openai.api_keys")
    database = sqlite3.connect(path)
    try:
        found = dict(database.execute("SELECT key, value FROM config WHERE key IN (?, ?)", names).fetchall())
        if len(found) < len(names):
            return
        before = [json.loads(found[name]) for name in names]
        after = merged(*before, os.environ["OPENAI_API_BASE_URLS"], os.environ["OPENAI_API_KEYS"])
        if list(after) == before:
            return
        for name, value in zip(names, after):
            database.execute(
                "UPDATE config SET value = ?, updated_at = ? WHERE key = ?",
                (json.dumps(value), int(time.time()), name),
            )
        database.commit()
        print("homelab: the gateway's address and key are put into the settings")
    except (sqlite3.Error, ValueError, TypeError) as e:
        # Another release may keep them otherwise. It starts all the same, and says itself what it lacks.
        print("homelab: the settings cannot be read, they stay as they are: %s" % e, file=sys.stderr)
    finally:
        database.close()


if __name__ == "__main__":
    main()
