"""The seam to the machines: everything that reaches a node goes through a `Session`."""
