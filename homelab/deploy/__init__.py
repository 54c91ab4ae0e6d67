"""Carries out a plan. The only package that changes a machine."""

from homelab.deploy.apply import deploy
from homelab.deploy.remove import remove

__all__ = ["deploy", "remove"]
