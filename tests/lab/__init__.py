"""A household of GPU machines on one Linux box without a GPU: each with its own address, sshd, Docker Engine,
NVML, memory and disk size."""
