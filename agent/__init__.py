"""What runs on a node: prints one JSON document about it, changes nothing. Needs only Python 3.8 or newer."""
